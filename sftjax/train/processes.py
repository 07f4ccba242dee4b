"""Several processes, one run: they find each other, read their own rows, and one of them writes.

`jax.distributed` is the engine. On Slurm, on TPU pods, on GKE and under Open MPI it finds out by
itself who is who; plain processes are told, by arguments or by three variables of the environment.
Afterwards `jax.devices()` are those of all processes, and a mesh of them is a mesh like any other.
"""

import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

import jax

from sftjax.core import PyTree, gathered

ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""What plain processes may be told by: `host:port` of the first, how many, and which of them."""

LOST = 75
"""Exit code (EX_TEMPFAIL) of a process that gave up on its peers; run the command again."""


class Processes(NamedTuple):
    """Which of how many processes this one is."""

    number: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0


def join_processes(
    coordinator: str = "",
    size: int = 0,
    index: int = -1,
    *,
    start_seconds: int = 300,
    heartbeat_seconds: int = 100,
) -> Processes:
    """Become one of several processes; call it before anything touches a device.

    What is not given is taken from `ENVIRONMENT`, and what is not there either from the cluster
    (Slurm, a TPU pod, GKE, Open MPI), as `jax.distributed.initialize` finds it.

    Args:
      coordinator: `host:port` of the first process, the same for all.
      size: how many processes there are.
      index: which of them this is, from 0.
      start_seconds: how long to wait for the others to come.
      heartbeat_seconds: how long a process may be silent before the others are ended. A peer that
        was killed is met sooner: what it was sending breaks off.

    Raises:
      ValueError: if some of the three are given and the others are not to be found.
      RuntimeError: if the others did not come in time.
    """
    given = [coordinator, size or "", "" if index < 0 else index]
    found = [value or os.environ.get(name, "") if value != 0 else value
             for value, name in zip(given, ENVIRONMENT, strict=True)]  # fmt: skip
    told: dict[str, object] = {}
    if found[0] != "":
        told["coordinator_address"] = str(found[0])
    for key, value, name in zip(
        ("num_processes", "process_id"), found[1:], ENVIRONMENT[1:], strict=True
    ):
        if value != "":
            told[key] = _number(value, name)
    try:
        jax.distributed.initialize(
            **told,  # type: ignore[arg-type]
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        raise ValueError(
            f"the processes cannot find each other ({error}). No cluster (Slurm, TPU pod, GKE, "
            "Open MPI) was recognised; tell each process by arguments or by "
            f"{', '.join(ENVIRONMENT)}"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        who = told.get("process_id", "this one")
        raise RuntimeError(
            f"process {who} of {told.get('num_processes', 'several')} waited {start_seconds} s at "
            f"{told.get('coordinator_address', 'the coordinator')} and not all came: {error}. See "
            "whether the others were started, and whether that address and port can be reached"
        ) from error
    return processes()


def processes() -> Processes:
    """Return which of how many processes this one is; alone, it is the first of one.

    >>> processes()
    Processes(number=0, size=1)
    """
    return Processes(jax.process_index(), jax.process_count())


def meet(where: str) -> None:
    """Wait until every process has come to this point; alone, go on.

    Args:
      where: a name of the point; processes that meet at different ones are told so.

    >>> meet("the run's folder is made")
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)


def on_host(tree: PyTree) -> PyTree:
    """Return the whole of every array as numpy, one leaf at a time, wherever its parts lie.

    Every process must call it, and every process gets all: for what one process then writes.

    >>> on_host({"w": jax.numpy.ones(2)})
    {'w': array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(gathered, tree)


@contextmanager
def patience(
    seconds: float, tell: Callable[[str], None] | None = None
) -> Generator[Callable[[], None], None, None]:
    """End this process with a message when nothing has moved for so long.

    Heartbeats tell of a process that is gone, not of one that lives and waits for ever (a dead file
    server, a deadlock in the input). Inside the block, call what is yielded once a step.

    Args:
      seconds: longer than the slowest step, evaluation and save together.
      tell: is given the message; default stderr.

    >>> with patience(60) as beat:
    ...     beat()
    """
    ended, moved = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if moved.wait(seconds):
                moved.clear()
                continue
            if ended.is_set():
                return
            me = processes()
            (_warn if tell is None else tell)(
                f"process {me.number} of {me.size}: no step was finished for {seconds:g} s, so a "
                "peer or the input hangs. Ending with code "
                f"{LOST}; the same command goes on from the last checkpoint"
            )
            os._exit(LOST)

    watcher = threading.Thread(target=watch, name="patience", daemon=True)
    watcher.start()
    try:
        yield moved.set
    finally:
        ended.set()
        moved.set()


def _warn(message: str) -> None:
    print(f"sftjax: {message}", file=sys.stderr, flush=True)


def _number(value: object, name: str) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"{name} is {value!r} and should be a number") from None
