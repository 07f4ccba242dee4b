"""One run by several processes: all of them train it, and the first one writes and speaks."""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import jax

from sftjax.core import PyTree
from sftjax.recipes.training import Training
from sftjax.train import RollCall, agreed, apart, at_home, join_processes, processes

AnyJob = TypeVar("AnyJob", bound=Any)


class _Part(NamedTuple):
    """Of this process in a run."""

    folder: pathlib.Path
    """Of the run; this process may work in another."""
    ready: RollCall
    """Before the first update."""


_part: ContextVar[_Part | None] = ContextVar("part", default=None)


@contextlib.contextmanager
def one_of_several(job: AnyJob) -> Generator[AnyJob, None, None]:
    """Join the other processes of a run, and give this one's part of the job.

    Before anything touches a device. Updates are made by all devices of all processes; whatever
    else there is to do (reading, evaluating, reports) each process does by itself, on its own
    devices. What the first one writes is the run; the others write to a folder that is thrown away,
    and are silent. Checkpoints are written by all into the run's folder, which all must see.

    Args:
      job: of a recipe that trains one model, the same in every process.

    Yields:
      The job that the recipe is to be given here.

    Raises:
      ValueError: if the processes cannot be found (see `train.join_processes`), the job is one
        that a single process does, or another process failed (says which, and why).
    """
    training: Training = job.training
    for word, value in (("--sweep", getattr(job, "sweep", "")), ("--replay", training.replay)):
        if value not in ("", None):
            raise ValueError(f"{word} is done by one process; leave --distributed out")
    me = processes() if jax.distributed.is_initialized() else join_processes()
    calls = ready, done = RollCall(), RollCall()
    with apart(), contextlib.ExitStack() as stack:
        token = _part.set(_Part(job.output_dir, ready))
        stack.callback(_part.reset, token)
        if not me.first:
            aside = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            silence = stack.enter_context(open(os.devnull, "w", encoding="utf8"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            training = dataclasses.replace(training, report_to=(), profile=0)
            job = dataclasses.replace(job, output_dir=aside / "run", training=training)
        try:
            yield job
        except BaseException as error:
            for call in calls:
                call.failed(error)
            raise
        done.here()


def all_ready() -> None:
    """Wait until every process of the run is ready for its first update; alone, go on.

    Raises:
      ValueError: if there are several that were not joined by `one_of_several`, or if another
        failed before it was ready.

    >>> all_ready()
    """
    part = _part.get()
    if part is not None:
        part.ready.here()
    elif jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes would write one run into one folder: give the recipe "
            "the job of `with sftjax.recipes.several.one_of_several(job) as job:`; on the command "
            "line that is --distributed"
        )


def by_each(evaluate: Callable[[PyTree], dict[str, float]]) -> Callable[[PyTree], dict[str, float]]:
    """Return an evaluation that each process makes by itself, of weights that may lie over all.

    The numbers are the first process's, so that all decide alike.

    >>> by_each(lambda params: {"eval_loss": params["w"]})({"w": 0.5})
    {'eval_loss': 0.5}
    """
    return lambda params: agreed(evaluate(at_home(params)))


def shared(folder: pathlib.Path) -> pathlib.Path:
    """Return where all processes of a run meet, of one's own folder of it.

    >>> shared(pathlib.Path("runs/a")).name
    'a'
    """
    part = _part.get()
    return folder if part is None else part.folder
