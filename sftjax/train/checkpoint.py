"""Checkpoints of what moves, in a folder that belongs to one run."""

import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

from sftjax.core import PyTree, TrainState

RUN_FILE = "run.json"


class Saved(NamedTuple):
    """What a checkpoint holds."""

    state: TrainState
    best: PyTree | None
    """The trainable leaves of the best evaluation so far."""
    facts: dict[str, Any]
    """JSON that was saved with the state, such as the history of metrics."""


def claim(folder: str | os.PathLike[str], run: Mapping[str, Any]) -> bool:
    """Make `folder` the home of a run, or check that it already is.

    Args:
      folder: made if it does not exist.
      run: JSON facts that identify the run: data, base weights, selection, hyperparameters, seed.

    Returns:
      Whether the folder held this very run before.

    Raises:
      ValueError: if it holds another run (the facts that differ are listed), or other files.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "run"
    >>> claim(folder, {"seed": 0}), claim(folder, {"seed": 0})
    (False, True)
    """
    folder = pathlib.Path(folder)
    wanted = json.loads(json.dumps(dict(run)))
    path = folder / RUN_FILE
    if path.exists():
        found = json.loads(path.read_text("utf8"))
        differ = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        if differ:
            changes = "; ".join(
                f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} now" for k in differ
            )
            raise ValueError(
                f"{folder} holds another run ({changes}). Choose another output folder, repeat the "
                "command that made this one to resume it, or remove the folder."
            )
        return True
    if folder.exists() and any(folder.iterdir()):
        names = ", ".join(sorted(item.name for item in folder.iterdir())[:5])
        raise ValueError(
            f"{folder} is not empty and holds no {RUN_FILE}, so it is not a run folder of ours "
            f"({names}, ...). Choose an empty or new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(wanted, indent=2, sort_keys=True) + "\n", "utf8")
    partial.replace(path)
    return False


def open_checkpoints(folder: str | os.PathLike[str], *, keep: int = 2) -> "Checkpoints":
    """Open (or make) a folder of checkpoints; use it as a context manager.

    Args:
      folder: holds one subfolder a saved step.
      keep: how many of the latest checkpoints stay.

    Raises:
      ValueError: if `keep` is below 1.
    """
    from orbax.checkpoint import v1 as ocp

    if keep < 1:
        raise ValueError(f"keep is {keep}; at least one checkpoint must stay")
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        for torn in folder.glob("*.orbax-checkpoint-tmp*"):  # left by a process that was killed
            shutil.rmtree(torn)
    policy: Any = ocp.training.preservation_policies.LatestN(keep)
    return Checkpoints(ocp.training.Checkpointer(str(folder), preservation_policy=policy))


class Checkpoints:
    """A handle on a folder of checkpoints: `save`, `latest`, `close`."""

    def __init__(self, checkpointer: Any):
        self._checkpointer = checkpointer

    def save(self, saved: Saved) -> None:
        """Write a checkpoint in the background; atomic: it is there whole or not at all."""
        self._checkpointer.save_async(
            int(saved.state.step),
            {"state": saved.state, "best": saved.best},
            force=True,
            overwrite=True,
            custom_metadata={**saved.facts, "has_best": saved.best is not None},
        )

    def latest(self, like: TrainState) -> Saved | None:
        """Return the newest checkpoint that can be read, or `None` if there is none.

        Args:
          like: a state of the same structure, shapes, dtypes and shardings.

        Warns:
          UserWarning: for each newer checkpoint that could not be read.
        """
        for found in sorted(self._checkpointer.checkpoints, key=lambda c: c.step, reverse=True):
            try:
                return self._load(found.step, like)
            except (ValueError, OSError, KeyError) as error:
                reason = str(error).strip().splitlines()[0]
                warnings.warn(
                    f"checkpoint {found.step} cannot be read ({reason}); trying the one before",
                    stacklevel=2,
                )
        return None

    def close(self) -> None:
        """Wait until every save is on disk."""
        self._checkpointer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _load(self, step: int, like: TrainState) -> Saved:
        facts = dict(self._checkpointer.metadata(step).custom_metadata or {})
        best = like.trainable if facts.pop("has_best", False) else None
        tree = self._checkpointer.load(step, {"state": like, "best": best})
        return Saved(tree["state"], tree["best"], facts)
