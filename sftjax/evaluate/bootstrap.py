"""Intervals for any metric: resample the rows, measure again, read off the quantiles.

Rows that belong together (sentences of one article) are resampled together, by group. A paired
comparison resamples the rows of both prediction sets alike, so what is hard for both cancels.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftjax.evaluate.checks import Undefined, same_rows

Metric = Callable[[Any, Any], float]
"""`(predictions, labels) -> float`; raises `Undefined` where it has no value."""

Rows = np.ndarray | Sequence[Any]
"""One item a row: an array's first axis, or a list."""


class Interval(NamedTuple):
    """A measured value and the range that resampling the rows gives it."""

    value: float
    """The metric on the rows as they are."""
    low: float
    high: float
    level: float
    """Share of repeated experiments whose interval holds the true value, 0.95 as a rule."""
    resamples: int
    """How many resamples the range was read from."""
    undefined: int
    """How many further resamples the metric had no value on (say, a single class)."""


def bootstrap(
    metric: Metric,
    predictions: Rows,
    labels: Rows,
    *,
    groups: Rows | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    method: Literal["percentile", "bca"] = "percentile",
    seed: int = 0,
) -> Interval:
    """Return a metric with its bootstrap confidence interval (Efron & Tibshirani 1993).

    `percentile` takes the `(1 ± level) / 2` quantiles of the metric on resampled rows. `bca`
    corrects them for bias and skew (Efron 1987), at the price of one more measurement a group.
    A metric that is 1 on every resample gets an interval of no width: few rows can say no more.

    Args:
      metric: `(predictions, labels) -> float`.
      predictions: N rows, as the metric takes them.
      labels: N rows, as the metric takes them.
      groups: N group ids; rows of one group are drawn together. Each row alone when left out.
      resamples: how many times to draw as many groups as there are, with replacement.
      level: between 0 and 1.
      method: "percentile" or "bca".
      seed: the same seed gives the same interval.

    Raises:
      ValueError: if rows differ in number, or the metric has no value on the rows themselves or
        on half of the resamples.

    >>> from sftjax.evaluate import accuracy
    >>> labels = np.arange(200) % 2
    >>> predictions = np.where(np.arange(200) < 160, labels, 1 - labels)
    >>> interval = bootstrap(accuracy, predictions, labels)
    >>> interval.value, 0.72 < interval.low < 0.76, 0.84 < interval.high < 0.87
    (0.8, True, True)
    """
    same_rows(predictions, labels)
    return _interval(metric, (predictions, labels), groups, resamples, level, method, seed)


def paired_bootstrap(
    metric: Metric,
    predictions: Rows,
    baseline: Rows,
    labels: Rows,
    *,
    groups: Rows | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    method: Literal["percentile", "bca"] = "percentile",
    seed: int = 0,
) -> Interval:
    """Return `metric(predictions) - metric(baseline)` on the same rows, with its interval.

    Args:
      metric: `(predictions, labels) -> float`.
      predictions: N rows of the one model.
      baseline: N rows of the other, in the same order.
      labels: N rows.
      groups: as in `bootstrap`; so are the rest.

    >>> from sftjax.evaluate import accuracy
    >>> labels = np.zeros(100, int)
    >>> worse = (np.arange(100) < 20).astype(int)
    >>> difference = paired_bootstrap(accuracy, labels, worse, labels)
    >>> difference.value, difference.low > 0.1
    (0.2, True)
    """
    same_rows(predictions, labels)
    same_rows(baseline, labels)

    def difference(ours: Rows, theirs: Rows, truth: Rows) -> float:
        return round(metric(ours, truth) - metric(theirs, truth), 12)

    rows = (predictions, baseline, labels)
    return _interval(difference, rows, groups, resamples, level, method, seed)


def _interval(
    statistic: Callable[..., float],
    arrays: tuple[Rows, ...],
    groups: Rows | None,
    resamples: int,
    level: float,
    method: str,
    seed: int,
) -> Interval:
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(
            f"resamples is {resamples} and level is {level}; use at least 2 resamples (1000 as a "
            "rule) and a level between 0 and 1 (0.95 as a rule)"
        )
    if method not in ("percentile", "bca"):
        raise ValueError(f"method {method!r} is unknown; use 'percentile' or 'bca'")
    group = _group_ids(groups, len(arrays[-1]))
    value = float(statistic(*arrays))
    drawn = [
        _measure(statistic, arrays, rows)
        for rows in _draws(group, resamples, np.random.default_rng(seed))
    ]
    defined = np.array([v for v in drawn if v is not None])
    if len(defined) < max(2, resamples / 2):
        raise Undefined(
            f"the metric has no value on {resamples - len(defined)} of {resamples} resamples of "
            f"{len(group)} rows in {group.max() + 1} groups; there are too few rows of some kind "
            "for an interval"
        )
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        tails = _bca_tails(tails, value, defined, _jackknife(statistic, arrays, group))
    low, high = np.quantile(defined, tails)
    return Interval(value, float(low), float(high), level, len(defined), resamples - len(defined))


def _group_ids(groups: Rows | None, rows: int) -> NDArray[np.intp]:
    """Number the groups from 0 and return the number of each row's."""
    if groups is None:
        return np.arange(rows)
    if len(groups) != rows:
        raise ValueError(f"{len(groups)} group ids for {rows} rows; pass one a row")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def _draws(
    group: NDArray[np.intp], resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """Yield the row numbers of each resample: every row as often as its group was drawn."""
    rows, size = np.arange(len(group)), int(group.max()) + 1
    for _ in range(resamples):
        times = np.bincount(rng.integers(size, size=size), minlength=size)
        yield np.repeat(rows, times[group])


def _measure(
    statistic: Callable[..., float], arrays: tuple[Rows, ...], rows: NDArray[np.intp]
) -> float | None:
    try:
        return float(statistic(*(_take(array, rows) for array in arrays)))
    except Undefined:
        return None


def _take(array: Rows, rows: NDArray[np.intp]) -> Rows:
    return array[rows] if isinstance(array, np.ndarray) else [array[row] for row in rows]


def _jackknife(
    statistic: Callable[..., float], arrays: tuple[Rows, ...], group: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Measure without each group in turn."""
    left_out = []
    for number in range(int(group.max()) + 1):
        measured = _measure(statistic, arrays, np.flatnonzero(group != number))
        if measured is None:
            raise ValueError(
                f"'bca' measures without each group in turn, and without group {number} the metric "
                "has no value; use method='percentile'"
            )
        left_out.append(measured)
    return np.array(left_out)


def _bca_tails(
    tails: NDArray[np.float64],
    value: float,
    drawn: NDArray[np.float64],
    left_out: NDArray[np.float64],
) -> NDArray[np.float64]:
    normal = NormalDist()
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    margin = 1 / (2 * len(drawn))
    bias = normal.inv_cdf(float(np.clip(below, margin, 1 - margin)))
    pull = left_out.mean() - left_out
    spread = np.sum(pull**2) ** 1.5
    skew = np.sum(pull**3) / (6 * spread) if spread > 0 else 0.0
    shifted = [bias + normal.inv_cdf(float(tail)) for tail in tails]
    return np.array([normal.cdf(bias + z / (1 - skew * z)) for z in shifted])
