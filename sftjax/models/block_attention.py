r"""Causal attention in the memory of one block, which skips blocks that no token may see.

The softmax is gathered over blocks of keys with a running maximum, and its blocks are computed
again going backward (FlashAttention), as plain products. Which blocks of keys a block of queries
needs is read from the segments while it runs: in packed rows of short examples that is one or two
of them, and the cost of a row grows with its length, not with its square.

Shapes are in the names, as in `causal_attention`; R = H/J queries share a key, P = B*J, C tokens
are a block, and n counts blocks.

References:
  Dao et al., *FlashAttention*, 2022, arXiv:2205.14135
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import target_devices
from sftjax.models.attention import batched_dot

BLOCK = 64
"""Tokens of a block. On a CPU, in rows of 1,024, blocks of 64 took a fifth of the time of plain
products for examples of 100 tokens and 0.63 of it for one long example; blocks of 128 to 512 took
longer for the former."""

NEVER = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The score of what may not be seen; finite, so that nothing becomes NaN."""


class Rule(NamedTuple):
    """What is asked of one call, besides arrays."""

    scale: float
    window: int | None
    softcap: float | None
    block: int


class Places(NamedTuple):
    """Where tokens stand."""

    segments_nBC: Array
    first_n: Array
    """The first block of keys that a block of queries may look at, in any row."""


Saved = tuple[Array, Array, Array, Places, Array, Array]
"""For the backward pass: q, k, v, places, what was gathered, and the log of the sums."""


def attend_by_blocks(
    q_BTHK: Array,
    k_BTJK: Array,
    v_BTJK: Array,
    *,
    scale: float,
    segment_ids: Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    block: int = BLOCK,
) -> Array:
    """Return what each token gathers from the tokens up to it; see `causal_attention.attend`.

    It has a gradient going backward (`jax.grad`), and none going forward (`jax.jvp`).

    Args:
      q_BTHK: (B, T, H, K).
      k_BTJK, v_BTJK: (B, T, J, K), J a divisor of H.
      scale: what scores are multiplied by.
      segment_ids: (B, T); the tokens of a segment lie together.
      window: how many tokens back one can look, itself included.
      softcap: of the scores.
      block: C.

    Returns:
      (B, T, H, K) in v's dtype; scores and sums are float32.

    >>> one = jnp.ones((1, 3, 2, 4))
    >>> attend_by_blocks(one, one, one, scale=0.5, block=2).shape
    (1, 3, 2, 4)
    """
    rule = Rule(scale, window, softcap, block)
    rows, length = q_BTHK.shape[:2]
    if segment_ids is None:
        return _by_blocks(rule, q_BTHK, k_BTJK, v_BTJK, jnp.ones((rows, length), jnp.int32))
    # Row by row, so that one long example does not take the savings of the others. (On a mesh rows
    # lie on many devices.)
    alone = rows > 1 and len(target_devices()) == 1
    run = _row_by_row if alone else _by_blocks
    return run(rule, q_BTHK, k_BTJK, v_BTJK, jnp.asarray(segment_ids))


@functools.partial(jax.jit, static_argnums=0)  # blocks that look alike are traced once
def _row_by_row(
    rule: Rule, q_BTHK: Array, k_BTJK: Array, v_BTJK: Array, segments_BT: Array
) -> Array:
    each = tuple(x[:, None] for x in (q_BTHK, k_BTJK, v_BTJK, segments_BT))
    return jax.lax.map(lambda row: _by_blocks(rule, *row)[0], each)


@functools.partial(jax.jit, static_argnums=0)
def _by_blocks(
    rule: Rule, q_BTHK: Array, k_BTJK: Array, v_BTJK: Array, segments_BT: Array
) -> Array:
    rows, length, heads, width = q_BTHK.shape
    groups, block = k_BTJK.shape[2], rule.block
    missing = -length % block
    # Padding is looked at by none: it stands behind all tokens.
    q, k, v = (_padded(x, missing) for x in (q_BTHK * rule.scale, k_BTJK, v_BTJK))
    places = _places(_padded(segments_BT, missing), block, rule.window)
    q_nPQK = _blocks(q.reshape(rows, -1, groups, heads // groups, width), block)
    k_nPCK, v_nPCK = (_blocks(x[:, :, :, None], block) for x in (k, v))
    o_nPQK: Array = _attend(rule, q_nPQK, k_nPCK, v_nPCK, places)
    o_nBJRCK = o_nPQK.reshape(-1, rows, groups, heads // groups, block, width)
    o_BTHK = o_nBJRCK.transpose(1, 0, 4, 2, 3, 5).reshape(rows, -1, heads, width)
    return o_BTHK[:, :length]


def _padded(x: Array, missing: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2))) if missing else x


def _blocks(x_BTJRK: Array, block: int) -> Array:
    """Return (n, B*J, R*C, K): the queries that share a key lie below each other."""
    rows, _, groups, shared, width = x_BTJRK.shape
    x_BnCJRK = x_BTJRK.reshape(rows, -1, block, groups, shared, width)
    x_nBJRCK = x_BnCJRK.transpose(1, 0, 3, 4, 2, 5)
    return x_nBJRCK.reshape(-1, rows * groups, shared * block, width)


def _places(segments_BT: Array, block: int, window: int | None) -> Places:
    rows, length = segments_BT.shape
    place_T = jnp.arange(length)
    before_BT = jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    begins_BT = jax.lax.cummax(jnp.where(segments_BT != before_BT, place_T, 0), axis=1)
    first_n = begins_BT[:, ::block].min(0)
    if window is not None:
        first_n = jnp.maximum(first_n, place_T[::block] - window + 1)
    segments_nBC = segments_BT.reshape(rows, -1, block).transpose(1, 0, 2)
    return Places(segments_nBC, first_n // block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: Rule, q_nPQK: Array, k_nPCK: Array, v_nPCK: Array, places: Places) -> Array:
    return _forward(rule, q_nPQK, k_nPCK, v_nPCK, places)[0]


def _forward(
    rule: Rule, q_nPQK: Array, k_nPCK: Array, v_nPCK: Array, places: Places
) -> tuple[Array, Array]:
    """Return what is gathered (n, P, Q, K), and the log of the sum of exponentials (n, P, Q)."""

    def one(at: Array) -> tuple[Array, Array]:
        q_PQK = q_nPQK[at]

        def gather(back: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            top_PQ, total_PQ, sum_PQK = carry
            s_PQC, _ = _scores(rule, q_PQK, k_nPCK, places, at, at - back)
            higher_PQ = jnp.maximum(top_PQ, s_PQC.max(-1))
            smaller_PQ = jnp.exp(top_PQ - higher_PQ)
            e_PQC = jnp.exp(s_PQC - higher_PQ[..., None])
            own_PQK = batched_dot(e_PQC.astype(v_nPCK.dtype), v_nPCK[at - back], 2, 1)
            return (
                higher_PQ,
                total_PQ * smaller_PQ + e_PQC.sum(-1),
                sum_PQK * smaller_PQ[..., None] + own_PQK,
            )

        # From the token's own block, in which it sees itself at least, backward.
        none_PQ = jnp.zeros(q_PQK.shape[:2], jnp.float32)
        start = (none_PQ + NEVER, none_PQ, jnp.zeros(q_PQK.shape, jnp.float32))
        count = at - places.first_n[at] + 1
        top_PQ, total_PQ, sum_PQK = jax.lax.fori_loop(0, count, gather, start)
        return (sum_PQK / total_PQ[..., None]).astype(v_nPCK.dtype), top_PQ + jnp.log(total_PQ)

    return jax.lax.map(one, jnp.arange(len(q_nPQK)))


def _attend_fwd(
    rule: Rule, q_nPQK: Array, k_nPCK: Array, v_nPCK: Array, places: Places
) -> tuple[Array, Saved]:
    o_nPQK, log_sum_nPQ = _forward(rule, q_nPQK, k_nPCK, v_nPCK, places)
    return o_nPQK, (q_nPQK, k_nPCK, v_nPCK, places, o_nPQK, log_sum_nPQ)


def _attend_bwd(rule: Rule, saved: Saved, d_o_nPQK: Array) -> tuple[Array, Array, Array, None]:
    q_nPQK, k_nPCK, v_nPCK, places, o_nPQK, log_sum_nPQ = saved
    product_nPQ = (d_o_nPQK.astype(jnp.float32) * o_nPQK.astype(jnp.float32)).sum(-1)

    def one(carry: tuple[Array, Array], at: Array) -> tuple[tuple[Array, Array], Array]:
        q_PQK, d_o_PQK = q_nPQK[at], d_o_nPQK[at]

        def spread(back: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            d_q_PQK, d_k_nPCK, d_v_nPCK = carry
            to = at - back
            s_PQC, slope = _scores(rule, q_PQK, k_nPCK, places, at, to)
            w_PQC = jnp.exp(s_PQC - log_sum_nPQ[at][..., None])
            d_w_PQC = batched_dot(d_o_PQK, v_nPCK[to], 2, 2)
            d_s_PQC = w_PQC * (d_w_PQC - product_nPQ[at][..., None]) * slope
            d_s_PQC = d_s_PQC.astype(q_PQK.dtype)
            d_v_nPCK = d_v_nPCK.at[to].add(batched_dot(w_PQC.astype(d_o_PQK.dtype), d_o_PQK, 1, 1))
            d_k_nPCK = d_k_nPCK.at[to].add(batched_dot(d_s_PQC, q_PQK, 1, 1))
            return d_q_PQK + batched_dot(d_s_PQC, k_nPCK[to], 2, 1), d_k_nPCK, d_v_nPCK

        start = (jnp.zeros(q_PQK.shape, jnp.float32), *carry)
        count = at - places.first_n[at] + 1
        d_q_PQK, d_k_nPCK, d_v_nPCK = jax.lax.fori_loop(0, count, spread, start)
        return (d_k_nPCK, d_v_nPCK), d_q_PQK.astype(q_nPQK.dtype)

    zeros = (jnp.zeros(k_nPCK.shape, jnp.float32), jnp.zeros(v_nPCK.shape, jnp.float32))
    (d_k, d_v), d_q = jax.lax.scan(one, zeros, jnp.arange(len(q_nPQK)))
    return d_q, d_k.astype(k_nPCK.dtype), d_v.astype(v_nPCK.dtype), None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _scores(
    rule: Rule, q_PQK: Array, k_nPCK: Array, places: Places, at: Array, to: Array
) -> tuple[Array, Array | float]:
    """Return the scores (P, Q, C) of a block of queries with one of keys, and the cap's slope."""
    s_PQC, slope = batched_dot(q_PQK, k_nPCK[to], 2, 2), 1.0
    if rule.softcap is not None:
        bent = jnp.tanh(s_PQC / rule.softcap)
        s_PQC, slope = rule.softcap * bent, 1.0 - jnp.square(bent)
    seen_BCC = places.segments_nBC[at][:, :, None] == places.segments_nBC[to][:, None, :]
    block = seen_BCC.shape[-1]
    back_CC = (at - to) * block + jnp.arange(block)[:, None] - jnp.arange(block)[None]
    seen_BCC &= back_CC >= 0
    if rule.window is not None:
        seen_BCC &= back_CC < rule.window
    s_BJRCC = s_PQC.reshape(len(seen_BCC), -1, s_PQC.shape[1] // block, block, block)
    # (B, J, R, C, C): what is seen is the same for all heads of a row.
    s_BJRCC = jnp.where(seen_BCC[:, None, None], s_BJRCC, NEVER)
    return s_BJRCC.reshape(s_PQC.shape), slope
