"""Bidirectional self-attention over padded or packed rows.

Shapes are in the names: B rows, T tokens of a row, N = B*T tokens, H heads, K width of a head,
D = H*K. Hidden states are `x_ND` throughout the models: XLA on CPU is about three times slower at
the weight gradient of a Dense layer whose input has three axes than at that of a matrix.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def attention_bias(attention_mask: Array, segment_ids: Array | None = None) -> Array:
    """Return what is added to the attention scores: 0 where a token may look, else very negative.

    A token looks at the tokens of its row that are no padding and, in a packed row, of its own
    segment. The negative number is finite, so that a row of padding only gives no NaN.

    Args:
      attention_mask: (B, T), nonzero for tokens and 0 for padding.
      segment_ids: (B, T) integers, equal for tokens of one example, or None for one example a row.

    Returns:
      (B, 1 or T, T) float32, over (row, looking token, token looked at).

    >>> attention_bias(jnp.array([[1, 1, 0]])).shape
    (1, 1, 3)
    """
    allowed = attention_mask[:, None, :] != 0
    if segment_ids is not None:
        allowed &= segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.where(allowed, 0.0, jnp.finfo(jnp.float32).min).astype(jnp.float32)


def split_heads(x_ND: Array, rows: int, heads: int) -> Array:
    """Return (B*H, T, K) from (B*T, D): one matrix for each head of each row."""
    x_BTHK = x_ND.reshape(rows, -1, heads, x_ND.shape[-1] // heads)
    x_BHTK = x_BTHK.transpose(0, 2, 1, 3)
    return x_BHTK.reshape(rows * heads, *x_BHTK.shape[2:])


def merge_heads(x_GTK: Array, rows: int, heads: int) -> Array:
    """Return (B*T, D) from (B*H, T, K): the inverse of `split_heads`."""
    x_BHTK = x_GTK.reshape(rows, heads, *x_GTK.shape[1:])
    x_BTHK = x_BHTK.transpose(0, 2, 1, 3)
    return x_BTHK.reshape(-1, heads * x_GTK.shape[-1])


def attend(q_ND, k_ND, v_ND, bias_BxT, heads, dropout):
    rows = bias_BxT.shape[0]
    scale = (q_ND.shape[-1] // heads) ** -0.5
    q_GTK, k_GSK, v_GSK = (split_heads(x, rows, heads) for x in (q_ND * scale, k_ND, v_ND))
    s_GTS = jax.lax.dot_general(
        q_GTK, k_GSK, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )
    s_BHTS = s_GTS.reshape(rows, heads, *s_GTS.shape[1:]) + bias_BxT[:, None]
    s_GTS = s_BHTS.reshape(s_GTS.shape)
    highest = jax.lax.stop_gradient(s_GTS.max(-1, keepdims=True))
    e_GTS = jnp.exp(s_GTS - highest)
    total_GT1 = e_GTS.sum(-1, keepdims=True)
    o_GTK = jax.lax.dot_general(
        dropout(e_GTS.astype(v_ND.dtype)),
        v_GSK,
        (((2,), (1,)), ((0,), (0,))),
        preferred_element_type=jnp.float32,
    )
    o_NHK = merge_heads(o_GTK, rows, heads).reshape(q_ND.shape[0], heads, -1)
    total_NH1 = total_GT1.reshape(rows, heads, -1).transpose(0, 2, 1).reshape(-1, heads, 1)
    return quotient(o_NHK, total_NH1).reshape(q_ND.shape).astype(v_ND.dtype)


@jax.custom_jvp
def quotient(a, b):
    return a * (1 / b)


@quotient.defjvp
def _(primals, tangents):
    (a, b), (ta, tb) = primals, tangents
    y = quotient(a, b)
    return y, (ta - y * tb) * (1 / b)
