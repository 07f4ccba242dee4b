"""How far predicted numbers are from the true ones, and whether they rise together."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import Undefined, same_rows, scores
from sftjax.evaluate.ranking import average_ranks


def mse(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean squared error, `mean (y' - y)²`.

    >>> mse([1.0, 2.0], [1.0, 4.0])
    2.0
    """
    predicted, true = _pair(predictions, labels)
    return float(np.mean((predicted - true) ** 2))


def rmse(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the root of the mean squared error, in the labels' own unit.

    >>> rmse([1.0, 2.0], [1.0, 4.0]) == 2**0.5
    True
    """
    return float(np.sqrt(mse(predictions, labels)))


def mae(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean absolute error, `mean |y' - y|`.

    >>> mae([1.0, 2.0], [1.0, 4.0])
    1.0
    """
    predicted, true = _pair(predictions, labels)
    return float(np.mean(np.abs(predicted - true)))


def r2(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of the labels' variance explained: `1 - sum (y' - y)² / sum (y - mean y)²`.

    Raises:
      Undefined: (a ValueError) if all labels are equal.

    >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    1.0
    """
    predicted, true = _pair(predictions, labels)
    _varies("R2", "labels", true)
    spread = np.sum((true - true.mean()) ** 2)
    return float(1 - np.sum((predicted - true) ** 2) / spread)


def pearson(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the linear correlation of predictions and labels, in [-1, 1].

    Raises:
      Undefined: (a ValueError) if the predictions or the labels are all equal.

    >>> round(pearson([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]), 4)
    0.982
    """
    predicted, true = _pair(predictions, labels)
    _varies("Pearson's correlation", "predictions", predicted)
    _varies("Pearson's correlation", "labels", true)
    return _correlation(predicted, true)


def spearman(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the correlation of the ranks (ties share their mean rank), in [-1, 1].

    Raises:
      Undefined: (a ValueError) if the predictions or the labels are all equal.

    >>> spearman([1.0, 2.0, 400.0], [1.0, 2.0, 3.0])
    1.0
    """
    predicted, true = _pair(predictions, labels)
    _varies("Spearman's correlation", "predictions", predicted)
    _varies("Spearman's correlation", "labels", true)
    return _correlation(average_ranks(predicted), average_ranks(true))


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    x, y = _centred(x), _centred(y)
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _centred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.mean()
    return x / np.abs(x).max()  # the square of a tiny spread would underflow


def _varies(metric: str, name: str, values: NDArray[np.float64]) -> None:
    if (values == values[0]).all():
        raise Undefined(f"{metric} has no value: all {len(values)} {name} are {values[0]:g}")


def _pair(
    predictions: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    predicted = scores("predictions", predictions, ndim=1)
    true = scores("labels", labels, ndim=1)
    same_rows(predicted, true)
    return predicted, true
