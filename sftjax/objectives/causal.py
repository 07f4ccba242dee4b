r"""Objectives of models that say the next token: a batch of rows, packed or not, and its weights.

`batch["loss_weights"]` (B, T) says how much token t counts as a target; it is said by what stands
before it, at t - 1, and never across the border of two segments.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import Aux, Batch, Loss, Objective, PyTree
from sftjax.objectives.chunked import By, TokenStats, smoothed, weighted_sum
from sftjax.objectives.text import Apply

Words = Callable[[PyTree], Array]
"""`params -> (V, D)`: the head of a model, a word a row."""


def next_token(
    hidden: Apply,
    words: Words,
    *,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    dft: bool = False,
    base: tuple[Apply, Words] | None = None,
    base_weight: float = 0.0,
    dropout: bool = False,
    chunk: int | None = None,
    by: By = "auto",
) -> Objective:
    r"""Cross-entropy of the next token, with what may be added to it.

    $$ \ell_t = \mathrm{sg}(p_t)^{[\text{dft}]}\, \mathrm{CE}_t + \zeta \log^2 Z_t
       + \lambda\, \mathrm{KL}(p^0_t \| p_t) $$

    Its sum and weight are over all tokens that count, so that the mean of an update is over all its
    tokens, however they lie in rows, micro-batches and devices.

    Args:
      hidden: `(params, batch, key) -> (B, T, D)`, what the head reads.
      words: the head.
      softcap: of the logits (Gemma 2).
      label_smoothing: share of the target that is spread over the vocabulary.
      z_loss: $\zeta$.
      dft: weigh each token by its own probability, through which no gradient flows: tokens that the
        model finds absurd are not forced on it. The gradient is that of $-p_t$.
      base: the same two functions of the pretrained model, for `base_weight`; of params with an
        adapter, `adapters.base_outputs` of them: the same weights, no copy.
      base_weight: $\lambda$; with `dft` this is ASFT (0.05 to 0.1).
      dropout: whether `hidden` is given the step's key.
      chunk: words in a slice (see `weighted_sum`).
      by: what is sliced, likewise.

    Returns:
      An objective with the metric `token_accuracy`, and `nll` and `base_kl` where the loss is more
      than the one or holds the other.

    Raises:
      ValueError: if there is a `base_weight` and no base; when tracing, if the batch has no
        `loss_weights`.

    References:
      Wu et al., *On the Generalization of SFT* (DFT), 2025, arXiv:2508.05629;
      Zhu et al., *Anchored Supervised Fine-Tuning*, 2025, arXiv:2509.23753

    >>> table = jnp.eye(3) * 9.0  # each token says itself again
    >>> objective = next_token(lambda params, batch, key: params[batch["input_ids"]],
    ...                        lambda params: jnp.eye(3))
    >>> batch = {"input_ids": jnp.array([[1, 1, 2]]), "loss_weights": jnp.array([[0.0, 1.0, 0.0]])}
    >>> loss, aux = objective(table, {}, batch, None)
    >>> float(loss.weight), float(aux.metrics["token_accuracy"].mean)
    (1.0, 1.0)
    """
    if base_weight < 0 or (base_weight and base is None):
        raise ValueError(
            f"base_weight is {base_weight}; give it 0 or more, and beside it `base`, what the "
            "pretrained model computes"
        )

    def objective(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        del state
        labels, weights = targets(batch)
        found = flat(hidden(params, batch, key if dropout else None))
        teacher = None
        if base is not None and base_weight:
            teacher = (flat(base[0](params, batch, None)), base[1](params))

        def each(stats: TokenStats) -> Array:
            loss = smoothed(stats, label_smoothing)
            if dft:
                loss = loss * jax.lax.stop_gradient(jnp.exp(-stats.nll))
            return loss + z_loss * jnp.square(stats.log_sum) + base_weight * stats.kl

        def over(values: Array) -> Loss:
            return Loss(jnp.sum(weights * values), jnp.sum(weights))

        total, stats = weighted_sum(
            each, found, words(params), labels, weights,
            teacher=teacher, softcap=softcap, chunk=chunk, by=by,
        )  # fmt: skip
        metrics = {"token_accuracy": over(jnp.asarray(stats.chosen >= stats.top, jnp.float32))}
        if label_smoothing or z_loss or dft or base_weight:
            metrics["nll"] = over(stats.nll)
        if base_weight:
            metrics["base_kl"] = over(stats.kl)
        return Loss(total, jnp.sum(weights)), Aux(metrics)

    return objective


def targets(batch: Batch) -> tuple[Array, Array]:
    """Return what each position is to say next, and how much that counts; (B T,) both.

    A position before a border of segments, before padding or at the end of a row counts nothing.

    Args:
      batch: with `input_ids` and `loss_weights` (B, T), and `segment_ids` (B, T, 0 for padding) and
        `valid` (B,) if there are any.

    >>> batch = {"input_ids": jnp.array([[5, 6, 7]]), "loss_weights": jnp.ones((1, 3)),
    ...          "segment_ids": jnp.array([[1, 1, 2]])}
    >>> targets(batch)
    (Array([6, 7, 0], dtype=int32), Array([1., 0., 0.], dtype=float32))
    """
    if "loss_weights" not in batch:
        raise ValueError(
            f"the batch has no loss_weights (it has {', '.join(batch)}); make it with "
            "data.ChatBatches, or say which tokens count with an array of input_ids' shape"
        )
    ids, weights = batch["input_ids"], jnp.asarray(batch["loss_weights"], jnp.float32)
    labels, counted = _next(ids), _next(weights)
    if "segment_ids" in batch:
        segments = batch["segment_ids"]
        counted = counted * ((_next(segments) == segments) & (segments > 0))
    if "valid" in batch:
        counted = counted * jnp.asarray(batch["valid"], jnp.float32)[:, None]
    return labels.reshape(-1), counted.reshape(-1)


def neftune(
    embed: Callable[[PyTree, Batch], Array],
    rest: Callable[[PyTree, Array, Batch, Array | None], Array],
    alpha: float,
) -> Apply:
    r"""Return a model whose words are disturbed by noise while training (NEFTune).

    $$ h + \frac{\alpha}{\sqrt{L D}}\, u, \qquad u \sim U(-1, 1) $$

    $L$ counts the real tokens of a token's own segment, and padding gets none: what lies beside it
    in the batch changes nothing. (The original counts the padding.)

    Args:
      embed: `(params, batch) -> (B, T, D)`.
      rest: `(params, h, batch, key) -> output`, the model above its words.
      alpha: $\alpha$; 5 is usual.

    Returns:
      `(params, batch, key) -> output`; without a key there is no noise. As objectives hand out
      their key with `dropout=True`, say that.

    References:
      Jain et al., *NEFTune*, 2023, arXiv:2310.05914

    >>> noisy = neftune(lambda p, b: jnp.zeros((1, 2, 2)), lambda p, h, b, k: h, 5.0)
    >>> batch = {"input_ids": jnp.ones((1, 2), jnp.int32), "attention_mask": jnp.array([[1, 0]])}
    >>> bool((noisy({}, batch, jax.random.key(0))[0, 1] == 0).all())
    True
    """
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}; the noise has a size of 0 or more")

    def run(params: PyTree, batch: Batch, key: Array | None) -> Any:
        h = embed(params, batch)
        if key is not None:
            own, key = jax.random.split(key)
            h = h + neftune_noise(batch, h, alpha, own)
        return rest(params, h, batch, key)

    return run


def neftune_noise(batch: Batch, h: Array, alpha: float, key: Array) -> Array:
    """Return the noise that NEFTune adds to embedded words (B, T, D); see `neftune`.

    >>> batch = {"input_ids": jnp.ones((1, 4), jnp.int32)}
    >>> noise = neftune_noise(batch, jnp.zeros((1, 4, 25)), 5.0, jax.random.key(0))
    >>> bool(jnp.abs(noise).max() <= 0.5)
    True
    """
    noise = jax.random.uniform(key, h.shape, jnp.float32, -1.0, 1.0)
    scale = alpha * jax.lax.rsqrt(_real_tokens(batch) * h.shape[-1])
    return (noise * scale[..., None]).astype(h.dtype)


def _real_tokens(batch: Batch) -> Array:
    """Return (B, T): for each token how many its segment has; infinity for padding."""
    ids = batch["input_ids"]
    segments = batch.get("segment_ids")
    if segments is None:
        segments = batch.get("attention_mask", jnp.ones_like(ids))
    together = (segments[:, :, None] == segments[:, None, :]).sum(-1)
    return jnp.where(segments > 0, together, jnp.inf)


def _next(values: Array) -> Array:
    """Return (B, T): for each position what stands at the next one; 0 at the end."""
    return jnp.pad(values[:, 1:], ((0, 0), (0, 1)))


def flat(hidden: Array) -> Array:
    """Return (B T, D) of (B, T, D)."""
    return hidden.reshape(-1, hidden.shape[-1])
