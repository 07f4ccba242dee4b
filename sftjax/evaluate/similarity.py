"""How far a model's features and outputs drifted from another's on the same rows."""

import numpy as np
from numpy.typing import ArrayLike

from sftjax.evaluate.calibration import log_softmax
from sftjax.evaluate.checks import Undefined, same_rows, scores


def linear_cka(one: ArrayLike, other: ArrayLike) -> float:
    """Return the linear centred kernel alignment of two feature matrices (Kornblith et al. 2019).

    `|Y' X|² / (|X' X| |Y' Y|)` in Frobenius norms, columns centred: 1 if one is a rotation and
    scaling of the other, 0 if they are uncorrelated.

    Args:
      one: (N, D) features.
      other: (N, E) features of the same rows.

    Raises:
      Undefined: (a ValueError) if all rows of a matrix are equal.

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(linear_cka(x, 2 * x[:, ::-1]), 6)
    1.0
    """
    x, y = scores("one", one, ndim=2), scores("other", other, ndim=2)
    same_rows(x, y)
    for name, features in (("first", x), ("second", y)):
        if (features == features[0]).all():
            raise Undefined(f"CKA has no value: all rows of the {name} matrix are equal")
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(min(np.linalg.norm(y.T @ x) ** 2 / own, 1.0))


def kl_divergence(reference: ArrayLike, logits: ArrayLike) -> float:
    """Return the mean over rows of `KL(p0 || p) = sum_c p0 (log p0 - log p)`, in nats.

    Args:
      reference: (N, C) logits of the pretrained model, C of at least 2.
      logits: (N, C) logits of the model now.

    Raises:
      ValueError: if the shapes differ, or there is one column, where any two models agree.

    >>> round(kl_divergence([[0.0, 0.0]], [[0.0, 1.0]]), 4)
    0.1201
    """
    z0, z = scores("reference", reference, ndim=2), scores("logits", logits, ndim=2)
    if z0.shape != z.shape:
        raise ValueError(f"reference logits are {z0.shape}, logits {z.shape}; pass the same rows")
    if z.shape[1] == 1:
        raise ValueError(
            "the logits have one column, and a softmax over one class is always 1; pass (N, 2) for "
            "two classes, and no logits for a regression"
        )
    log_p0, log_p = log_softmax(z0), log_softmax(z)
    return float(max(np.mean(np.sum(np.exp(log_p0) * (log_p0 - log_p), axis=1)), 0.0))
