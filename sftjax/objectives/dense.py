"""Maps with a class in every pixel: Dice and cross-entropy together, and the objective of them."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import Aux, Batch, Loss, Objective, PyTree
from sftjax.objectives.losses import IGNORE, token_cross_entropy
from sftjax.objectives.text import Apply


def dice_loss(
    logits: Array,
    labels: Array,
    valid: Array | None = None,
    *,
    smooth: float = 1.0,
    background: bool = True,
) -> Loss:
    r"""One minus the soft Dice overlap of every picture, mean over the classes (Milletari 2016).

    $$ \ell_i = 1 - \frac{1}{K} \sum_k \frac{2 \sum_p p_{ipk} y_{ipk} + s}
       {\sum_p p_{ipk} + \sum_p y_{ipk} + s} $$

    A picture's loss is a function of that picture alone, so batches may be cut anywhere. A class
    that is absent and not predicted counts as perfect, through $s$.

    Args:
      logits: (B, H, W, K).
      labels: (B, H, W), int; pixels labelled -100 do not count.
      valid: (B,).
      smooth: $s > 0$.
      background: whether class 0 is one of those averaged over.

    Returns:
      The sum over pictures, and how many count.

    >>> labels = jnp.array([[[0, 1]]])
    >>> float(dice_loss(jax.nn.one_hot(labels, 2) * 99, labels).mean)
    0.0
    """
    counts = (labels != IGNORE).astype(jnp.float32)[..., None]
    p = jax.nn.softmax(logits.astype(jnp.float32)) * counts
    y = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32) * counts
    if not background:
        p, y = p[..., 1:], y[..., 1:]
    both, total = jnp.sum(p * y, (1, 2)), jnp.sum(p + y, (1, 2))
    per_picture = 1 - jnp.mean((2 * both + smooth) / (total + smooth), -1)
    pictures = jnp.ones(len(logits)) if valid is None else valid.astype(jnp.float32)
    return Loss(jnp.sum(pictures * per_picture), jnp.sum(pictures))


def dice_cross_entropy(
    logits: Array,
    labels: Array,
    valid: Array | None = None,
    *,
    dice_weight: float = 1.0,
    class_weights: ArrayLike | None = None,
    background: bool = True,
) -> Loss:
    r"""Mean cross-entropy of a picture's pixels plus its Dice loss, a picture a row (nnU-Net).

    Args:
      logits: (B, H, W, K).
      labels: (B, H, W), int; -100 does not count.
      valid: (B,).
      dice_weight: 0 leaves cross-entropy.
      class_weights: (K,), of the cross-entropy.
      background: as in `dice_loss`.

    >>> labels = jnp.zeros((1, 2, 2), int)
    >>> round(float(dice_cross_entropy(jnp.zeros((1, 2, 2, 2)), labels, dice_weight=0.0).mean), 4)
    0.6931
    """
    pictures = jnp.ones(len(logits)) if valid is None else valid.astype(jnp.float32)
    one = jax.vmap(lambda z, y: token_cross_entropy(z, y, class_weights=class_weights).mean)
    nll = one(logits, labels)
    total = jnp.sum(pictures * nll)
    if dice_weight:
        dice = dice_loss(logits, labels, valid, background=background)
        total += dice_weight * jnp.asarray(dice.sum)
    return Loss(total, jnp.sum(pictures))


def dense_classification(apply: Apply, *, dropout: bool = False, **options: object) -> Objective:
    """A class in every pixel: `dice_cross_entropy` of `batch["labels"]` (B, H, W), pixel accuracy.

    Args:
      apply: `(params, batch, key) -> logits (B, H, W, K)`, of the labels' height and width.
      dropout: whether `apply` is given the step's key.
      **options: those of `dice_cross_entropy`.

    >>> objective = dense_classification(lambda params, batch, key: batch["x"] * params)
    >>> labels = jnp.array([[[0, 1]]])
    >>> batch = {"x": jax.nn.one_hot(labels, 2), "labels": labels}
    >>> float(objective(9.0, {}, batch, None)[1].metrics["pixel_accuracy"].mean)
    1.0
    """

    def objective(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        del state
        logits = apply(params, batch, key if dropout else None)
        labels, valid = batch["labels"], batch.get("valid")
        if logits.shape[:3] != labels.shape:
            raise ValueError(
                f"logits {logits.shape} do not fit labels {labels.shape}; a dense head returns one "
                "vector for every pixel of the labels"
            )
        counts = (labels != IGNORE).astype(jnp.float32)
        if valid is not None:
            counts = counts * valid[:, None, None]
        right = Loss(jnp.sum(counts * (jnp.argmax(logits, -1) == labels)), jnp.sum(counts))
        loss = dice_cross_entropy(logits, labels, valid, **options)  # type: ignore[arg-type]
        return loss, Aux({"pixel_accuracy": right})

    return objective
