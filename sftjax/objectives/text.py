"""Objectives `(params, model_state, batch, key) -> (Loss, Aux)` of any model that gives logits."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import Aux, Batch, Loss, Objective, PyTree
from sftjax.objectives.imbalance import binary_focal_loss
from sftjax.objectives.losses import (
    IGNORE,
    binary_cross_entropy,
    cross_entropy,
    squared_error,
    token_cross_entropy,
)

Apply = Callable[[PyTree, Batch, Array | None], Array]
"""`(params, batch, key) -> logits`; `key=None` asks for no randomness (dropout off)."""


def classification(
    apply: Apply,
    *,
    dropout: bool = False,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | None = None,
) -> Objective:
    """One class per row: `cross_entropy` of `batch["labels"]` (B,), and the accuracy.

    Labels (B, K) are distributions over the classes; the largest is the one to be right about.

    Args:
      apply: `(params, batch, key) -> logits (B, K)`.
      dropout: whether `apply` is given the step's key; off by default, as a frozen trunk wants it.
      label_smoothing: as in `cross_entropy`.
      class_weights: as in `cross_entropy`.

    >>> objective = classification(lambda params, batch, key: batch["x"] @ params)
    >>> batch = {"x": jnp.eye(2), "labels": jnp.array([0, 1])}
    >>> loss, aux = objective(jnp.eye(2) * 9.0, {}, batch, None)
    >>> float(aux.metrics["accuracy"].mean)
    1.0
    """

    def objective(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        del state
        logits, valid = apply(params, batch, key if dropout else None), batch.get("valid")
        labels = batch["labels"]
        loss = cross_entropy(
            logits, labels, valid, label_smoothing=label_smoothing, class_weights=class_weights
        )
        truth = labels if labels.ndim == 1 else jnp.argmax(labels, -1)
        return loss, Aux({"accuracy": _share(jnp.argmax(logits, -1) == truth, valid)})

    return objective


def multi_label(
    apply: Apply, *, dropout: bool = False, pos_weight: ArrayLike = 1.0, gamma: float = 0.0
) -> Objective:
    """K yes/no labels per row: `binary_cross_entropy` of `batch["labels"]` (B, K).

    Args:
      apply: `(params, batch, key) -> logits (B, K)`.
      dropout: whether `apply` is given the step's key.
      pos_weight: as in `binary_cross_entropy`.
      gamma: above 0 the loss is `binary_focal_loss` with it, and positives weigh like negatives.

    >>> objective = multi_label(lambda params, batch, key: batch["x"] @ params)
    >>> batch = {"x": jnp.eye(2), "labels": jnp.eye(2)}
    >>> float(objective(jnp.eye(2), {}, batch, None)[0].weight)
    4.0
    """

    def objective(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        del state
        logits, labels, valid = (
            apply(params, batch, key if dropout else None),
            batch["labels"],
            batch.get("valid"),
        )
        exact = jnp.all((logits > 0) == (labels > 0.5), -1)
        if gamma:
            loss = binary_focal_loss(logits, labels, valid, gamma=gamma)
        else:
            loss = binary_cross_entropy(logits, labels, valid, pos_weight=pos_weight)
        return loss, Aux({"subset_accuracy": _share(exact, valid)})

    return objective


def regression(apply: Apply, *, dropout: bool = False) -> Objective:
    """One number per row: `squared_error` of `batch["labels"]` (B,).

    >>> objective = regression(lambda params, batch, key: batch["x"] * params)
    >>> float(objective(2.0, {}, {"x": jnp.ones((1, 1)), "labels": jnp.zeros(1)}, None)[0].sum)
    4.0
    """

    def objective(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        del state
        predictions, targets = apply(params, batch, key if dropout else None), batch["labels"]
        error = squared_error(predictions, targets, batch.get("valid"))
        return error, Aux({"mse": error})

    return objective


def token_classification(apply: Apply, *, dropout: bool = False, **options: Any) -> Objective:
    """One class per token: `token_cross_entropy` of `batch["labels"]` (B, T), -100 not counted.

    >>> objective = token_classification(lambda params, batch, key: batch["x"] @ params)
    >>> batch = {"x": jnp.eye(2)[None], "labels": jnp.array([[0, -100]])}
    >>> float(objective(jnp.eye(2), {}, batch, None)[0].weight)
    1.0
    """

    def objective(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        del state
        logits, labels = apply(params, batch, key if dropout else None), batch["labels"]
        if "valid" in batch:
            labels = jnp.where(batch["valid"][:, None] > 0, labels, IGNORE)
        right = _share(jnp.argmax(logits, -1) == labels, labels != IGNORE)
        return token_cross_entropy(logits, labels, **options), Aux({"token_accuracy": right})

    return objective


def objective_of(kind: str, problem_type: str, apply: Apply, **options: Any) -> Objective:
    """Return the objective that fits a head (`"sequence"` or `"token"`) and a problem type.

    Raises:
      ValueError: if there is no labelled objective for that head.

    >>> objective = objective_of("sequence", "regression", lambda params, batch, key: params)
    """
    makers = {
        ("sequence", "single_label_classification"): classification,
        ("sequence", "multi_label_classification"): multi_label,
        ("sequence", "regression"): regression,
        ("token", "single_label_classification"): token_classification,
    }
    if (kind, problem_type) not in makers:
        known = ", ".join(f"{head} with {problem}" for head, problem in makers)
        raise ValueError(f"no objective for a {kind} head with {problem_type}; there are: {known}")
    return makers[kind, problem_type](apply, **options)


def _share(right: Array, counts: Array | None) -> Loss:
    counts = jnp.ones(right.shape) if counts is None else counts.astype(jnp.float32)
    return Loss(jnp.sum(right * counts), jnp.sum(counts))
