r"""Cross-entropy over a long vocabulary, a slice of it at a time, in the memory of one slice.

Everything that a loss of next tokens asks of the logits $z_i = W h_i$ comes to a few numbers a
token: the log of the sum of their exponentials, the chosen one, their mean and their maximum. Those
are gathered over slices of the vocabulary going forward, and the slices are computed again going
backward, so that no more than (N, chunk) logits ever exist. What is made of the numbers (label
smoothing, z-loss, weights, DFT) is plain JAX on vectors of length N.

Slices of the vocabulary, not of the tokens: the gradient of a slice of `words` is then whole after
one product, with no accumulator beside it, and tokens may lie on many devices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from sftjax.core import Loss

SLICE = 2**24
"""Logits that are held at once, where `chunk` is not said: 64 MiB of float32."""


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


class _Setting(NamedTuple):
    chunk: int
    softcap: float | None
    scale: float
    sharded: VocabMesh | None


class _Inputs(NamedTuple):
    hidden: Any
    words: Any
    teacher: Any
    """`(hidden, words)` or `()`."""


def token_stats(
    hidden: Array,
    words: Array,
    labels: Array,
    *,
    teacher: tuple[Array, Array] | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    sharded: VocabMesh | None = None,
) -> TokenStats:
    r"""Return what losses need of the logits $z = c \tanh(W h / c)$, or $W h$ without a cap.

    Args:
      hidden: (N, D), any float; products are of its type and summed in float32.
      words: (V, D), cast to the type of `hidden`; its gradient has its own type.
      labels: (N,), int, in [0, V).
      teacher: `(hidden (N, D'), words (V, D'))` of another model of the same vocabulary, through
        which no gradient flows.
      softcap: $c$, of both models.
      chunk: words in a slice; by default so many that a slice holds 2^24 logits, 512 at least.
      sharded: where the vocabulary lies, if it is cut over devices; V must divide.

    Raises:
      ValueError: if shapes do not fit.

    >>> stats = token_stats(jnp.ones((1, 2)), jnp.eye(3, 2), jnp.array([2]), chunk=2)
    >>> [round(float(value[0]), 4) for value in (stats.chosen, stats.mean, stats.top, stats.nll)]
    [0.0, 0.6667, 1.0, 1.862]
    """
    tokens, vocab = hidden.shape[0], words.shape[0]
    for name, (h, w) in {"": (hidden, words), "teacher's ": teacher or (hidden, words)}.items():
        if h.shape != (tokens, w.shape[-1]) or w.shape[0] != vocab or labels.shape != (tokens,):
            raise ValueError(
                f"the {name}hidden states {h.shape}, words {w.shape} and labels {labels.shape} do "
                f"not fit {tokens} tokens and {vocab} words: (N, D), (V, D) and (N,)"
            )
    if chunk is None:
        chunk = slice_of(tokens)
    if sharded is not None and vocab % sharded.mesh.shape[sharded.vocab]:
        raise ValueError(
            f"{vocab} words cannot be cut evenly over {sharded.mesh.shape[sharded.vocab]} devices; "
            "pad the words to a multiple"
        )
    setting = _Setting(chunk, softcap, 1.0 / vocab, sharded)
    given = () if teacher is None else jax.lax.stop_gradient(teacher)
    return _stats(setting, _Inputs(hidden, words, given), labels)


def slice_of(tokens: int) -> int:
    """Return how many words a slice has, of so many tokens, where nothing is said.

    >>> slice_of(4096), slice_of(10**6)
    (4096, 512)
    """
    return max(512, SLICE // max(tokens, 1) // 128 * 128)


def chunked_cross_entropy(
    hidden: Array,
    words: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    **options: Any,
) -> Loss:
    r"""Cross-entropy of one word per token, from what the head reads and the head itself.

    $$ \ell_i = \log Z_i - (1 - \varepsilon) z_{i y_i} - \frac{\varepsilon}{V} \sum_k z_{ik}
       + \zeta \log^2 Z_i $$

    Args:
      hidden: (N, D).
      words: (V, D).
      labels: (N,), int; those of tokens that weigh nothing may be anything, -100 too.
      weights: (N,), how much each token counts; `None` is 1 where the label is not negative.
      label_smoothing: $\varepsilon$ in [0, 1).
      z_loss: $\zeta \ge 0$, which keeps the logits from drifting (PaLM: 1e-4).
      **options: those of `token_stats`.

    Returns:
      The sum of $w_i \ell_i$ and of $w_i$.

    References:
      Chowdhery et al., *PaLM*, 2022, arXiv:2204.02311 (z-loss)

    >>> loss = chunked_cross_entropy(jnp.zeros((2, 3)), jnp.ones((4, 3)), jnp.array([1, -100]))
    >>> round(float(loss.mean), 4), float(loss.weight)
    (1.3863, 1.0)
    """
    if weights is None:
        weights = jnp.asarray(labels >= 0, jnp.float32)
    stats = token_stats(hidden, words, jnp.maximum(labels, 0), **options)
    loss = smoothed(stats, label_smoothing) + z_loss * jnp.square(stats.log_sum)
    weights = weights.astype(jnp.float32)
    return Loss(jnp.sum(weights * loss), jnp.sum(weights))


def smoothed(stats: TokenStats, label_smoothing: float = 0.0) -> Array:
    """Return the cross-entropy (N,) with a share of the target spread over the vocabulary."""
    target = (1.0 - label_smoothing) * stats.chosen + label_smoothing * stats.mean
    return stats.log_sum - target


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stats(setting: _Setting, inputs: _Inputs, labels: Array) -> TokenStats:
    return _over_devices(_forward, setting, inputs, (labels,))[0]


def _stats_fwd(setting: _Setting, inputs: Any, labels: Any) -> tuple[TokenStats, Any]:
    # A head that is frozen says so here, and its gradient is never computed.
    moves = bool(inputs.words.perturbed)
    values = _Inputs(*jax.tree.map(lambda primal: primal.value, tuple(inputs), is_leaf=_is_primal))
    stats, log_sum0 = _over_devices(_forward, setting, values, (labels.value,))
    # `()` or `(0,)`: structure may depend on what moves, values may not.
    return stats, (values, labels.value, stats.log_sum, log_sum0, (0,) if moves else ())


def _stats_bwd(setting: _Setting, saved: Any, cotangents: Any) -> tuple[Any, Any]:
    inputs, labels, log_sum, log_sum0, moves = saved
    weigh = {
        name: jnp.zeros(log_sum.shape, jnp.float32)
        if isinstance(value, jax.custom_derivatives.SymbolicZero)
        else value
        for name, value in cotangents._asdict().items()
    }
    backward = functools.partial(_backward, bool(moves))
    tokens = (labels, log_sum, log_sum0, weigh["log_sum"], weigh["chosen"], weigh["mean"])
    d_hidden, d_words = _over_devices(backward, setting, inputs, (*tokens, weigh["kl"]))
    d_words = d_words if moves else None
    return _Inputs(d_hidden, d_words, jax.tree.map(lambda _: None, inputs.teacher)), None


_stats.defvjp(_stats_fwd, _stats_bwd, symbolic_zeros=True)


def _is_primal(value: object) -> bool:
    return isinstance(value, jax.custom_derivatives.CustomVJPPrimal)


def _slice(setting: _Setting, hidden: Array, words: Array, start: Array, size: int):
    """Return a slice of the words, of their logits (N, size), and the slope of the cap."""
    part = jax.lax.dynamic_slice_in_dim(words, start, size).astype(hidden.dtype)
    z = jnp.einsum("nd,vd->nv", hidden, part, preferred_element_type=jnp.float32)
    if setting.softcap is None:
        return part, z, 1.0
    bent = jnp.tanh(z / setting.softcap)
    return part, setting.softcap * bent, 1.0 - jnp.square(bent)


def _slices(setting: _Setting, vocab: int) -> tuple[int, int]:
    size = min(setting.chunk, vocab)
    return size, -(-vocab // size)


def _place(index: Array, size: int, vocab: int) -> tuple[Array, Array]:
    """Return where slice `index` starts, and which of its words the slice before does not hold.

    The last slice ends with the vocabulary, and so may overlap the one before.
    """
    start = jnp.minimum(index * size, vocab - size)
    return start, start + jnp.arange(size) >= index * size


def _forward(setting: _Setting, inputs: _Inputs, tokens: tuple[Array]) -> tuple[TokenStats, Array]:
    hidden, words, teacher = inputs
    labels = tokens[0] - _offset(setting, words)
    size, count = _slices(setting, words.shape[0])
    low = jnp.full(labels.shape, -jnp.inf, jnp.float32)
    none = jnp.zeros(labels.shape, jnp.float32)

    def body(index: Array, carry: Any) -> Any:
        top, total, chosen, sums, top0, total0, gap = carry
        start, fresh = _place(index, size, words.shape[0])
        _, z, _ = _slice(setting, hidden, words, start, size)
        higher = jnp.maximum(top, jnp.where(fresh, z, -jnp.inf).max(-1))
        new = jnp.where(fresh, jnp.exp(z - higher[:, None]), 0.0)
        total = total * jnp.exp(top - higher) + new.sum(-1)
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
        return higher, total, chosen, sums, top0, total0, gap

    start = (low, none, none, none, low, none, none)
    top, total, chosen, sums, top0, total0, gap = jax.lax.fori_loop(0, count, body, start)
    if setting.sharded is not None:
        axis = setting.sharded.vocab
        top, total, _ = _joined(top, total, none, axis)
        chosen, sums = jax.lax.psum((chosen, sums), axis)
        if teacher:
            top0, total0, gap = _joined(top0, total0, gap, axis)
    log_sum = top + jnp.log(total)
    log_sum0, kl = none, none
    if teacher:
        log_sum0 = top0 + jnp.log(total0)
        kl = gap / total0 - log_sum0 + log_sum
    return TokenStats(log_sum, chosen, sums * setting.scale, top, kl), log_sum0


def _joined(top: Array, total: Array, gap: Array, axis: str) -> tuple[Array, Array, Array]:
    highest = jax.lax.pmax(top, axis)
    total, gap = jax.lax.psum((total * jnp.exp(top - highest), gap * jnp.exp(top - highest)), axis)
    return highest, total, gap


def _backward(
    moves: bool, setting: _Setting, inputs: _Inputs, tokens: tuple[Array, ...]
) -> tuple[Array, Array]:
    hidden, words, teacher = inputs
    labels, log_sum, log_sum0, by_sum, by_chosen, by_mean, by_kl = tokens
    labels = labels - _offset(setting, words)
    size, count = _slices(setting, words.shape[0])

    def body(index: Array, carry: Any) -> Any:
        d_hidden, d_words = carry
        start, fresh = _place(index, size, words.shape[0])
        part, z, slope = _slice(setting, hidden, words, start, size)
        dz = (by_sum + by_kl)[:, None] * jnp.exp(z - log_sum[:, None])
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


def _offset(setting: _Setting, words: Array) -> Array | int:
    """Return the number of the first word that lies on this device."""
    if setting.sharded is None:
        return 0
    return jax.lax.axis_index(setting.sharded.vocab) * words.shape[0]


def _over_devices(run: Any, setting: _Setting, inputs: _Inputs, tokens: tuple[Array, ...]) -> Any:
    """Run on whole arrays, or on each device on its part of the vocabulary and of the tokens."""
    if setting.sharded is None:
        return run(setting, inputs, tokens)
    where = setting.sharded
    by_token, by_word = PartitionSpec(where.tokens), PartitionSpec(where.vocab)
    teacher = (by_token, by_word) if inputs.teacher else ()
    out = (by_token, by_token) if run is _forward else (by_token, by_word)
    if run is not _forward and not run.args[0]:
        out = (by_token, PartitionSpec())
    return jax.shard_map(
        functools.partial(run, setting),
        mesh=where.mesh,
        in_specs=(_Inputs(by_token, by_word, teacher), (by_token,) * len(tokens)),
        out_specs=out,
        check_vma=False,  # sums over the vocabulary's axis are equal on all of it, unproven
    )(inputs, tokens)
