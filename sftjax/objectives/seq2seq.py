"""Teacher forcing: next-token losses of an encoder-decoder, and of a student under a teacher.

What counts is the batch's `loss_weights`, never a comparison of ids with the padding token: a model
whose padding and end tokens are one (or whose start token pads) would forget how to stop.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import Aux, Batch, Loss, Objective, PyTree
from sftjax.objectives.distill import distill_logits
from sftjax.objectives.text import Apply

Step = Callable[[int], Batch]


def sequence_cross_entropy(
    logits: Array,
    labels: Array,
    weights: Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Loss:
    r"""Cross-entropy of the next token, over the tokens that count.

    $$ \ell_t = (1 - \varepsilon)\,(Z_t - z_{t y_t}) + \varepsilon\,(Z_t - \tfrac1V \sum_k z_{tk})
       + c\, Z_t^2, \qquad Z_t = \log \sum_k e^{z_{tk}}, \qquad
       L = \frac{\sum_t w_t \ell_t}{\sum_t w_t} $$

    With weights of 0 and 1 this is torch's `CrossEntropyLoss(label_smoothing=ε, ignore_index=-100)`
    and transformers' `LabelSmoother`, which are one: the spread is over the whole vocabulary, and
    the mean over the real tokens.

    Args:
      logits: (B, U, V), any float; computed with in float32.
      labels: (B, U) int; whatever stands where the weight is 0 is not read.
      weights: (B, U) float32, $w$.
      label_smoothing: $\varepsilon$ in [0, 1).
      z_loss: $c$, which keeps $Z$ near 0, so that logits do not drift (1e-4 in T5's pretraining).

    Returns:
      The sum of $w \ell$ and of $w$.

    References:
      Szegedy et al., *Rethinking the Inception Architecture*, 2016, arXiv:1512.00567; Chowdhery et
      al., *PaLM*, 2022, arXiv:2204.02311

    >>> logits, labels = jnp.zeros((1, 2, 4)), jnp.array([[3, -100]])
    >>> loss = sequence_cross_entropy(logits, labels, jnp.array([[1.0, 0.0]]))
    >>> round(float(loss.mean), 4), float(loss.weight)
    (1.3863, 1.0)
    """
    check_smoothing(label_smoothing, z_loss)
    counted = weights > 0
    logits = logits.astype(jnp.float32)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.where(counted, labels, 0)
    at_label = jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]
    losses = log_sum - (1.0 - label_smoothing) * at_label
    if label_smoothing:
        losses -= label_smoothing * jnp.mean(logits, -1)
    if z_loss:
        losses += z_loss * jnp.square(log_sum)
    weights = weights.astype(jnp.float32)
    # `where`, not a product alone: a padded place may hold anything, infinities too.
    return Loss(jnp.sum(weights * jnp.where(counted, losses, 0.0)), jnp.sum(weights))


def sequence_to_sequence(
    apply: Apply, *, dropout: bool = False, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Objective:
    """Teacher forcing of `batch["labels"]` (B, U) with `batch["loss_weights"]` (B, U).

    Args:
      apply: `(params, batch, key) -> logits (B, U, V)`; reads `decoder_input_ids`, the labels
        shifted right.
      dropout: whether `apply` is given the step's key; off by default, as a frozen trunk wants it.
      label_smoothing: as in `sequence_cross_entropy`.
      z_loss: the same.

    Returns:
      An objective with the metrics `token_accuracy` and, where the loss is more than that, `nll`:
      the plain cross-entropy.

    Raises:
      ValueError: if a number is out of range; when tracing, if the batch has no loss weights.

    >>> objective = sequence_to_sequence(lambda params, batch, key: params)
    >>> batch = {"labels": jnp.array([[1, 0]]), "loss_weights": jnp.array([[1.0, 0.0]])}
    >>> loss, aux = objective(jnp.eye(2)[None, ::-1] * 20, {}, batch, None)
    >>> float(aux.metrics["token_accuracy"].mean), float(loss.weight)
    (1.0, 1.0)
    """
    check_smoothing(label_smoothing, z_loss)

    def objective(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        del state
        labels, weights = batch["labels"], counted_tokens(batch)
        logits = apply(params, batch, key if dropout else None)
        loss = sequence_cross_entropy(
            logits, labels, weights, label_smoothing=label_smoothing, z_loss=z_loss
        )
        right = weights * (jnp.argmax(logits, -1) == labels)
        metrics = {"token_accuracy": Loss(jnp.sum(right), loss.weight)}
        if label_smoothing or z_loss:
            metrics["nll"] = sequence_cross_entropy(logits, labels, weights)
        return loss, Aux(metrics)

    return objective


def distill_teacher(
    objective: Objective,
    logits: Apply,
    share: float = 0.5,
    temperature: float = 2.0,
    *,
    dropout: bool = False,
    teacher: str = "teacher_logits",
) -> Objective:
    r"""Learn a teacher's next-token distribution beside the labels.

    $$ (1 - a)\, L + a\, T^2\, \mathrm{KL}\left(p_\text{teacher}^{(T)} \,\|\, p^{(T)}\right) $$

    over the tokens of `loss_weights`. The teacher's vocabulary is the student's.

    Args:
      objective: any objective over the same tokens, such as `sequence_to_sequence`.
      logits: `(params, batch, key) -> (B, U, V)` of the student.
      share: $a$ in [0, 1].
      temperature: $T > 0$.
      dropout: whether `logits` is given the step's key.
      teacher: the column of the teacher's logits; `with_teacher` adds it to batches.

    Returns:
      An objective with the metric `teacher`, the divergence before its share.

    References:
      Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531;
      Shleifer and Rush, *Pre-trained Summarization Distillation*, 2020, arXiv:2010.13002

    >>> objective = sequence_to_sequence(lambda params, batch, key: params)
    >>> near = distill_teacher(objective, lambda params, batch, key: params, share=1.0)
    >>> batch = {"labels": jnp.array([[1]]), "loss_weights": jnp.ones((1, 1))}
    >>> batch["teacher_logits"] = jnp.array([[[1.0, 2.0]]])
    >>> float(near(jnp.array([[[1.0, 2.0]]]), {}, batch, None)[0].sum)
    0.0
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the teacher's share is {share}; it goes from 0 (labels alone) to 1")

    def labelled(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        loss, aux = objective(params, state, batch, key)
        return Loss((1.0 - share) * loss.sum, loss.weight), aux

    return distill_logits(
        labelled, logits, share, temperature,
        counts=lambda batch: batch["loss_weights"], dropout=dropout, reference=teacher,
        name="teacher",
    )  # fmt: skip


def with_teacher(
    batch_at: Step,
    apply: Callable[[PyTree, Batch], ArrayLike],
    params: PyTree,
    *,
    name: str = "teacher_logits",
) -> Step:
    """Return batches that hold what a teacher says of each label, computed as they are read.

    The teacher is a model of its own: nothing of it enters the step that trains, and its weights
    are an argument of its compiled program.

    Args:
      batch_at: `step -> batch`.
      apply: `(params, batch) -> logits (B, U, V)` of the teacher.
      params: the teacher's.
      name: of the new column.

    >>> at = with_teacher(lambda step: {"x": jnp.ones(2)}, lambda w, batch: w * batch["x"], 3.0)
    >>> at(0)["teacher_logits"]
    Array([3., 3.], dtype=float32)
    """
    run = jax.jit(apply)
    apart = ("labels", "loss_weights", "valid", "index", name)

    def at(step: int) -> Batch:
        batch = batch_at(step)
        return {**batch, name: run(params, {k: v for k, v in batch.items() if k not in apart})}

    return at


def counted_tokens(batch: Batch) -> Array:
    """Return how much each label counts, (B, U) float32: `loss_weights`, 0 in filler rows.

    Raises:
      ValueError: if the batch has no loss weights.

    >>> counted_tokens({"loss_weights": jnp.ones((2, 1)), "valid": jnp.array([1.0, 0.0])})
    Array([[1.],
           [0.]], dtype=float32)
    """
    if "loss_weights" not in batch:
        raise ValueError(
            f"the batch has no 'loss_weights' (it has {', '.join(batch)}): which labels count is "
            "said there, (B, U) float32, and never guessed from ids; data.PairBatches gives them"
        )
    weights = jnp.asarray(batch["loss_weights"], jnp.float32)
    return weights * batch["valid"][:, None] if "valid" in batch else weights


def check_smoothing(label_smoothing: float, z_loss: float) -> None:
    """Refuse numbers out of range.

    >>> check_smoothing(1.0, 0.0)
    Traceback (most recent call last):
    ValueError: label_smoothing is 1.0; it lies in [0, 1)
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it lies in [0, 1)")
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"z_loss is {z_loss}; a weight is a finite number >= 0")
