"""The objective of any loss of logits and class labels."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from sftjax.core import Aux, Batch, Loss, Objective, PyTree
from sftjax.objectives.text import Apply

ClassLoss = Callable[[Array, Array, Array | None], Loss]
"""`(logits, labels, valid) -> Loss`."""


def labelled(apply: Apply, loss: ClassLoss, *, dropout: bool = False) -> Objective:
    """One class per row under any loss, such as `focal_loss`; and the accuracy.

    Args:
      apply: `(params, batch, key) -> logits (B, K)`.
      loss: `(logits, labels, valid) -> Loss`; bind its options with `functools.partial`.
      dropout: whether `apply` is given the step's key.

    >>> from sftjax.objectives import focal_loss
    >>> objective = labelled(lambda params, batch, key: batch["x"] @ params, focal_loss)
    >>> batch = {"x": jnp.eye(2), "labels": jnp.array([0, 1])}
    >>> float(objective(jnp.eye(2), {}, batch, None)[1].metrics["accuracy"].mean)
    1.0
    """

    def objective(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        del state
        logits = apply(params, batch, key if dropout else None)
        labels, valid = batch["labels"], batch.get("valid")
        truth = labels if labels.ndim == 1 else jnp.argmax(labels, -1)
        counts = jnp.ones(len(logits)) if valid is None else valid.astype(jnp.float32)
        right = Loss(jnp.sum(counts * (jnp.argmax(logits, -1) == truth)), jnp.sum(counts))
        return loss(logits, labels, valid), Aux({"accuracy": right})

    return objective
