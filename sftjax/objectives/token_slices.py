"""Losses of tokens and their gradients in one pass over slices of the tokens.

A slice has all its logits for a moment, so that what they are and how the loss bends with them is
known at once: three products of tokens and words (logits, and a gradient to either side), where
slices of the vocabulary, whose sums end with the last slice, take a fourth to have the logits back.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.objectives.word_slices import Inputs, Setting, TokenStats

Each = Callable[[TokenStats], Array]
"""What a token's loss (N,) is of its numbers, a token by itself."""
HELD = 2**25
"""Numbers of a product that is added to a larger array."""


def losses_and_gradients(
    each: Each, setting: Setting, inputs: Inputs, labels: Array, weights: Array
) -> tuple[Array, TokenStats, Array, Array]:
    """Return the losses (N,), the numbers, and the gradients of the weighted sum of the losses.

    Args:
      each: of numbers with a teacher's divergence if there is a teacher.
      setting: `chunk` is how many tokens a slice has; not over devices.
      inputs: (N, D) and (V, D).
      labels: (N,).
      weights: (N,) float32.

    Returns:
      `losses, stats, d_hidden (N, D), d_words (V, D)`.
    """
    hidden, words, _ = inputs
    tokens = len(hidden)
    size = min(setting.chunk, tokens)

    def body(index: Array, carry: tuple[Array, TokenStats, Array, Array]):
        losses, stats, d_hidden, d_words = carry
        # The last slice ends with the tokens, and so may overlap the one before.
        start = jnp.minimum(index * size, tokens - size)
        fresh = start + jnp.arange(size) >= index * size
        cut = [jax.lax.dynamic_slice_in_dim(one, start, size) for one in (hidden, labels, weights)]
        teacher = inputs.teacher
        if teacher:
            teacher = (jax.lax.dynamic_slice_in_dim(teacher[0], start, size), teacher[1])
        found, own, slopes = _slice(each, setting, Inputs(cut[0], words, teacher), *cut[1:])
        back = jnp.einsum(
            "nv,vd->nd", slopes, words.astype(slopes.dtype), preferred_element_type=jnp.float32
        )
        kept = jnp.where(fresh[:, None], cut[0], 0)

        def put(whole: Array, part: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, 0)

        return (
            put(losses, found),
            jax.tree.map(put, stats, own),
            put(d_hidden, back),
            _add_product(d_words, slopes, kept),
        )

    none = jnp.zeros(tokens, jnp.float32)
    first = (
        none,
        TokenStats(none, none, none, none, none),
        jnp.zeros_like(hidden),
        jnp.zeros(words.shape, jnp.float32),
    )
    losses, stats, d_hidden, d_words = jax.lax.fori_loop(0, -(-tokens // size), body, first)
    return losses, stats, d_hidden, d_words.astype(words.dtype)


def _slice(
    each: Each, setting: Setting, inputs: Inputs, labels: Array, weights: Array
) -> tuple[Array, TokenStats, Array]:
    """Return the losses and numbers of a slice, and (n, V) the weighted slopes by its products."""
    hidden, words, teacher = inputs

    def bent(z: Array) -> Array:
        return z if setting.softcap is None else setting.softcap * jnp.tanh(z / setting.softcap)

    def product(h: Array, w: Array) -> Array:
        return jnp.einsum("nd,vd->nv", h, w.astype(h.dtype), preferred_element_type=jnp.float32)

    by_product = product(hidden, words)
    z = bent(by_product)
    log_sum = jax.nn.logsumexp(z, -1)
    chosen = jnp.take_along_axis(z, labels[:, None], 1)[:, 0]
    kl = jnp.zeros(len(labels), jnp.float32)
    log_p0 = None
    if teacher:
        log_p0 = jax.nn.log_softmax(bent(product(*teacher)))
        kl = (jnp.exp(log_p0) * (log_p0 - z)).sum(-1) + log_sum
    stats = TokenStats(log_sum, chosen, z.sum(-1) * setting.scale, z.max(-1), kl)
    losses, pull = jax.vjp(each, stats)
    by = pull(weights)[0]
    by_sum = by.log_sum + by.kl if teacher else by.log_sum
    slopes = by_sum[:, None] * jnp.exp(z - log_sum[:, None])
    slopes += by.chosen[:, None] * (labels[:, None] == jnp.arange(z.shape[1]))
    slopes += by.mean[:, None] * setting.scale
    if log_p0 is not None:
        slopes -= by.kl[:, None] * jnp.exp(log_p0)
    if setting.softcap is not None:
        slopes *= 1.0 - jnp.square(z / setting.softcap)
    return losses, stats, slopes.astype(hidden.dtype)


def _add_product(total: Array, slopes: Array, hidden: Array) -> Array:
    """Add (n, V) by (n, D) to (V, D), some words at a time: a product is never held whole."""
    words, width = total.shape
    size = min(words, max(1, HELD // width))

    def body(index: Array, total: Array) -> Array:
        start = jnp.minimum(index * size, words - size)
        own = start + jnp.arange(size) >= index * size
        part = jax.lax.dynamic_slice_in_dim(slopes, start, size, axis=1)
        more = jnp.einsum("nv,nd->vd", part, hidden, preferred_element_type=jnp.float32)
        before = jax.lax.dynamic_slice_in_dim(total, start, size)
        added = before + jnp.where(own[:, None], more, 0.0)
        return jax.lax.dynamic_update_slice_in_dim(total, added, start, 0)

    return jax.lax.fori_loop(0, -(-words // size), body, total)
