"""Make one update of a finished or broken run again, and look at what went into it.

sftjax replay runs/a --step 17
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import tyro

from sftjax.recipes.chat import chat
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.classify import classify
from sftjax.recipes.diagnose import diagnose
from sftjax.recipes.diagnose_job import Diagnose
from sftjax.recipes.home import JOB_FILE, ReplayDone, rebuilt
from sftjax.recipes.images import images
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.prepare import Classify
from sftjax.recipes.progress import say
from sftjax.recipes.report_to import read_log
from sftjax.recipes.segment import segment
from sftjax.recipes.segment_job import Segment
from sftjax.recipes.summarize import summarize
from sftjax.recipes.summarize_job import Summarize
from sftjax.train import Replayed
from sftjax.train.window import rows_of

_RECIPES: dict[str, tuple[type, Callable[..., Any]]] = {
    "classify": (Classify, classify),
    "images": (TuneImages, images),
    "diagnose": (Diagnose, diagnose),
    "summarize": (Summarize, summarize),
    "chat": (TuneChat, chat),
    "segment": (Segment, segment),
}


@dataclasses.dataclass(frozen=True)
class Replay:
    """Make one update of a run again: its batch, its state, its loss to the bit."""

    folder: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run of classify, images, diagnose, segment, summarize or chat."""
    step: int
    """Which update, counted from 0."""


class ReplayedRun(NamedTuple):
    """What a replay found."""

    found: Replayed
    logged: dict[str, float] | None
    """What the run's log has of this update, the last time that it was made."""

    @property
    def same(self) -> bool | None:
        """Whether the loss is the logged one, to the bit; None where nothing was logged."""
        if self.logged is None:
            return None
        return repr(self.found.metrics["loss"]) == repr(self.logged["loss"])


def replay_run(job: Replay, tell: Callable[[str], None] = say) -> ReplayedRun:
    """Read the run's own job again, go to its newest checkpoint at or before the update, and on.

    Start it where the run was started: the paths of model and data are as they were given.

    Raises:
      FileNotFoundError: if the folder has no job.
      ValueError: if data, weights or settings are no longer those of the run (says which), or the
        run is of a kind that cannot be replayed.
    """
    path = job.folder / JOB_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{job.folder} has no {JOB_FILE}; a folder that sftjax {', '.join(_RECIPES)} made has "
            "one, unless it is a sweep's"
        )
    try:
        noted = json.loads(path.read_text("utf8"))
        kind, recipe = _RECIPES[noted["command"]]
        settings = rebuilt(kind, noted["job"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold the settings of a run ({type(error).__name__}: {error}); replay "
            f"a folder that sftjax {', '.join(_RECIPES)} made, with the version that made it"
        ) from error
    training = dataclasses.replace(settings.training, replay=job.step)
    settings = dataclasses.replace(settings, output_dir=job.folder, training=training)
    try:
        recipe(settings, lambda text: None)
    except ReplayDone as done:
        found = done.found
    else:
        raise ValueError(f"{job.folder} holds no run whose updates can be made again one by one")
    lines = read_log(job.folder)
    updates = [e for e in lines if e["event"] == "update" and e["update"] == job.step]
    result = ReplayedRun(found, updates[-1] if updates else None)
    tell(_told(job, result))
    return result


def _told(job: Replay, result: ReplayedRun) -> str:
    found = result.found
    numbers = ", ".join(f"{name} {value:.9g}" for name, value in found.metrics.items())
    shapes = ", ".join(f"{name} {tuple(leaf.shape)}" for name, leaf in found.batch.items())
    said = [
        f"update {job.step} of {job.folder}, made again from update {found.since}: {numbers}",
        f"batch: {shapes}",
    ]
    if rows := rows_of(found.batch):
        said.append(f"rows, counted from 0 in the training data: {', '.join(map(str, rows))}")
    same = {True: "the logged loss, to the bit", None: "the log has no such update"}
    logged = "" if result.logged is None else f"{result.logged['loss']:.9g}"
    said.append(same.get(result.same, f"NOT the logged loss {logged}: another machine or version?"))
    return "\n".join(said)
