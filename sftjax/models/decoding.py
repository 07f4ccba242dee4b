"""What generating text needs of a model, whether it is a decoder alone or beside an encoder."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch, PyTree

Cache = PyTree
"""What a decoder remembers of the tokens so far: keys, values, positions, the encoder's output.
Every leaf has the rows of the batch as its first axis, so that beams are reordered by it."""


class WithSource(NamedTuple):
    """A cache in three parts, of which a beam search moves the smallest alone."""

    moving: PyTree
    """Reordered as beams live and die; one row for each row of tokens."""
    own: PyTree
    """What was read of the tokens so far, every leaf (B, ..., J, N, K) for N tokens of J beams. A
    token stays in the place of the beam that read it: `moving` knows where the past of each beam
    lies. J is 1 at the start; a search repeats it."""
    source: PyTree
    """What was read of the source: one row for each row of the *batch*. A step is then given
    `beams` neighbouring rows of tokens for each of these, and neither copies nor moves them."""


def for_beams(cache: Cache, beams: int) -> Cache:
    """Give each of so many beams what its row remembers.

    >>> for_beams({"keys": jnp.array([[1], [2]])}, 2)["keys"].tolist()
    [[1], [1], [2], [2]]
    """
    if not isinstance(cache, WithSource):
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, 0), cache)
    return WithSource(
        for_beams(cache.moving, beams),
        jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, -3), cache.own),
        cache.source,
    )


def take_rows(cache: Cache, rows: Array, beams: int) -> Cache:
    """Go on with some rows of the batch, each with all of its beams.

    >>> take_rows({"keys": jnp.array([[1], [2], [3], [4]])}, jnp.array([1]), 2)["keys"].tolist()
    [[3], [4]]
    """
    each = (rows[:, None] * beams + jnp.arange(beams)).reshape(-1)
    if not isinstance(cache, WithSource):
        return take_beams(cache, each)
    return WithSource(
        take_beams(cache.moving, each), take_beams(cache.own, rows), take_beams(cache.source, rows)
    )


def take_beams(cache: Cache, beams: Array) -> Cache:
    """Go on with other rows of tokens, of the same rows of the batch.

    Args:
      cache: of R rows of tokens.
      beams: (N,) int32 below R, the row of tokens that each is to follow.

    >>> take_beams({"keys": jnp.array([[1], [2]])}, jnp.array([1, 1]))["keys"].tolist()
    [[2], [2]]
    """
    if isinstance(cache, WithSource):
        return cache._replace(moving=take_beams(cache.moving, beams))
    return jax.tree.map(lambda leaf: leaf.at[beams].get(mode="promise_in_bounds"), cache)


def own_prompt(batch: Batch) -> tuple[Array, Array]:
    """Return what a decoder alone continues: the batch's tokens, and which of them count."""
    ids = jnp.asarray(batch["input_ids"])
    mask = batch.get("attention_mask")
    return ids, jnp.ones_like(ids) if mask is None else jnp.asarray(mask)


class Decoder(NamedTuple):
    """A model that gives one token after the other, as two pure functions."""

    start: Callable[[PyTree, Batch, int], tuple[Array, Cache]]
    """`(params, batch, new_tokens) -> (logits, cache)`: read the prompt (or the source and the
    start token) and make room for so many further tokens; logits (B, V) float32 of the first."""
    step: Callable[[PyTree, Array, Cache], tuple[Array, Cache]]
    """`(params, tokens (B,) int32, cache) -> (logits, cache)`: take one token in each row; logits
    (B, V) float32 of the next."""
    prompt: Callable[[Batch], tuple[Array, Array]] = own_prompt
    """`batch -> (tokens (B, P), mask (B, P))`: what the new tokens come after, for rules that look
    at all of a text; the start token of an encoder-decoder."""
    read_once: str | None = None
    """The path of the params that `start` alone reads, such as those of an encoder."""
