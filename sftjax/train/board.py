"""The coordinator's board: short words that one of several processes writes and all can read."""

import itertools
from typing import Any

import jax

_opened = itertools.count()
"""Processes of a run are one program, so they open these in the same order: a name in common."""


def name_of_next(what: str) -> str:
    """Return a name on the board that nobody has had, the same in every process.

    >>> name_of_next("stop").rpartition("/")[0]
    'sftjax/stop'
    """
    return f"sftjax/{what}/{next(_opened)}"


def the_board() -> Any:
    """Return the coordinator's client, None where there is one process alone."""
    # jax has no public way to it; orbax and jax's own multihost_utils take this one.
    from jax._src import distributed

    return distributed.global_state.client


def write(board: Any, name: str, text: str) -> None:
    """Write under a name; what stands there already counts."""
    try:
        board.key_value_set(name, text)
    except jax.errors.JaxRuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):  # then another was first, and its word counts
            raise


def read(board: Any, name: str) -> str | None:
    """Return what stands under a name; None if nothing does."""
    try:
        return board.key_value_try_get(name)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None
