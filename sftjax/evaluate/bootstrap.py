"""Intervals for any metric: resample the rows, measure again, read off the quantiles.

Rows that belong together (sentences of one article) are resampled together, by group. A paired
comparison resamples the rows of both prediction sets alike, so what is hard for both cancels.
The usual metrics are measured on many resamples at once (`weighted`), any other one by one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftjax.evaluate.checks import Undefined, same_rows
from sftjax.evaluate.metric import Metric, Prepared
from sftjax.evaluate.weighted import Numbers, weighted_form

Rows = np.ndarray | Sequence[Any]
"""One item a row: an array's first axis, or a list."""


Times = NDArray[np.intp]
"""(N, R): how often each row was drawn for each of some resamples."""

_AT_ONCE = 2**21
"""So many rows, of all resamples together, are in memory at once."""


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
    metric, rows = _prepared(metric, predictions, labels)
    statistic = _Statistic(metric, weighted_form(metric))
    return _interval(statistic, rows, groups, resamples, level, method, seed)


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

    own, ours = _prepared(metric, predictions, labels)
    _, theirs = _prepared(metric, baseline, labels)

    def difference(a: Rows, truth: Rows, b: Rows, truth_of_b: Rows) -> float:
        return round(own(a, truth) - own(b, truth_of_b), 12)

    form = weighted_form(own)

    def many(a: Rows, truth: Rows, b: Rows, truth_of_b: Rows, weights: Numbers) -> Numbers:
        assert form is not None
        return np.round(form(a, truth, weights) - form(b, truth_of_b, weights), 12)

    statistic = _Statistic(difference, None if form is None else many)
    return _interval(statistic, (*ours, *theirs), groups, resamples, level, method, seed)


class _Statistic(NamedTuple):
    one: Callable[..., float]
    """Of arrays of rows; raises `Undefined` where it has no value."""
    many: Callable[..., Numbers] | None
    """Of the same arrays and (N, R) weights of their rows; NaN where it has no value."""


def _prepared(metric: Metric, predictions: Rows, labels: Rows) -> tuple[Metric, tuple[Rows, Rows]]:
    """Do once what a metric does to each row by itself."""
    rows = predictions, labels
    while isinstance(metric, Prepared):
        rows, metric = metric.rows(*rows), metric.metric
    return metric, rows


def _interval(
    statistic: _Statistic,
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
    value = float(statistic.one(*arrays))
    draws = _draws(group, resamples, np.random.default_rng(seed))
    drawn = _measured(statistic, arrays, draws)
    defined = drawn[~np.isnan(drawn)]
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


def _draws(group: NDArray[np.intp], resamples: int, rng: np.random.Generator) -> Iterator[Times]:
    """Yield resamples, some at a time: every row as often as its group was drawn."""
    size = int(group.max()) + 1
    for some in _portions(resamples, len(group)):
        drawn = rng.integers(size, size=(len(some), size)) + size * np.arange(len(some))[:, None]
        times = np.bincount(drawn.ravel(), minlength=len(some) * size)
        yield times.reshape(len(some), size).T[group]


def _portions(resamples: int, rows: int) -> Iterator[range]:
    """Cut resamples so that the rows of a portion fit in memory."""
    at_once = max(1, _AT_ONCE // rows)
    for first in range(0, resamples, at_once):
        yield range(first, min(first + at_once, resamples))


def _measured(
    statistic: _Statistic, arrays: tuple[Rows, ...], draws: Iterable[Times]
) -> NDArray[np.float64]:
    """Measure each resample; NaN where there is no value."""
    if statistic.many is not None:
        return np.concatenate(
            [statistic.many(*arrays, times.astype(np.float64)) for times in draws]
        )
    return np.array([_measure(statistic, arrays, one) for times in draws for one in times.T])


def _measure(statistic: _Statistic, arrays: tuple[Rows, ...], times: NDArray[np.intp]) -> float:
    rows = np.repeat(np.arange(len(times)), times)
    try:
        return float(statistic.one(*(_take(array, rows) for array in arrays)))
    except Undefined:
        return float("nan")


def _take(array: Rows, rows: NDArray[np.intp]) -> Rows:
    return array[rows] if isinstance(array, np.ndarray) else [array[row] for row in rows]


def _jackknife(
    statistic: _Statistic, arrays: tuple[Rows, ...], group: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Measure without each group in turn."""
    without = (
        (group[:, None] != np.array(some)).astype(np.intp)
        for some in _portions(int(group.max()) + 1, len(group))
    )
    left_out = _measured(statistic, arrays, without)
    if np.isnan(left_out).any():
        raise ValueError(
            "'bca' measures without each group in turn, and without group "
            f"{np.flatnonzero(np.isnan(left_out))[0]} the metric has no value; use "
            "method='percentile'"
        )
    return left_out


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
