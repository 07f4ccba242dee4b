"""A run's folder as recipes use it: who lives there, its checkpoints, and its updates again."""

import contextlib
import dataclasses
import json
import pathlib
import types
import typing
from collections.abc import Callable, Generator, Mapping
from typing import Any, ClassVar, NoReturn, Protocol

from sftjax.core import Batch, Fixed, TrainState
from sftjax.recipes.report_to import check
from sftjax.recipes.run_folder import write_json
from sftjax.recipes.several import all_ready, shared
from sftjax.recipes.training import Training
from sftjax.train import (
    Checkpoints,
    Replayed,
    Step,
    claim,
    identity_of,
    open_checkpoints,
    replay,
    spread,
)

CHECKPOINTS = "checkpoints"
JOB_FILE = "job.json"


class Job(Protocol):
    """What recipes are given: a dataclass of settings with a folder to write to."""

    command: ClassVar[str]
    """The word on the command line."""

    @property
    def output_dir(self) -> pathlib.Path:
        """The run's folder."""
        ...

    @property
    def training(self) -> Training:
        """How it trains."""
        ...


class ReplayDone(Exception):
    """The update that was to be made again has been; the recipe ends here."""

    def __init__(self, found: Replayed):
        """Carry what was found."""
        super().__init__("an update was replayed")
        self.found = found


def move_in(job: Job, facts: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Claim the folder of a run, say whether it goes on, and note the job for `replay`.

    Raises:
      ValueError: if the folder is another run's (says what differs and what to do), or the job
        reports to what is not known.
    """
    check(job.training.report_to)
    accept = job.training.on_change == "accept"
    known = claim(job.output_dir, facts, accept_changes=accept)
    all_ready()
    if known:
        tell(f"{job.output_dir} holds this very run: going on from its last checkpoint")
    if job.training.replay is None:
        settings = json.loads(json.dumps(dataclasses.asdict(job), default=str))  # type: ignore[call-overload]
        write_json(job.output_dir / JOB_FILE, {"command": job.command, "job": settings})


@contextlib.contextmanager
def checkpoints_of(
    folder: pathlib.Path | None, training: Training, *, read_only: bool = False
) -> Generator[Checkpoints | None, None, None]:
    """Open the checkpoints of a run's folder, which know whose they are; None without a folder."""
    if folder is None:
        yield None
        return
    options = keeping(folder, training)
    where = checkpoints_in(folder)
    with open_checkpoints(where, read_only=read_only, **options) as checkpoints:
        yield checkpoints


def checkpoints_in(folder: pathlib.Path) -> pathlib.Path:
    """Return the folder of a run's checkpoints."""
    return shared(folder) / CHECKPOINTS


def keeping(folder: pathlib.Path, training: Training) -> dict[str, Any]:
    """Return how `open_checkpoints` knows whose checkpoints those of a run's folder are."""
    accept = training.on_change == "accept"
    return {"identity": identity_of(folder), "accept_changes": accept}


def replay_and_leave(
    folder: pathlib.Path | None,
    training: Training,
    step: Step,
    state: TrainState,
    fixed: Fixed,
    batch_at: Callable[[int], Batch],
) -> NoReturn:
    """Make update `training.replay` again, and leave the recipe with it.

    Raises:
      ReplayDone: with what was found.
    """
    assert training.replay is not None
    with checkpoints_of(folder, training, read_only=True) as checkpoints:
        found = replay(
            step, state, fixed, spread(batch_at), training.replay, checkpoints=checkpoints
        )
    raise ReplayDone(found)


def rebuilt(kind: Any, found: Any) -> Any:
    """Return a value of an annotated type from its JSON: dataclasses, tuples, paths, the rest.

    >>> rebuilt(Training, {"train": ["last:1"], "seed": 3}).train
    ('last:1',)
    >>> rebuilt(pathlib.Path | None, "runs/a").name
    'a'
    """
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return rebuilt(typing.get_args(kind)[0], found)
    if origin in (types.UnionType, typing.Union):
        if found is None:
            return None
        kinds = [one for one in typing.get_args(kind) if one is not type(None)]
        return rebuilt(kinds[0], found) if len(kinds) == 1 else found
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        names = {field.name for field in dataclasses.fields(kind)}
        if unknown := sorted(found.keys() - names):
            raise ValueError(
                f"this version of sftjax has no setting {', '.join(unknown)}; replay with the "
                "version that made the run"
            )
        return typing.cast(Any, kind)(**{n: rebuilt(hints[n], v) for n, v in found.items()})
    if origin is tuple:
        return tuple(found)
    return pathlib.Path(found) if kind is pathlib.Path else found
