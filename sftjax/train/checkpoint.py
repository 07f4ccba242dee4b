"""Checkpoints of what moves: asynchronous, atomic, and checked leaf by leaf when they are read."""

import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import jax

from sftjax.core import PyTree, TrainState, combine, flatten, redact
from sftjax.train.digest import digests, forms
from sftjax.train.run_home import differences
from sftjax.train.together import all_agree

_METADATA = "_CHECKPOINT_METADATA"
"""Where orbax keeps the facts of a checkpoint; its own reader opens every array beside."""
_UNREADABLE = (ValueError, OSError, KeyError, TypeError, RuntimeError, EOFError)
"""What orbax, tensorstore and JSON raise for files that are cut, damaged or gone."""
_DISK = re.compile(
    r"No space left|File too large|quota|Read-only file system|Input/output error|Errno|ENOSPC",
    re.I,
)


class Saved(NamedTuple):
    """What a checkpoint holds."""

    state: TrainState
    best: PyTree | None
    """The trainable leaves of the best evaluation so far, perhaps with its moving statistics."""
    facts: dict[str, Any]
    """JSON that was saved with the state, such as the history of metrics."""


class _OtherRun(Exception):
    """A checkpoint is whole, and not of this run."""


def open_checkpoints(
    folder: str | os.PathLike[str],
    *,
    keep: int = 2,
    identity: Mapping[str, Any] | None = None,
    accept_changes: bool = False,
    read_only: bool = False,
) -> "Checkpoints":
    """Open (or make) a folder of checkpoints; use it as a context manager.

    A checkpoint holds what moves (the state), the best trainable leaves so far, the identity of
    what does not, and a digest of each leaf. The base's weights are not in it.

    Args:
      folder: holds one subfolder a saved step.
      keep: how many of the latest checkpoints stay; an older one goes when a newer one is whole.
        The best leaves are in each of them.
      identity: JSON facts that identify the run (hashes of base, data and configuration); saved
        with each checkpoint and compared when one is read.
      accept_changes: warn where they differ, instead of refusing.
      read_only: leave alone what another process may just be saving there.

    Raises:
      ValueError: if `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least one checkpoint must stay")
    return Checkpoints(pathlib.Path(folder).absolute(), keep, identity, accept_changes, read_only)


class Checkpoints:
    """A handle on a folder of checkpoints: `save`, `latest`, `close`."""

    failed: list[int]
    """Steps that could not be saved, because of the disk."""

    def __init__(
        self,
        folder: pathlib.Path,
        keep: int,
        identity: Mapping[str, Any] | None,
        accept_changes: bool,
        read_only: bool,
    ):
        self._folder, self._keep = folder, keep
        plain = None if identity is None else json.loads(redact(json.dumps(dict(identity))))
        self._identity, self._accept = plain, accept_changes
        self._read_only = read_only
        self._opened: Any = None
        self._pending: tuple[int, Any] | None = None
        self._whole: int | None = None
        self.failed = []
        self._open()

    def save(self, saved: Saved) -> None:
        """Write a checkpoint in the background; atomic: it is there whole or not at all.

        Warns:
          UserWarning: if the disk took it (or the one before) not, being full for example. The last
            whole checkpoint stays, and the next call tries again.
        """
        self.wait()
        step = int(saved.state.step)
        if step == self._whole:
            return  # the very same state
        tree = {"state": saved.state, "best": saved.best}
        facts = {
            **saved.facts,
            "has_best": saved.best is not None,
            "identity": self._identity,
            "forms": forms(tree),
            "digests": digests(tree),
        }
        try:
            self._pending = (
                step,
                self._checkpointer.save_async(
                    step, tree, force=True, overwrite=True, custom_metadata=facts
                ),
            )
        except (OSError, ValueError, RuntimeError) as error:
            self._tell(step, error)

    def wait(self) -> None:
        """Wait until what was saved is on disk; warns as `save` does."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
        except (OSError, ValueError, RuntimeError) as error:
            self._tell(step, error)
        else:
            self._whole = step

    def latest(self, like: TrainState, *, at_most: int | None = None) -> Saved | None:
        """Return the newest checkpoint that can be read, or `None` if there is none.

        Args:
          like: a state of the same structure, shapes and dtypes, of arrays or of
            `jax.ShapeDtypeStruct`; its shardings, which may be others than those that were saved,
            are those of the result.
          at_most: look only at steps up to this one.

        Raises:
          ValueError: if a whole checkpoint is of another run or of another form; says what differs.

        Warns:
          UserWarning: for each newer checkpoint that could not be read, and when none is left.
        """
        self.wait()
        self._whole = None
        if not any(saved.name.isdigit() for saved in self._folder.glob("*")):
            return None
        steps = sorted((found.step for found in self._checkpointer.checkpoints), reverse=True)
        steps = [step for step in steps if at_most is None or step <= at_most]
        for place, step in enumerate(steps):
            left = "trying the one before" if place + 1 < len(steps) else "no older one is left"
            try:
                return self._load(step, like)
            except _OtherRun as error:
                raise ValueError(f"checkpoint {step} of {self._folder} {error}") from None
            except _UNREADABLE as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"checkpoint {step} cannot be read ({reason}) in {self._folder}; {left}",
                    stacklevel=2,
                )
        if steps:
            warnings.warn(
                f"none of the {len(steps)} checkpoints in {self._folder} can be read: the run "
                "starts again from its first update",
                stacklevel=2,
            )
        return None

    def close(self) -> None:
        """Wait until every save is on disk, or has failed."""
        self.wait()
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def make_ready(self) -> None:
        """Import what writes, so that the first `save` need not wait for it."""
        _ = self._checkpointer

    @property
    def _checkpointer(self) -> Any:
        if self._opened is None:
            from orbax.checkpoint import v1 as ocp  # takes a quarter of a second

            policy: Any = ocp.training.preservation_policies.LatestN(self._keep)
            self._opened = ocp.training.Checkpointer(str(self._folder), preservation_policy=policy)
        return self._opened

    def _open(self) -> None:
        if not self._read_only:
            self._folder.mkdir(parents=True, exist_ok=True)
        if self._folder.exists() and not self._read_only and jax.process_index() == 0:
            for torn in self._folder.glob("*.orbax-checkpoint-tmp*"):  # of a process that was
                shutil.rmtree(torn)  # killed, or of a save that failed
        self._opened = None

    def _tell(self, step: int, error: Exception) -> None:
        """Warn of a save that the disk refused, and start anew from what is there."""
        if not isinstance(error, OSError) and not _DISK.search(str(error)):
            raise error
        self.failed.append(step)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"the checkpoint of update {step} could not be saved in {self._folder} ({reason}). The "
            "run goes on and the last whole checkpoint stays; free space on the disk before the "
            "next save",
            stacklevel=3,
        )
        self._open()

    def _load(self, step: int, like: TrainState) -> Saved:
        tree, facts, digest = _in_all(lambda: self._read(step, like))
        found = digests(tree)

        def check() -> None:
            if bad := sorted(path for path in digest if found.get(path) != digest[path]):
                raise ValueError(f"{len(bad)} leaves are not what was saved, first {bad[0]}")

        _in_all(check)
        return Saved(tree["state"], tree["best"], facts)

    def _read(self, step: int, like: TrainState) -> tuple[Any, dict[str, Any], dict[str, str]]:
        facts = json.loads((self._folder / str(step) / _METADATA).read_text("utf8"))
        facts = facts["custom_metadata"]
        has_best, identity = facts.pop("has_best"), facts.pop("identity")
        form, digest = facts.pop("forms"), facts.pop("digests")
        if self._identity is not None and identity is not None:
            self._compare(step, identity)
        wanted = {"state": like, "best": _best_like(like, form) if has_best else None}
        if form != forms(wanted):
            raise _OtherRun(_other_form(form, forms(wanted)))
        return self._checkpointer.load(step, wanted), facts, digest

    def _compare(self, step: int, identity: Mapping[str, Any]) -> None:
        assert self._identity is not None
        if not (differ := differences(identity, self._identity)):
            return
        if not self._accept:
            raise _OtherRun(
                f"is of another run ({differ}). Give back what it was made with, start in another "
                "folder, or go on knowingly (--on-change accept, `accept_changes=True`)"
            )
        warnings.warn(
            f"checkpoint {step} was made with something else ({differ}); going on as asked",
            stacklevel=4,
        )


def _best_like(like: TrainState, form: Mapping[str, str]) -> PyTree:
    """Return the form of the best leaves: what moves, with statistics where they were kept too."""
    held = flatten(like.model_state)
    if any(f"best/{path}" in form for path in held.keys() - flatten(like.trainable).keys()):
        return combine(like.trainable, like.model_state)
    return like.trainable


def _in_all(read: Callable[[], Any]) -> Any:
    """Read something; what one of several processes cannot read is read by none of them."""
    found, failed = None, None
    try:
        found = read()
    except _UNREADABLE as error:
        failed = error
    if not all_agree(failed is None):
        raise failed or OSError("another process cannot read it")
    return found


def _other_form(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    differ = sorted(p for p in found.keys() | wanted.keys() if found.get(p) != wanted.get(p))
    some = "; ".join(
        f"{p}: {found.get(p, 'absent')} there, {wanted.get(p, 'absent')} now" for p in differ[:4]
    )
    return (
        f"holds a state of another form: {len(differ)} leaves differ ({some}). Repeat the run with "
        "the model, the optimizer and the selection that it was made with, or use another folder"
    )
