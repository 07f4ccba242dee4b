"""What a metric is: a function of predictions and labels that may be made of simpler ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sftjax.evaluate.checks import Undefined

Metric = Callable[[Any, Any], float]
"""`(predictions, labels) -> float`; raises `Undefined` where it has no value, or gives NaN."""


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


class OfSums:
    """A metric of counts that are added up over the rows, of which a resample adds up others.

    >>> precision = OfSums(lambda sums: float(sums[0] / sums[1]))
    >>> precision(np.array([[1, 1], [0, 3]]), None)
    0.25
    """

    def __init__(self, score: Callable[[Any], float]) -> None:
        """Take what gives the metric of the sums; it raises `Undefined` where it has no value."""
        self.score = score

    def __call__(self, counts: Any, labels: object = None) -> float:
        """Return the metric of counts (N, ...), one item a row."""
        del labels
        return self.score(np.asarray(counts).sum(axis=0))


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
