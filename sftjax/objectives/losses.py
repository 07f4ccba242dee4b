"""Losses as sums and weights, in float32, of logits and labels.

`valid` is 1 for rows that count and 0 for rows that only fill a batch; `None` counts every row.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import Loss

IGNORE = -100
"""The label of a token that does not count, as everywhere in the field."""


def cross_entropy(
    logits: Array,
    labels: Array,
    valid: Array | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | None = None,
) -> Loss:
    r"""Cross-entropy of one class per row, or of a distribution over classes.

    $$ \ell_i = -(1-\varepsilon)\, c_{y_i} \log p_{i y_i}
       - \frac{\varepsilon}{K} \sum_k c_k \log p_{ik}, \qquad
       L = \frac{\sum_i v_i \ell_i}{\sum_i v_i c_{y_i}} $$

    Of a distribution $q$ (mixup, a teacher) both are means over $q$: the first term is
    $\sum_k q_{ik} c_k \log p_{ik}$ and the weight $\sum_k q_{ik} c_k$.

    Args:
      logits: (..., K), any float.
      labels: (...), int, in [0, K); or (..., K), float, $q$.
      valid: (...), float or bool.
      label_smoothing: $\varepsilon$ in [0, 1).
      class_weights: (K,), $c$; `None` is 1.

    Returns:
      The sum of $v \ell$ and the weight $v c_y$, as torch normalizes weighted classes.

    >>> loss = cross_entropy(jnp.zeros((2, 4)), jnp.array([1, 3]), jnp.array([1.0, 0.0]))
    >>> round(float(loss.mean), 4), float(loss.weight)
    (1.3863, 1.0)
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    num_classes = logits.shape[-1]
    weights = jnp.ones(num_classes) if class_weights is None else jnp.asarray(class_weights)
    if weights.shape != (num_classes,):
        raise ValueError(
            f"class_weights has shape {weights.shape}, and the logits have {num_classes} classes; "
            "give one weight for each class"
        )
    if labels.ndim == logits.ndim:
        counts = _counts(valid, log_p[..., 0])
        share = labels.astype(jnp.float32) * weights
        weight = counts * jnp.sum(share, -1)
        total = -(1.0 - label_smoothing) * jnp.sum(counts * jnp.sum(share * log_p, -1))
    else:
        counts = _counts(valid, labels)
        chosen = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
        weight = weights[labels] * counts
        total = -(1.0 - label_smoothing) * jnp.sum(weight * chosen)
    if label_smoothing:
        spread = jnp.sum(log_p * weights, -1) / num_classes
        total -= label_smoothing * jnp.sum(counts * spread)
    return Loss(total, jnp.sum(weight))


def token_cross_entropy(logits: Array, labels: Array, **options: object) -> Loss:
    """Cross-entropy of one class per token; tokens labelled -100 do not count.

    Args:
      logits: (B, T, K).
      labels: (B, T), int, -100 where a token does not count.
      **options: those of `cross_entropy`.

    >>> float(token_cross_entropy(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, -100]])).weight)
    2.0
    """
    counts = labels != IGNORE
    return cross_entropy(logits, jnp.where(counts, labels, 0), counts, **options)  # type: ignore[arg-type]


def binary_cross_entropy(
    logits: Array, labels: Array, valid: Array | None = None, *, pos_weight: ArrayLike = 1.0
) -> Loss:
    r"""Cross-entropy of K independent yes/no labels per row.

    $$ \ell_{ik} = -\, w_k y_{ik} \log \sigma(z_{ik}) - (1 - y_{ik}) \log \sigma(-z_{ik}) $$

    Args:
      logits: (B, K), any float.
      labels: (B, K), float in [0, 1].
      valid: (B,).
      pos_weight: (K,) or scalar, $w$: how much a positive counts.

    Returns:
      The sum over rows and labels, and how many of those there are.

    >>> float(binary_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]])).mean)
    0.6931...
    """
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    nll = -(
        jnp.asarray(pos_weight) * labels * jax.nn.log_sigmoid(logits)
        + (1.0 - labels) * jax.nn.log_sigmoid(-logits)
    )
    counts = _counts(valid, labels[:, 0])
    return Loss(jnp.sum(nll * counts[:, None]), jnp.sum(counts) * logits.shape[-1])


def squared_error(predictions: Array, targets: Array, valid: Array | None = None) -> Loss:
    r"""Squared error, $\ell_i = (\hat y_i - y_i)^2$.

    Args:
      predictions: (B,) or (B, 1).
      targets: (B,), float.
      valid: (B,).

    >>> float(squared_error(jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])).mean)
    2.5
    """
    predictions = predictions.astype(jnp.float32).reshape(targets.shape)
    counts = _counts(valid, targets)
    return Loss(jnp.sum(counts * jnp.square(predictions - targets)), jnp.sum(counts))


def _counts(valid: Array | None, like: Array) -> Array:
    if valid is None:
        return jnp.ones(like.shape, jnp.float32)
    return valid.astype(jnp.float32)
