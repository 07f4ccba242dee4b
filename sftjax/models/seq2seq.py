"""What encoder-decoders share: their inputs, who looks at whom, and attention with a memory.

Shapes are named as in `attention`, and U tokens of a target row, R rows of tokens in a step of
generation (B times the J beams of each), N the room for new tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.models.attention import attend, attention_bias

LOWEST = float(jnp.finfo(jnp.float32).min)
"""Added to a score that does not count; finite, so that a row of padding alone gives no NaN."""


class Pair(NamedTuple):
    """One batch of sources and targets as every family's module takes it."""

    input_ids: Array
    """(B, T) int32."""
    decoder_input_ids: Array
    """(B, U) int32, the targets shifted right."""
    bias: Array
    """(B, 1 or T, T) float32: source looks at source."""
    decoder_bias: Array
    """(B, U, U) float32: target looks at itself so far."""
    cross_bias: Array
    """(B, 1 or U, T) float32: target looks at source."""
    positions: Array
    """(B or 1, T) int32, 0, 1, ... in each row or segment."""
    decoder_positions: Array
    """(B or 1, U) int32."""


class KeysValues(NamedTuple):
    """What one attention remembers of the tokens it may look at.

    (B, H, S, K) of a source. Of the tokens so far (B, H, J, N, K): the J beams of a row each have a
    place of their own for N tokens, and S is J*N.
    """

    k_BHSK: Array
    v_BHSK: Array


class Kept(NamedTuple):
    """What one decoder block remembers."""

    own: KeysValues
    """Of the tokens so far, in a room of N."""
    source: KeysValues | None
    """Of the source; None before it was read."""


class Now(NamedTuple):
    """One step of generation."""

    place: Array
    """() int32: the place of this token, counted from 0."""
    places: Array
    """(J*N,) int32: the places of the tokens remembered, 0 to N-1 for each beam."""
    own_bias: Array
    """(B, 1, J, J*N) float32: 0 where a token so far is of the looking beam's own past."""
    source_bias: Array
    """(B, 1, 1, S) float32: 0 where the source has a token."""


def causal_bias(attention_mask: Array, segment_ids: Array | None = None) -> Array:
    """Return what is added to the scores of targets: 0 for the token itself and those before it.

    Args:
      attention_mask: (B, U), nonzero for tokens and 0 for padding.
      segment_ids: (B, U) integers, equal for the tokens of one example; None for an example a row.

    Returns:
      (B, U, U) float32, over (row, looking token, token looked at).

    >>> (causal_bias(jnp.array([[1, 1, 0]])) == 0).astype(int).tolist()
    [[[1, 0, 0], [1, 1, 0], [1, 1, 0]]]
    """
    order = jnp.arange(attention_mask.shape[1])
    earlier = order[None, :, None] >= order[None, None, :]
    return jnp.where(earlier, attention_bias(attention_mask, segment_ids), LOWEST)


def cross_bias(
    attention_mask: Array, segment_ids: Array | None, decoder_segment_ids: Array | None
) -> Array:
    """Return what is added to the scores of targets that look at sources.

    Args:
      attention_mask: (B, T) of the sources.
      segment_ids: (B, T) of the sources, or None.
      decoder_segment_ids: (B, U) of the targets, or None; given exactly if `segment_ids` is.

    Returns:
      (B, 1 or U, T) float32.

    >>> one, two = jnp.array([[1, 1, 2]]), jnp.array([[2, 1]])
    >>> (cross_bias(jnp.ones((1, 3)), one, two) == 0).astype(int).tolist()
    [[[0, 0, 1], [1, 1, 0]]]
    """
    allowed = attention_mask[:, None, :] != 0
    if segment_ids is not None and decoder_segment_ids is not None:
        allowed &= decoder_segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.where(allowed, 0.0, LOWEST).astype(jnp.float32)


def shift_right(labels: Array, decoder_start_token_id: int, pad_token_id: int) -> Array:
    """Return what the decoder reads: the start token, then all labels but the last.

    Args:
      labels: (B, U) int32; negative ones (-100) do not count and are read as padding.

    >>> shift_right(jnp.array([[5, 6, 1], [7, 1, -100]]), 0, 0).tolist()
    [[0, 5, 6], [0, 7, 1]]
    """
    shifted = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=decoder_start_token_id)
    return jnp.where(shifted < 0, pad_token_id, shifted)


def heads_apart(x_ND: Array, rows: int, heads: int) -> Array:
    """Return (B, H, S, K) of (B*S, H*K)."""
    return x_ND.reshape(rows, -1, heads, x_ND.shape[-1] // heads).transpose(0, 2, 1, 3)


def empty(
    blocks: int, shape: tuple[int, int, int, int], dtype: jax.typing.DTypeLike
) -> tuple[Kept, ...]:
    """Return the memory of blocks that have seen nothing, one beam's; `shape` is (B, H, N, K)."""
    rows, heads, tokens, width = shape
    one = jnp.zeros((rows, heads, 1, tokens, width), dtype)
    return (Kept(KeysValues(one, one), None),) * blocks


def remember(kept: KeysValues, now: KeysValues, index: Array) -> KeysValues:
    """Put the keys and values of one token in each beam, (B*J, H, 1, K), in their place."""

    def put(room: Array, one: Array) -> Array:
        rows, heads, beams, _, width = room.shape
        each = one.astype(room.dtype).reshape(rows, beams, heads, 1, width).swapaxes(1, 2)
        return jax.lax.dynamic_update_slice(room, each, (0, 0, 0, index, 0))

    return KeysValues(*map(put, kept, now))


@partial(jax.jit, static_argnums=(3, 4))  # blocks that look alike are traced once
def look(q_RD: Array, kept: KeysValues, bias: Array, heads: int, scale: float | None) -> Array:
    """Return what one token in each row gathers of what is remembered.

    Args:
      q_RD: (R, D), queries; R a multiple of the remembered rows B, neighbours sharing one.
      kept: of (B, H, S, K), or S in two axes.
      bias: (B or 1, H or 1, R/B or 1, S) float32.
      heads: H.
      scale: of the scores; `K ** -0.5` if None.

    Returns:
      (R, D).

    >>> kept = KeysValues(jnp.ones((1, 2, 3, 2)), jnp.ones((1, 2, 3, 2)))
    >>> look(jnp.ones((4, 4)), kept, jnp.zeros((1, 1, 1, 3)), 2, None).shape
    (4, 4)
    """
    rows, width = len(kept.k_BHSK), q_RD.shape[-1] // heads
    k_BHSK, v_BHSK = (x.reshape(rows, heads, -1, width) for x in kept)
    q_BHGK = q_RD.reshape(rows, -1, heads, width).transpose(0, 2, 1, 3)
    factor = width**-0.5 if scale is None else scale
    s_BHGS = jnp.einsum(
        "bhgk,bhsk->bhgs", q_BHGK * factor, k_BHSK, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(s_BHGS + bias, axis=-1).astype(v_BHSK.dtype)
    o_BHGK = jnp.einsum(
        "bhgs,bhsk->bhgk", weights, v_BHSK, preferred_element_type=jnp.float32
    ).astype(v_BHSK.dtype)
    return o_BHGK.transpose(0, 2, 1, 3).reshape(q_RD.shape)


def attention(
    q: Array,
    source: Callable[[], tuple[Array, Array]] | None,
    bias: Array,
    heads: int,
    dropout: Callable[[Array], Array],
    scale: float | None,
    kept: KeysValues | None,
    index: Array | None,
) -> tuple[Array, KeysValues | None]:
    """Attend in whole rows, or one token at a time with a memory.

    Args:
      q: (B*T, D) queries, or (R, D) of one token in each row.
      source: gives keys and values, (B*S, D) each, of the tokens looked at; None in a step whose
        memory is complete.
      bias: as `attend` takes it, or `look`.
      heads: H.
      dropout: of the attention weights; not drawn in a step.
      scale: of the scores; `K ** -0.5` if None.
      kept: the memory in a step; None in the first one, where the source is read.
      index: () int32, where the keys and values of this token go in the memory; None in whole rows.

    Returns:
      What was gathered, of q's shape, and the memory.
    """
    if index is None:
        assert source is not None
        return attend(q, *source(), bias, heads, dropout, scale), None
    if source is not None:
        rows = bias.shape[0] if kept is None else q.shape[0]
        read = KeysValues(*(heads_apart(x, rows, heads) for x in source()))
        kept = read if kept is None else remember(kept, read, index)
    assert kept is not None
    return look(q, kept, bias, heads, scale), kept
