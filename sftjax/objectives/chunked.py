r"""Cross-entropy over a long vocabulary, a slice of it at a time, in the memory of one slice.

Everything that a loss of next tokens asks of the logits $z_i = W h_i$ comes to a few numbers a
token: the log of the sum of their exponentials, the chosen one, their mean and their maximum. Those
are gathered over slices of the vocabulary going forward, and the slices are computed again going
backward, so that no more than (N, chunk) logits ever exist. What is made of the numbers (label
smoothing, z-loss, weights, DFT) is plain JAX on vectors of length N.

Where the words stand still, nothing is computed again: the mean word $\sum_v p_{iv} w_v$ that the
gradient of $\log Z_i$ is, is gathered going forward, as attention gathers values.

Slices of the vocabulary, not of the tokens: the gradient of a slice of `words` is then whole after
one product, with no accumulator beside it, and tokens may lie on many devices. On one CPU, where
products are all that time goes into, `weighted_sum` takes slices of the tokens instead and saves a
product of four (see `token_slices`).
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import Loss, platform, target_devices
from sftjax.objectives.token_slices import Each, losses_and_gradients
from sftjax.objectives.word_slices import (
    Drawn,
    Inputs,
    Setting,
    TokenStats,
    VocabMesh,
    backward,
    backward_drawn,
    forward,
    forward_alone,
    over_devices,
)

SLICE = 2**24
"""Logits that are held at once, where `chunk` is not said: 64 MiB of float32."""

SLICE_OF_TOKENS = 2**26
"""The same of a slice of tokens, 256 MiB: fewer slices add less often to the gradient of words."""

By = Literal["auto", "tokens", "vocabulary"]
"""What is sliced."""


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
    setting, inputs = _checked(hidden, words, labels, teacher, softcap, chunk, sharded)
    return _stats(setting, inputs, labels)


def slice_of(tokens: int) -> int:
    """Return how many words a slice has, of so many tokens, where nothing is said.

    >>> slice_of(4096), slice_of(10**6)
    (4096, 512)
    """
    return max(512, SLICE // max(tokens, 1) // 128 * 128)


def weighted_sum(
    each: Each,
    hidden: Array,
    words: Array,
    labels: Array,
    weights: Array,
    *,
    by: By = "auto",
    teacher: tuple[Array, Array] | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    sharded: VocabMesh | None = None,
) -> tuple[Array, TokenStats]:
    r"""Return $\sum_i w_i\, \ell(s_i)$ of the numbers $s_i$ of each token, and the numbers.

    Args:
      each: $\ell$, of all tokens' numbers (N,) at once and of nothing else that has a gradient.
      hidden: (N, D), as for `token_stats`.
      words: (V, D).
      labels: (N,), int, in [0, V).
      weights: $w$ (N,) float32.
      by: `vocabulary` goes through `token_stats`; `tokens` has the gradients ready when the loss
        is (three products of tokens and words where both learn, instead of four), on one device;
        `auto` is `tokens` where there is one device and it is a CPU.
      teacher: as for `token_stats`.
      softcap: as for `token_stats`.
      chunk: words in a slice of the vocabulary; a slice of the tokens holds as many logits, and
        2^26 by default.
      sharded: as for `token_stats`; not by tokens.

    Returns:
      The sum, and the numbers, through which no gradient flows.

    Raises:
      ValueError: if shapes do not fit, or for a vocabulary cut over devices by tokens.

    >>> given = jnp.ones((2, 2)), jnp.eye(3, 2), jnp.array([2, 0]), jnp.array([1.0, 0.0])
    >>> total, stats = weighted_sum(lambda stats: stats.nll, *given, by="tokens")
    >>> round(float(total), 4), stats.chosen.tolist()
    (1.862, [0.0, 1.0])
    """
    if by == "auto":
        alone = platform() == "cpu" and len(target_devices()) == 1 and sharded is None
        by = "tokens" if alone else "vocabulary"
    if by == "vocabulary":
        stats = token_stats(
            hidden, words, labels, teacher=teacher, softcap=softcap, chunk=chunk, sharded=sharded
        )
        return jnp.sum(weights * each(stats)), jax.lax.stop_gradient(stats)
    if sharded is not None:
        raise ValueError(
            f"by={by!r} needs whole words, and a vocabulary that is cut over devices (sharded) "
            "goes by='vocabulary'; give that, or leave by at 'auto'"
        )
    held = SLICE_OF_TOKENS if chunk is None else chunk * len(hidden)
    slices = -(-len(hidden) // max(1, held // len(words)))
    chunk = -(-len(hidden) // slices)  # all alike, so that the last has little to do again
    setting, inputs = _checked(hidden, words, labels, teacher, softcap, chunk, None)
    found: Any = _sum_by_tokens(each, setting, inputs, labels, weights)
    return found[0], jax.lax.stop_gradient(found[1])


def _checked(
    hidden: Array,
    words: Array,
    labels: Array,
    teacher: tuple[Array, Array] | None,
    softcap: float | None,
    chunk: int | None,
    sharded: VocabMesh | None,
) -> tuple[Setting, Inputs]:
    tokens, vocab = hidden.shape[0], words.shape[0]
    for name, (h, w) in {"": (hidden, words), "teacher's ": teacher or (hidden, words)}.items():
        if h.shape != (tokens, w.shape[-1]) or w.shape[0] != vocab or labels.shape != (tokens,):
            raise ValueError(
                f"the {name}hidden states {h.shape}, words {w.shape} and labels {labels.shape} do "
                f"not fit {tokens} tokens and {vocab} words: (N, D), (V, D) and (N,)"
            )
    if sharded is not None and vocab % sharded.mesh.shape[sharded.vocab]:
        raise ValueError(
            f"{vocab} words cannot be cut evenly over {sharded.mesh.shape[sharded.vocab]} devices; "
            "pad the words to a multiple"
        )
    given = () if teacher is None else jax.lax.stop_gradient(teacher)
    setting = Setting(slice_of(tokens) if chunk is None else chunk, softcap, 1.0 / vocab, sharded)
    return setting, Inputs(hidden, words, given)


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
      **options: those of `weighted_sum`.

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

    def each(stats: TokenStats) -> Array:
        return smoothed(stats, label_smoothing) + z_loss * jnp.square(stats.log_sum)

    weights = weights.astype(jnp.float32)
    total, _ = weighted_sum(each, hidden, words, jnp.maximum(labels, 0), weights, **options)
    return Loss(total, jnp.sum(weights))


def smoothed(stats: TokenStats, label_smoothing: float = 0.0) -> Array:
    """Return the cross-entropy (N,) with a share of the target spread over the vocabulary."""
    target = (1.0 - label_smoothing) * stats.chosen + label_smoothing * stats.mean
    return stats.log_sum - target


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stats(setting: Setting, inputs: Inputs, labels: Array) -> TokenStats:
    return over_devices(forward_alone, setting, inputs, (labels,))[0]


def _stats_fwd(setting: Setting, inputs: Any, labels: Any) -> tuple[TokenStats, Any]:
    # A head that is frozen says so here, and its gradient is never computed.
    moves = bool(inputs.words.perturbed)
    values = Inputs(*jax.tree.map(lambda primal: primal.value, tuple(inputs), is_leaf=_is_primal))
    # A cap or a teacher bends each logit's slope, and one mean word does not tell the gradient.
    if not moves and setting.softcap is None and not values.teacher:
        drawing = functools.partial(forward, True)
        stats, _, drawn = over_devices(drawing, setting, values, (labels.value,))
        # A dtype cannot be saved, an empty array of it can.
        like = jnp.zeros(0, values.hidden.dtype)
        return stats, Drawn(drawn, values.words, labels.value, like)
    stats, log_sum0, _ = over_devices(forward_alone, setting, values, (labels.value,))
    # `()` or `(0,)`: structure may depend on what moves, values may not.
    return stats, (values, labels.value, stats.log_sum, log_sum0, (0,) if moves else ())


def _stats_bwd(setting: Setting, saved: Any, cotangents: Any) -> tuple[Any, Any]:
    weigh = {
        name: jnp.zeros(value.shape, jnp.float32) if _is_zero(value) else value
        for name, value in cotangents._asdict().items()
    }
    if isinstance(saved, Drawn):
        finish = functools.partial(
            backward_drawn, (not _is_zero(cotangents.mean), saved.like.dtype)
        )
        inputs = Inputs(saved.words_mean, saved.words, ())
        tokens = (saved.labels, weigh["log_sum"], weigh["chosen"], weigh["mean"])
        d_hidden = over_devices(finish, setting, inputs, tokens)
        return Inputs(d_hidden.astype(saved.like.dtype), None, ()), None
    inputs, labels, log_sum, log_sum0, moves = saved
    again = functools.partial(backward, bool(moves))
    tokens = (labels, log_sum, log_sum0, weigh["log_sum"], weigh["chosen"], weigh["mean"])
    d_hidden, d_words = over_devices(again, setting, inputs, (*tokens, weigh["kl"]))
    d_words = d_words if moves else None
    return Inputs(d_hidden, d_words, jax.tree.map(lambda _: None, inputs.teacher)), None


_stats.defvjp(_stats_fwd, _stats_bwd, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_by_tokens(
    each: Each, setting: Setting, inputs: Inputs, labels: Array, weights: Array
) -> tuple[Array, TokenStats]:
    stats = _by_words(setting, inputs, labels)
    return jnp.sum(weights * each(stats)), stats


def _sum_fwd(each: Each, setting: Setting, inputs: Any, labels: Any, weights: Any) -> Any:
    moves = bool(inputs.words.perturbed)
    inputs = Inputs(*jax.tree.map(lambda primal: primal.value, tuple(inputs), is_leaf=_is_primal))
    labels, weights = labels.value, weights.value
    if moves:
        losses, stats, d_hidden, d_words = losses_and_gradients(
            each, setting, inputs, labels, weights
        )
        return (jnp.sum(weights * losses), stats), (losses, d_hidden, d_words)

    # Words that stand still are read once by slices of the vocabulary.
    def losses_of(hidden: Array) -> tuple[Array, TokenStats]:
        stats = _by_words(setting, inputs._replace(hidden=hidden), labels)
        return each(stats), stats

    losses, pull, stats = jax.vjp(losses_of, inputs.hidden, has_aux=True)
    return (jnp.sum(weights * losses), stats), (losses, pull(weights)[0], None)


def _by_words(setting: Setting, inputs: Inputs, labels: Array) -> TokenStats:
    """Return the numbers by slices of the vocabulary of their usual size."""
    return _stats(setting._replace(chunk=slice_of(len(labels))), inputs, labels)


def _sum_bwd(each: Each, setting: Setting, saved: Any, cotangents: Any) -> Any:
    del each, setting
    losses, d_hidden, d_words = saved
    by = cotangents[0]
    if _is_zero(by):
        return Inputs(None, None, None), None, None

    def scaled(gradient: Array | None) -> Array | None:
        return None if gradient is None else (by * gradient).astype(gradient.dtype)

    return Inputs(scaled(d_hidden), scaled(d_words), None), None, scaled(losses)


_sum_by_tokens.defvjp(_sum_fwd, _sum_bwd, symbolic_zeros=True)


def _is_zero(value: object) -> bool:
    return isinstance(value, jax.custom_derivatives.SymbolicZero)


def _is_primal(value: object) -> bool:
    return isinstance(value, jax.custom_derivatives.CustomVJPPrimal)
