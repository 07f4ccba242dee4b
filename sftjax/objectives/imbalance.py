"""Losses for classes of unequal frequency: focal, effective numbers, logit adjustment.

Use one of them. Weighting and adjusting both, or adjusting in training and again at prediction,
corrects twice and is wrong for either error.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import Loss
from sftjax.objectives.losses import cross_entropy


def focal_loss(
    logits: Array,
    labels: Array,
    valid: Array | None = None,
    *,
    gamma: float = 2.0,
    class_weights: ArrayLike | None = None,
) -> Loss:
    r"""Cross-entropy that counts what is already right less (Lin et al. 2017).

    $$ \ell_i = -\alpha_{y_i} (1 - p_{i y_i})^\gamma \log p_{i y_i} $$

    Args:
      logits: (..., K).
      labels: (...), int; or (..., K), a distribution, over which $\ell$ is averaged.
      valid: (...).
      gamma: 0 is cross-entropy.
      class_weights: (K,), $\alpha$.

    Returns:
      The sum of $v \ell$ and, as `cross_entropy`, the weight $v \alpha_y$.

    >>> loss = focal_loss(jnp.zeros((1, 2)), jnp.array([0]), gamma=2.0)
    >>> round(float(loss.mean), 4)  # log 2 / 4
    0.1733
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    share = _shares(labels, logits) * (1.0 if class_weights is None else jnp.asarray(class_weights))
    # 1 - p from log p: no cancellation, and a finite gradient where p is 1.
    rest = -jnp.expm1(jnp.minimum(log_p, -1e-7))
    counts = jnp.ones(log_p.shape[:-1]) if valid is None else valid.astype(jnp.float32)
    total = -jnp.sum(counts * jnp.sum(share * rest**gamma * log_p, -1))
    return Loss(total, jnp.sum(counts * jnp.sum(share, -1)))


def binary_focal_loss(
    logits: Array,
    labels: Array,
    valid: Array | None = None,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Loss:
    r"""Focal loss of K independent yes/no labels per row.

    $$ \ell_{ik} = -\alpha_t (1 - p_t)^\gamma \log p_t $$

    where $p_t$ is the probability of the truth; $\alpha_t$ is $\alpha$ of yes, $1 - \alpha$ of no.

    Args:
      logits: (B, K).
      labels: (B, K), float in [0, 1].
      valid: (B,).
      gamma: 0 is binary cross-entropy.
      alpha: None weighs both alike.

    >>> float(binary_focal_loss(jnp.zeros((1, 1)), jnp.ones((1, 1)), gamma=0.0).mean)
    0.6931...
    """
    z, y = logits.astype(jnp.float32), labels.astype(jnp.float32)
    yes, no = jax.nn.sigmoid(-z) ** gamma, jax.nn.sigmoid(z) ** gamma
    if alpha is not None:
        yes, no = alpha * yes, (1 - alpha) * no
    nll = -(y * yes * jax.nn.log_sigmoid(z) + (1 - y) * no * jax.nn.log_sigmoid(-z))
    counts = jnp.ones(len(z)) if valid is None else valid.astype(jnp.float32)
    return Loss(jnp.sum(nll * counts[:, None]), jnp.sum(counts) * z.shape[-1])


def effective_number_weights(counts: Sequence[int] | np.ndarray, beta: float = 0.999) -> Array:
    r"""Return class weights by the effective number of rows (Cui et al. 2019), of mean 1.

    $$ c_k \propto \frac{1 - \beta}{1 - \beta^{n_k}} $$

    Args:
      counts: (K,), $n$: training rows of each class, all positive.
      beta: 0 gives equal weights; towards 1 they tend to $1 / n_k$.

    Returns:
      (K,) float32, for `class_weights`.

    Raises:
      ValueError: for a class without rows or beta outside [0, 1).

    >>> effective_number_weights([100, 10], beta=0.0).tolist()
    [1.0, 1.0]
    """
    rows = _positive(counts)
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; it lies in [0, 1), 0.9 to 0.9999 as a rule")
    # In log space: beta^n underflows, and 1 - beta^n cancels near beta = 1.
    weights = 1 / -np.expm1(rows * np.log(beta)) if beta else np.ones(len(rows))
    return jnp.asarray(weights * len(rows) / weights.sum(), jnp.float32)


def logit_adjusted(
    logits: Array,
    labels: Array,
    valid: Array | None = None,
    *,
    counts: Sequence[int] | np.ndarray,
    tau: float = 1.0,
    **options: object,
) -> Loss:
    r"""Cross-entropy of logits raised by the classes' log-frequency (Menon et al. 2021).

    $$ L = \mathrm{CE}(z + \tau \log \pi,\ y), \qquad \pi_k = n_k / \sum_j n_j $$

    The model's plain logits then choose for the *balanced* error; add nothing at prediction.

    Args:
      logits: (..., K).
      labels: as in `cross_entropy`; so are `valid` and the options.
      valid: as there.
      counts: (K,), training rows of each class.
      tau: 1 is consistent for the balanced error, 0 is cross-entropy.
      **options: those of `cross_entropy`.

    >>> logits, labels = jnp.array([[1.0, 2.0]]), jnp.array([0])
    >>> even = logit_adjusted(logits, labels, counts=[5, 5])
    >>> bool(jnp.isclose(even.sum, cross_entropy(logits, labels).sum))
    True
    """
    prior = _positive(counts)
    shift = jnp.asarray(tau * np.log(prior / prior.sum()), jnp.float32)
    return cross_entropy(logits.astype(jnp.float32) + shift, labels, valid, **options)  # type: ignore[arg-type]


def _shares(labels: Array, logits: Array) -> Array:
    if labels.ndim == logits.ndim:
        return labels.astype(jnp.float32)
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)


def _positive(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    rows = np.asarray(counts, np.float64)
    if rows.ndim != 1 or not (rows > 0).all():
        raise ValueError(
            f"the classes have {np.asarray(counts).tolist()} rows; every class needs one or more. "
            "Leave out classes without a training row."
        )
    return rows
