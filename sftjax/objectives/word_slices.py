"""The passes over a vocabulary's slices that `chunked` is made of, on one device or on many."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec


class TokenStats(NamedTuple):
    """What losses need of the logits of N tokens; (N,) float32 each, differentiable but `top`."""

    log_sum: Array
    """Log of the sum of their exponentials."""
    chosen: Array
    """The label's logit."""
    mean: Array
    """Over the vocabulary."""
    top: Array
    """The largest; the label is the model's choice where `chosen` equals it."""
    kl: Array
    r"""$\mathrm{KL}(p_0 \| p)$ from the teacher's distribution; 0 without a teacher."""

    @property
    def nll(self) -> Array:
        """(N,) the negative log-likelihood of the labels."""
        return self.log_sum - self.chosen


class VocabMesh(NamedTuple):
    """Where a vocabulary lies that is cut over devices."""

    mesh: Mesh
    vocab: str
    """The mesh axis that the rows of `words` are cut over."""
    tokens: str | None = None
    """The mesh axis that the tokens are cut over."""


class Setting(NamedTuple):
    """What does not change from one call to the next."""

    chunk: int
    """Words in a slice of the vocabulary, or tokens in one of the tokens."""
    softcap: float | None
    scale: float
    sharded: VocabMesh | None


class Inputs(NamedTuple):
    """What products are taken of."""

    hidden: Any
    words: Any
    teacher: Any
    """`(hidden, words)` or `()`."""


class Drawn(NamedTuple):
    """What the gradient of still words needs."""

    words_mean: Any
    """(N, D) float32: the mean of the words by each token's probabilities."""
    words: Any
    labels: Any
    like: Any
    """Empty, of the type of `hidden`."""


def _slice(setting: Setting, hidden: Array, words: Array, start: Array, size: int):
    """Return a slice of the words, of their logits (N, size), and the slope of the cap."""
    part = jax.lax.dynamic_slice_in_dim(words, start, size).astype(hidden.dtype)
    z = jnp.einsum("nd,vd->nv", hidden, part, preferred_element_type=jnp.float32)
    if setting.softcap is None:
        return part, z, 1.0
    bent = jnp.tanh(z / setting.softcap)
    return part, setting.softcap * bent, 1.0 - jnp.square(bent)


def _slices(setting: Setting, vocab: int) -> tuple[int, int]:
    size = min(setting.chunk, vocab)
    return size, -(-vocab // size)


def _place(index: Array, size: int, vocab: int) -> tuple[Array, Array]:
    """Return where slice `index` starts, and which of its words the slice before does not hold.

    The last slice ends with the vocabulary, and so may overlap the one before.
    """
    start = jnp.minimum(index * size, vocab - size)
    return start, start + jnp.arange(size) >= index * size


def forward(
    draw: bool, setting: Setting, inputs: Inputs, tokens: tuple[Array]
) -> tuple[TokenStats, Array, Array]:
    """Return the numbers, the teacher's log-sums, and (N, D) the mean words, or (N, 0)."""
    hidden, words, teacher = inputs
    labels = tokens[0] - _offset(setting, words)
    size, count = _slices(setting, words.shape[0])
    low = jnp.full(labels.shape, -jnp.inf, jnp.float32)
    none = jnp.zeros(labels.shape, jnp.float32)

    def body(index: Array, carry: Any) -> Any:
        top, total, drawn, chosen, sums, top0, total0, gap = carry
        start, fresh = _place(index, size, words.shape[0])
        part, z, _ = _slice(setting, hidden, words, start, size)
        higher = jnp.maximum(top, jnp.where(fresh, z, -jnp.inf).max(-1))
        new = jnp.where(fresh, jnp.exp(z - higher[:, None]), 0.0)
        smaller = jnp.exp(top - higher)
        total = total * smaller + new.sum(-1)
        if draw:
            drawn = drawn * smaller[:, None] + jnp.einsum(
                "nv,vd->nd", new.astype(part.dtype), part, preferred_element_type=jnp.float32
            )
        at = labels - start
        here = (at >= 0) & (at < size) & (labels >= index * size)
        found = jnp.take_along_axis(z, jnp.clip(at, 0, size - 1)[:, None], 1)[:, 0]
        chosen = chosen + jnp.where(here, found, 0.0)
        sums = sums + jnp.where(fresh, z, 0.0).sum(-1)
        if teacher:
            z0 = _slice(setting, teacher[0], teacher[1], start, size)[1]
            higher0 = jnp.maximum(top0, jnp.where(fresh, z0, -jnp.inf).max(-1))
            new0 = jnp.where(fresh, jnp.exp(z0 - higher0[:, None]), 0.0)
            shrink = jnp.exp(top0 - higher0)
            total0 = total0 * shrink + new0.sum(-1)
            gap = gap * shrink + (new0 * (z0 - z)).sum(-1)
            top0 = higher0
        return higher, total, drawn, chosen, sums, top0, total0, gap

    drawn = jnp.zeros((len(labels), hidden.shape[1] if draw else 0), jnp.float32)
    start = (low, none, drawn, none, none, low, none, none)
    top, total, drawn, chosen, sums, top0, total0, gap = jax.lax.fori_loop(0, count, body, start)
    if setting.sharded is not None:
        axis = setting.sharded.vocab
        top, total, drawn = _joined(top, total, drawn, axis)
        chosen, sums = jax.lax.psum((chosen, sums), axis)
        if teacher:
            top0, total0, gap = _joined(top0, total0, gap[:, None], axis)
            gap = gap[:, 0]
    log_sum = top + jnp.log(total)
    log_sum0, kl = none, none
    if teacher:
        log_sum0 = top0 + jnp.log(total0)
        kl = gap / total0 - log_sum0 + log_sum
    stats = TokenStats(log_sum, chosen, sums * setting.scale, top, kl)
    return stats, log_sum0, drawn / total[:, None]


forward_alone = functools.partial(forward, False)


def _joined(top: Array, total: Array, sums: Array, axis: str) -> tuple[Array, Array, Array]:
    """Add up over devices what each holds relative to a maximum of its own; `sums` is (N, X)."""
    highest = jax.lax.pmax(top, axis)
    share = jnp.exp(top - highest)
    total, sums = jax.lax.psum((total * share, sums * share[:, None]), axis)
    return highest, total, sums


def backward(
    moves: bool, setting: Setting, inputs: Inputs, tokens: tuple[Array, ...]
) -> tuple[Array, Array]:
    hidden, words, teacher = inputs
    labels, log_sum, log_sum0, by_sum, by_chosen, by_mean, by_kl = tokens
    labels = labels - _offset(setting, words)
    size, count = _slices(setting, words.shape[0])

    def body(index: Array, carry: Any) -> Any:
        d_hidden, d_words = carry
        start, fresh = _place(index, size, words.shape[0])
        part, z, slope = _slice(setting, hidden, words, start, size)
        dz = (by_sum + by_kl if teacher else by_sum)[:, None] * jnp.exp(z - log_sum[:, None])
        dz += by_chosen[:, None] * (labels[:, None] == start + jnp.arange(size))
        dz += by_mean[:, None] * setting.scale
        if teacher:
            z0 = _slice(setting, teacher[0], teacher[1], start, size)[1]
            dz -= by_kl[:, None] * jnp.exp(z0 - log_sum0[:, None])
        dz = jnp.where(fresh, dz * slope, 0.0).astype(hidden.dtype)
        d_hidden += jnp.einsum("nv,vd->nd", dz, part, preferred_element_type=jnp.float32)
        if moves:
            own = jnp.einsum("nv,nd->vd", dz, hidden, preferred_element_type=jnp.float32)
            if setting.sharded is not None and setting.sharded.tokens is not None:
                own = jax.lax.psum(own, setting.sharded.tokens)
            # Added, not set: words of an overlap have theirs already, and add 0 here.
            before = jax.lax.dynamic_slice_in_dim(d_words, start, size)
            d_words = jax.lax.dynamic_update_slice_in_dim(
                d_words, before + own.astype(d_words.dtype), start, 0
            )
        return d_hidden, d_words

    zeros = jnp.zeros(hidden.shape, jnp.float32)
    first = (zeros, jnp.zeros_like(words) if moves else jnp.zeros((count, 0)))
    d_hidden, d_words = jax.lax.fori_loop(0, count, body, first)
    if setting.sharded is not None:
        d_hidden = jax.lax.psum(d_hidden, setting.sharded.vocab)
    return d_hidden.astype(hidden.dtype), d_words


def backward_drawn(
    how: tuple[bool, Any], setting: Setting, inputs: Inputs, tokens: tuple[Array, ...]
) -> Array:
    """Return the gradient of `hidden` where the words stand still.

    Args:
      how: whether the mean logit counts, and the type of `hidden`.
      setting: of the logits.
      inputs: the mean words, and the words.
      tokens: labels and cotangents.
    """
    (mean, dtype), (drawn, words, _) = how, inputs
    labels, by_sum, by_chosen, by_mean = tokens
    at = labels - _offset(setting, words)
    here = (at >= 0) & (at < words.shape[0])
    word = words[jnp.clip(at, 0, words.shape[0] - 1)].astype(dtype).astype(jnp.float32)
    d_hidden = (by_chosen * here)[:, None] * word
    if mean:
        d_hidden += by_mean[:, None] * (setting.scale * jnp.sum(words, 0, dtype=jnp.float32))
    if setting.sharded is not None:
        d_hidden = jax.lax.psum(d_hidden, setting.sharded.vocab)
    return d_hidden + by_sum[:, None] * drawn


def _offset(setting: Setting, words: Array) -> Array | int:
    """Return the number of the first word that lies on this device."""
    if setting.sharded is None:
        return 0
    return jax.lax.axis_index(setting.sharded.vocab) * words.shape[0]


def over_devices(run: Any, setting: Setting, inputs: Inputs, tokens: tuple[Array, ...]) -> Any:
    """Run on whole arrays, or on each device on its part of the vocabulary and of the tokens."""
    if setting.sharded is None:
        return run(setting, inputs, tokens)
    where = setting.sharded
    by_token, by_word = PartitionSpec(where.tokens), PartitionSpec(where.vocab)
    teacher = (by_token, by_word) if inputs.teacher else ()
    step, (flag,) = run.func, run.args
    if step is forward:
        out: Any = (by_token, by_token, by_token)
    elif step is backward:
        out = (by_token, by_word if flag else PartitionSpec())
    else:
        out = by_token
    return jax.shard_map(
        functools.partial(run, setting),
        mesh=where.mesh,
        in_specs=(Inputs(by_token, by_word, teacher), (by_token,) * len(tokens)),
        out_specs=out,
        check_vma=False,  # sums over the vocabulary's axis are equal on all of it, unproven
    )(inputs, tokens)
