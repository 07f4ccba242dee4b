"""Bidirectional self-attention over padded or packed rows.

Shapes are in the names: B rows, T tokens of a row (S where they are looked at), N = B*T tokens,
H heads, G = B*H, K the width of a head, D = H*K. Hidden states are `x_ND` throughout the models:
XLA on CPU is about three times slower at the weight gradient of a Dense layer whose input has three
axes than at that of a matrix.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def attention_bias(attention_mask: Array, segment_ids: Array | None = None) -> Array:
    """Return what is added to the attention scores: 0 where a token may look, else very negative.

    A token looks at the tokens of its row that are no padding and, in a packed row, of its own
    segment. The negative number is finite, so that a row of nothing but padding gives no NaN.

    Args:
      attention_mask: (B, T), nonzero for tokens and 0 for padding.
      segment_ids: (B, T) integers, equal for the tokens of one example; None for an example a row.

    Returns:
      (B, 1 or T, T) float32, over (row, looking token, token looked at).

    >>> attention_bias(jnp.array([[1, 1, 0]])).tolist()
    [[[0.0, 0.0, -3.4...e+38]]]
    """
    allowed = attention_mask[:, None, :] != 0
    if segment_ids is not None:
        allowed &= segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.where(allowed, 0.0, jnp.finfo(jnp.float32).min).astype(jnp.float32)


def attend(
    q_ND: Array,
    k_ND: Array,
    v_ND: Array,
    bias_BTS: Array,
    heads: int,
    dropout: Callable[[Array], Array] = lambda weights: weights,
    scale: float | None = None,
) -> Array:
    """Return `softmax(scale * q k' + bias) v` of each head, side by side.

    The softmax is divided by its total after the product with v, where it is T/K times smaller; a
    backward pass then keeps one (G, T, S) array instead of three.

    Args:
      q_ND, k_ND, v_ND: (B*T, D), (B*S, D) and (B*S, D), queries, keys and values.
      bias_BTS: (B, 1 or T, S) float32, from `attention_bias`; or (B, H, 1 or T, S), one for each
        head.
      heads: H, a divisor of D.
      dropout: applied to the attention weights, (B*H, T, S).
      scale: of the scores; `K ** -0.5` if None.

    Returns:
      (B*T, D) in v's dtype; scores and softmax are float32.

    >>> one = jnp.ones((2, 4))
    >>> attend(one, one, one, attention_bias(jnp.ones((1, 2))), heads=2).shape
    (2, 4)
    """
    factor = (q_ND.shape[-1] // heads) ** -0.5 if scale is None else scale
    e_GTS, total_GT = _looked(q_ND, k_ND, bias_BTS, heads, factor)
    return _gathered(dropout(e_GTS.astype(v_ND.dtype)), v_ND, total_GT, heads)


@partial(jax.jit, static_argnums=(3, 4))  # blocks that look alike are traced once
def _looked(
    q_ND: Array, k_ND: Array, bias_BTS: Array, heads: int, factor: float
) -> tuple[Array, Array]:
    """Return the exponentials of the scores, and their totals over S."""
    rows = bias_BTS.shape[0]
    bias_BHTS = bias_BTS if bias_BTS.ndim == 4 else bias_BTS[:, None]
    q_GTK, k_GSK = (_split_heads(x, rows, heads) for x in (q_ND * factor, k_ND))
    s_GTS = batched_dot(q_GTK, k_GSK, 2, 2)
    s_GTS = (s_GTS.reshape(rows, heads, *s_GTS.shape[1:]) + bias_BHTS).reshape(s_GTS.shape)
    e_GTS = jnp.exp(s_GTS - jax.lax.stop_gradient(s_GTS.max(-1, keepdims=True)))
    return e_GTS, e_GTS.sum(-1)


@partial(jax.jit, static_argnums=3)
def _gathered(e_GTS: Array, v_ND: Array, total_GT: Array, heads: int) -> Array:
    """Return what exponentials gather of the values, divided by their totals."""
    rows = total_GT.shape[0] // heads
    o_GTK = batched_dot(e_GTS, _split_heads(v_ND, rows, heads), 2, 1)
    total_NH = total_GT.reshape(rows, heads, -1).transpose(0, 2, 1).reshape(-1, heads)
    total_ND = jnp.repeat(total_NH, v_ND.shape[-1] // heads, axis=1)
    return _quotient(_merge_heads(o_GTK, rows, heads), total_ND).astype(v_ND.dtype)


def attention_weights(q_ND: Array, k_ND: Array, bias_BTS: Array, heads: int) -> Array:
    """Return the softmax that `attend` weighs values by, (B, H, T, S) float32; to look at.

    >>> one = jnp.ones((2, 4))
    >>> attention_weights(one, one, attention_bias(jnp.ones((1, 2))), heads=2)[0, 0].tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    rows, factor = bias_BTS.shape[0], (q_ND.shape[-1] // heads) ** -0.5
    q_GTK, k_GSK = (_split_heads(x, rows, heads) for x in (q_ND * factor, k_ND))
    s_GTS = batched_dot(q_GTK, k_GSK, 2, 2).astype(jnp.float32)
    return jax.nn.softmax(s_GTS.reshape(rows, heads, *s_GTS.shape[1:]) + bias_BTS[:, None])


def _split_heads(x_ND: Array, rows: int, heads: int) -> Array:
    """Return (B*H, T, K): one matrix for each head of each row."""
    x_BTHK = x_ND.reshape(rows, -1, heads, x_ND.shape[-1] // heads)
    x_BHTK = x_BTHK.transpose(0, 2, 1, 3)
    return x_BHTK.reshape(rows * heads, *x_BHTK.shape[2:])


def _merge_heads(x_GTK: Array, rows: int, heads: int) -> Array:
    """Return (B*T, D), the inverse of `_split_heads`."""
    x_BHTK = x_GTK.reshape(rows, heads, *x_GTK.shape[1:])
    return x_BHTK.transpose(0, 2, 1, 3).reshape(-1, heads * x_GTK.shape[-1])


def batched_dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Return the products of two stacks of matrices over an axis of each, in float32."""
    dimensions = (((axis_a,), (axis_b,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


@jax.custom_jvp
def _quotient(a: Array, b: Array) -> Array:
    """Return `a / b`; its derivative reads the result, which is kept anyway, and not `a`."""
    return a * (1 / b)


@_quotient.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    a, b = primals
    da, db = tangents
    y = _quotient(a, b)
    return y, (da - y * db) * (1 / b)
