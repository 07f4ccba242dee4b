"""Several processes come to the same answer; alone, a process comes to its own.

A signal reaches one process, or all of them at different updates; a file can be read by one and not
by another. Where they then did different things, each would wait for the others for ever.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax

LATE = 2
"""How many updates later, at the earliest, a word is acted on: see `together`."""

_opened = itertools.count()
"""Processes of a run are one program, so they open these in the same order: a name in common."""


def together(asked: Callable[[int], bool], *, every: int = 1) -> Callable[[int], bool]:
    """Return a question that all processes answer alike, yes once any of them was asked to stop.

    The first that was asked writes an update's number on the coordinator's board, and every process
    looks there: one small message to one host, no collective, and nobody waits. At update k the
    number is k + 2 or the next that is looked at. A loop that has read the loss of update k, as
    `fit` has when it asks at k + 2, knows that every process had begun it, so the number was on the
    board: no process can have passed it unseen.

    Args:
      asked: this process's own answer. `asked(number)` after each update, with the updates done.
      every: look only at multiples of this, the same in all processes.

    Returns:
      What `fit` takes as `interrupted`; alone, `asked` itself is what it answers.

    Raises:
      ValueError: if `every` is below 1.

    >>> stop = together(lambda number: number >= 3)
    >>> stop(2), stop(3)
    (False, True)
    """
    if every < 1:
        raise ValueError(
            f"every is {every}; look at the board at least at every update, which is 1"
        )
    name, told = f"sftjax/stop/{next(_opened)}", False

    def interrupted(number: int) -> bool:
        nonlocal told
        board = _board()
        if board is None:
            return asked(number)
        if not told and asked(number):
            _write(board, name, str(-(-(number + LATE) // every) * every))
            told = True
        if number % every:
            return False
        found = _read(board, name)
        return found is not None and number >= int(found)

    return interrupted


def all_agree(fine: bool) -> bool:
    """Return whether it is fine for every process; each must ask, and all get the same answer.

    >>> all_agree(True), all_agree(False)
    (True, False)
    """
    if jax.process_count() == 1:
        return fine
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(jax.numpy.asarray(fine)).all())


def _board() -> Any:
    """Return the coordinator's client, None where there is one process alone."""
    # jax has no public way to it; orbax and jax's own multihost_utils take this one.
    from jax._src import distributed

    return distributed.global_state.client


def _write(board: Any, name: str, text: str) -> None:
    try:
        board.key_value_set(name, text)
    except jax.errors.JaxRuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):  # then another was first, and its word counts
            raise


def _read(board: Any, name: str) -> str | None:
    try:
        return board.key_value_try_get(name)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None
