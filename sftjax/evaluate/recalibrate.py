"""Make probabilities mean what they say: temperature, vector scaling, isotonic.

Each `fit_...` looks at validation rows and returns a state; `apply` makes probabilities of new
logits. Fitting on the rows a model was trained on calibrates its memory, not its judgement.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.calibration import log_softmax, nll, softmax
from sftjax.evaluate.checks import class_ids, labels_fit, same_rows, scores


class Scaling(NamedTuple):
    """Logits become `scale * logits + shift`."""

    scale: NDArray[np.float64]
    """() of a temperature (1 / T), (C,) of vector scaling."""
    shift: NDArray[np.float64]
    """() or (C,)."""

    @property
    def temperature(self) -> float:
        """T, where there is one."""
        return float(1 / np.mean(self.scale))

    def apply(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Return (N, C) probabilities.

        >>> Scaling(np.array(0.5), np.array(0.0)).apply([[2.0, 2.0]]).tolist()
        [[0.5, 0.5]]
        """
        return softmax(np.asarray(logits, np.float64) * self.scale + self.shift)


class Isotonic(NamedTuple):
    """A rising step function a class, of its probability against all others."""

    models: tuple[Any, ...]
    """scikit-learn's `IsotonicRegression`, one a class."""

    def apply(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Return (N, C) probabilities: each class's own, divided by their sum."""
        p = softmax(logits)
        each = np.stack([m.predict(c) for m, c in zip(self.models, p.T, strict=True)], 1)
        total = each.sum(1, keepdims=True)
        return np.where(total > 0, each / np.where(total > 0, total, 1), 1 / p.shape[1])


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> Scaling:
    """Return the one temperature of the least NLL on these rows (Guo et al. 2017).

    The order of the classes does not change. In `1 / T` the NLL is convex; its root is found by
    Newton steps held in a bracket.

    Args:
      logits: (N, C), of rows held out from training.
      labels: (N,) class ids.

    Raises:
      ValueError: if every row is right by any margin or the like, so that the best T is 0 or
        infinite.

    >>> logits = np.log([[0.8, 0.2]] * 10)
    >>> round(fit_temperature(3 * logits, [0] * 8 + [1] * 2).temperature, 4)
    3.0
    """
    z, true = _rows(logits, labels)
    margin = z - z[np.arange(len(z)), true][:, None]

    def slope(scale: float) -> float:
        return float(np.mean((softmax(scale * z) * margin).sum(1)))

    low, high = 1e-6, 1e6
    if slope(low) >= 0 or slope(high) <= 0:
        raise ValueError(
            f"no temperature is best on these {len(z)} rows (all right, or no better than chance); "
            "fit on more rows held out from training"
        )
    for _ in range(200):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return Scaling(np.array(np.sqrt(low * high)), np.array(0.0))


def fit_vector(logits: ArrayLike, labels: ArrayLike, *, ridge: float = 1e-4) -> Scaling:
    """Return a scale and a shift a class of the least NLL (vector scaling, Guo et al. 2017).

    Newton's method on a convex function, from the temperature's solution; a small ridge toward it
    keeps classes of few rows finite. The order of the classes may change.

    Args:
      logits: (N, C), of rows held out from training; many a class.
      labels: (N,) class ids.
      ridge: strength of the pull toward the one temperature, a row.
    """
    z, true = _rows(logits, labels)
    rows, classes = z.shape
    start = np.append(np.full(classes, fit_temperature(z, true).scale), np.zeros(classes))
    w = start.copy()
    hot = np.eye(classes)[true]

    def loss(w: NDArray[np.float64]) -> float:
        return nll(z * w[:classes] + w[classes:], true) + ridge / 2 * np.sum((w - start) ** 2)

    for _ in range(100):
        p = np.exp(log_softmax(z * w[:classes] + w[classes:]))
        off = (p - hot) / rows
        gradient = np.append((off * z).sum(0), off.sum(0)) + ridge * (w - start)
        wide = np.concatenate([p * z, p], 1)
        inside = np.eye(classes)
        curve = (p[:, :, None] * inside).reshape(rows, classes, classes)
        blocks = [[np.einsum("nij,ni,nj->ij", curve, a, b) for b in (z, np.ones_like(z))]
                  for a in (z, np.ones_like(z))]  # fmt: skip
        hessian = (np.block(blocks) - wide.T @ wide) / rows + ridge * np.eye(2 * classes)
        move = np.linalg.solve(hessian, gradient)
        size, before = 1.0, loss(w)
        while loss(w - size * move) > before and size > 1e-8:
            size /= 2
        w = w - size * move
        if np.abs(gradient).max() < 1e-10:
            break
    return Scaling(w[:classes], w[classes:])


def fit_isotonic(logits: ArrayLike, labels: ArrayLike) -> Isotonic:
    """Return rising step functions fitted to each class's probability (Zadrozny & Elkan 2002).

    Args:
      logits: (N, C), of rows held out from training; hundreds, for it is free to overfit.
      labels: (N,) class ids.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError as error:
        raise ImportError(
            "isotonic calibration needs scikit-learn: pip install scikit-learn"
        ) from error
    z, true = _rows(logits, labels)
    models = [
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(column, true == label)
        for label, column in enumerate(softmax(z).T)
    ]
    return Isotonic(tuple(models))


def _rows(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    z, true = scores("logits", logits, ndim=2), class_ids("labels", labels)
    same_rows(z, true)
    labels_fit(true, z.shape[1])
    return z, true
