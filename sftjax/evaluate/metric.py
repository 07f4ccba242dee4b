"""What a metric is: a function of predictions and labels that may be made of simpler ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sftjax.evaluate.checks import Undefined

Metric = Callable[[Any, Any], float]
"""`(predictions, labels) -> float`; raises `Undefined` where it has no value."""


class Prepared:
    """A metric of what each row is turned into by itself, so that resampling need not repeat it.

    >>> right = Prepared(lambda logits, labels: (logits.argmax(1) == labels, labels), row_mean)
    >>> right(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    0.5
    """

    def __init__(self, rows: Callable[[Any, Any], tuple[Any, Any]], metric: Metric) -> None:
        """Take what turns `(predictions, labels)` into others, row by row, and their metric."""
        self.rows, self.metric = rows, metric

    def __call__(self, predictions: Any, labels: Any) -> float:
        """Return the metric of the rows, turned."""
        return self.metric(*self.rows(predictions, labels))


def row_mean(scores: ArrayLike, labels: object = None) -> float:
    """Return the mean of one score a row.

    >>> row_mean([0.0, 1.0])
    0.5
    """
    del labels
    return float(np.mean(np.asarray(scores, np.float64)))


def counted_mean(scores: ArrayLike, labels: object = None) -> float:
    """Return the mean of one score a row; a row of NaN does not count.

    Raises:
      Undefined: (a ValueError) if no row counts.

    >>> counted_mean([0.0, 1.0, float("nan")])
    0.5
    """
    del labels
    values = np.asarray(scores, np.float64)
    counted = values[~np.isnan(values)]
    if not len(counted):
        raise Undefined("no row to divide by")
    return float(counted.mean())
