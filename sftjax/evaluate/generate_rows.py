"""A loop over rows that end at different times, which the last of them finish alone."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import PyTree

State = TypeVar("State")

SHARE = 4
"""How many times fewer the rows of the next loop are. Each loop is a program to compile, and by
halves there would be twice as many."""


def until_ended(
    state: State,
    *,
    advance: Callable[[State], State],
    is_open: Callable[[State], Array],
    take: Callable[[State, Array], State],
    result: Callable[[State], PyTree],
    fewer: bool | None = None,
) -> PyTree:
    """Advance a batch until each row has ended.

    Rows may not look at one another. As soon as a quarter of them holds all that are open, that
    quarter goes on alone, so that a batch does not pay for its longest row in full.

    Args:
      state: of B rows.
      advance: one step of all rows.
      is_open: (B,) bool, which rows are to go on.
      take: `(state, rows) -> state` of those rows alone.
      result: what is wanted of a state; arrays with the rows first.
      fewer: whether fewer rows go on alone. By default on a CPU: elsewhere a step of few rows takes
        the time of one of many, that of reading the weights.

    >>> count = until_ended(
    ...     jnp.array([3, 1, 2, 0, 1, 1, 1, 0]),  # how far each has to go
    ...     advance=lambda left: left - 1, is_open=lambda left: left > 0,
    ...     take=lambda left, rows: left[rows], result=lambda left: left, fewer=True,
    ... )
    >>> count.tolist()  # after one step two were left, which went on alone
    [0, 0, -1, -1, 0, 0, 0, -1]
    """
    if fewer is None:
        fewer = jax.default_backend() == "cpu"
    rows = len(jax.eval_shape(is_open, state))
    left = rows // SHARE if fewer else 0
    state = jax.lax.while_loop(lambda state: is_open(state).sum() > left, advance, state)
    if not left:
        return result(state)
    order = jnp.argsort(~is_open(state), stable=True)[:left]
    finished = until_ended(
        take(state, order),
        advance=advance, is_open=is_open, take=take, result=result, fewer=fewer,
    )  # fmt: skip
    return jax.tree.map(lambda all, own: all.at[order].set(own), result(state), finished)


def rows_of(tree: PyTree, rows: Array) -> PyTree:
    """Return some rows of every array that has any.

    >>> rows_of({"x": jnp.arange(4) * 10, "step": jnp.int32(3)}, jnp.array([2, 0]))
    {'step': Array(3, dtype=int32), 'x': Array([20,  0], dtype=int32)}
    """
    return jax.tree.map(lambda leaf: leaf[rows] if jnp.ndim(leaf) else leaf, tree)
