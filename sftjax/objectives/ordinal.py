"""Classes that have an order (grades): K - 1 questions 'is it more than k', and their reading."""

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import Aux, Batch, Loss, Objective, PyTree
from sftjax.objectives.text import Apply


def ordinal_loss(logits: Array, labels: Array, valid: Array | None = None) -> Loss:
    r"""Binary cross-entropy of the K - 1 questions whether the grade is above each k.

    $$ \ell_i = -\sum_{k=0}^{K-2} [y_i > k] \log \sigma(z_{ik})
       + [y_i \le k] \log \sigma(-z_{ik}) $$

    The extended binary form of Li and Lin (2007). With `rank_logits` of one score it is CORAL (Cao
    et al. 2020), whose probabilities cannot cross.

    Args:
      logits: (B, K - 1).
      labels: (B,), int in [0, K).
      valid: (B,).

    Returns:
      The sum over rows, and how many rows count.

    >>> round(float(ordinal_loss(jnp.zeros((1, 2)), jnp.array([1])).mean), 4)  # 2 log 2
    1.3863
    """
    z = logits.astype(jnp.float32)
    above = labels[:, None] > jnp.arange(z.shape[-1])
    nll = -jnp.sum(jnp.where(above, jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)), -1)
    counts = jnp.ones(len(z)) if valid is None else valid.astype(jnp.float32)
    return Loss(jnp.sum(counts * nll), jnp.sum(counts))


def rank_logits(scores: Array, gaps: Array) -> Array:
    r"""Return CORAL's logits: one score a row against K - 1 thresholds that only fall.

    $$ z_{ik} = s_i + b_k, \qquad b_0 = g_0,\ b_k = b_{k-1} - \mathrm{softplus}(g_k) $$

    Args:
      scores: (B,) or (B, 1).
      gaps: (K - 1,), free parameters $g$.

    >>> [round(float(z), 4) for z in rank_logits(jnp.zeros(1), jnp.zeros(3))[0]]
    [0.0, -0.6931, -1.3863]
    """
    falls = jnp.cumsum(jnp.concatenate([jnp.zeros(1), jax.nn.softplus(gaps[1:])]))
    return scores.reshape(-1, 1) + gaps[0] - falls


def ordinal_probabilities(logits: Array) -> Array:
    r"""Return the probability of each of the K grades: $P(y > k - 1) - P(y > k)$.

    Where free logits cross, $P(y > k)$ is first brought to its running minimum, so that none is
    negative; they sum to 1 as they are.

    Args:
      logits: (..., K - 1).

    >>> ordinal_probabilities(jnp.zeros((1, 1))).tolist()
    [[0.5, 0.5]]
    """
    above = jax.lax.cummin(jax.nn.sigmoid(logits.astype(jnp.float32)), axis=logits.ndim - 1)
    ones, zeros = jnp.ones_like(above[..., :1]), jnp.zeros_like(above[..., :1])
    full = jnp.concatenate([ones, above, zeros], -1)
    return full[..., :-1] - full[..., 1:]


def ordinal_grades(logits: Array) -> Array:
    """Return the grade of each row: how many of the questions are answered yes (the median grade).

    >>> ordinal_grades(jnp.array([[2.0, 1.0, -1.0]])).tolist()
    [2]
    """
    return jnp.sum(logits > 0, -1).astype(jnp.int32)


def ordinal(apply: Apply, *, dropout: bool = False) -> Objective:
    """One grade per row: `ordinal_loss` of `batch["labels"]` (B,), accuracy and mean distance.

    Args:
      apply: `(params, batch, key) -> logits (B, K - 1)`.
      dropout: whether `apply` is given the step's key.

    >>> objective = ordinal(lambda params, batch, key: batch["x"] * params)
    >>> batch = {"x": jnp.array([[9.0, -9.0]]), "labels": jnp.array([1])}
    >>> float(objective(1.0, {}, batch, None)[1].metrics["accuracy"].mean)
    1.0
    """

    def objective(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        del state
        logits = apply(params, batch, key if dropout else None)
        labels, valid = batch["labels"], batch.get("valid")
        off = jnp.abs(ordinal_grades(logits) - labels)
        counts = jnp.ones(len(labels)) if valid is None else valid.astype(jnp.float32)
        rows = jnp.sum(counts)
        metrics = {
            "accuracy": Loss(jnp.sum(counts * (off == 0)), rows),
            "mean_absolute_error": Loss(jnp.sum(counts * off), rows),
        }
        return ordinal_loss(logits, labels, valid), Aux(metrics)

    return objective
