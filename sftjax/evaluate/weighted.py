"""The usual metrics of many weightings of the same rows at once.

A resample of rows is a weight for each: how often it was drawn. What a thousand resamples give is
then a product of matrices, where measuring them one by one would sort, round and divide a thousand
times. Which metrics have such a form is a table here; `bootstrap` measures any other one by one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftjax.evaluate.calibration import binned, brier, brier_rows, ece, nll, nll_rows
from sftjax.evaluate.checks import Undefined
from sftjax.evaluate.classification import (
    accuracy,
    balanced_accuracy,
    macro_f1,
    mcc,
    scores_of_counts,
    weighted_f1,
)
from sftjax.evaluate.conformal import coverage
from sftjax.evaluate.metric import Metric, OfSums, counted_mean, row_mean
from sftjax.evaluate.multilabel import multilabel_macro_f1, multilabel_micro_f1, subset_accuracy
from sftjax.evaluate.ranking import (
    auroc,
    auroc_one_vs_rest,
    auroc_per_label,
    average_precision,
    average_precision_one_vs_rest,
)
from sftjax.evaluate.regression import mae, mse, rmse

Numbers = NDArray[np.float64]

Weighted = Callable[[Any, Any, Numbers], Numbers]
"""`(predictions, labels, weights (N, R)) -> (R,)`, of N rows that the metric takes; NaN where it
has no value."""


def weighted_form(metric: Metric) -> Weighted | None:
    """Return a metric's form for many weightings; None if there is none.

    >>> many = weighted_form(accuracy)
    >>> many(np.array([0, 1]), np.array([0, 0]), np.array([[1.0, 2.0], [1.0, 0.0]])).tolist()
    [0.5, 1.0]
    """
    if isinstance(metric, OfSums):
        return _of_sums(metric)
    try:
        return _FORMS.get(metric)
    except TypeError:  # a callable object that cannot be a key
        return None


def _of_sums(metric: OfSums) -> Weighted:
    """The form of a metric of sums: all sums at once, and the metric of each."""

    def score(sums: Numbers) -> float:
        try:
            return float(metric.score(sums))
        except Undefined:
            return float("nan")

    def many(counts: Any, labels: Any, weights: Numbers) -> Numbers:
        del labels
        each = np.asarray(counts, np.float64)
        sums = weights.T @ each.reshape(len(each), -1)
        return np.array([score(one.reshape(each.shape[1:])) for one in sums])

    return many


def _mean(of: Callable[[Any, Any], Any]) -> Weighted:
    """The form of a metric that is the mean of a score a row."""

    def many(predictions: Any, labels: Any, weights: Numbers) -> Numbers:
        return np.asarray(of(predictions, labels), np.float64) @ weights / weights.sum(axis=0)

    return many


def _counted_mean(scores: Any, labels: Any, weights: Numbers) -> Numbers:
    del labels
    values = np.asarray(scores, np.float64)
    counts = ~np.isnan(values)
    return _over(values[counts] @ weights[counts], weights[counts].sum(axis=0))


def _squares(predictions: Any, labels: Any) -> Numbers:
    return (np.asarray(predictions, np.float64) - np.asarray(labels, np.float64)) ** 2


def _absolutes(predictions: Any, labels: Any) -> Numbers:
    return np.abs(np.asarray(predictions, np.float64) - np.asarray(labels, np.float64))


def _sums(values: Numbers, ids: NDArray[np.intp], size: int) -> Numbers:
    """Add up the rows (N, R) of each id, (size, R)."""
    order = np.argsort(ids, kind="stable")
    here, starts = np.unique(ids[order], return_index=True)
    sums = np.zeros((size, values.shape[1]))
    sums[here] = np.add.reduceat(values[order], starts, axis=0)
    return sums


def _counts(predictions: Any, labels: Any, weights: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Right, predicted and true rows of each class, (C, R) each."""
    predicted, true = np.asarray(predictions).astype(int), np.asarray(labels).astype(int)
    size = 1 + int(max(predicted.max(), true.max()))
    hits = predicted == true
    right = _sums(weights[hits], true[hits], size)
    return right, _sums(weights, predicted, size), _sums(weights, true, size)


def _balanced_accuracy(predictions: Any, labels: Any, weights: Numbers) -> Numbers:
    right, predicted, support = _counts(predictions, labels, weights)
    recall = scores_of_counts(right, predicted, support).recall
    return recall.sum(axis=0) / (support > 0).sum(axis=0)


def _macro_f1(predictions: Any, labels: Any, weights: Numbers) -> Numbers:
    right, predicted, support = _counts(predictions, labels, weights)
    f1 = scores_of_counts(right, predicted, support).f1
    return f1.sum(axis=0) / (predicted + support > 0).sum(axis=0)


def _weighted_f1(predictions: Any, labels: Any, weights: Numbers) -> Numbers:
    right, predicted, support = _counts(predictions, labels, weights)
    f1 = scores_of_counts(right, predicted, support).f1
    return (f1 * support).sum(axis=0) / support.sum(axis=0)


def _mcc(predictions: Any, labels: Any, weights: Numbers) -> Numbers:
    right, predicted, true = _counts(predictions, labels, weights)
    total = true.sum(axis=0)
    spread = (total**2 - (true**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    covariance = right.sum(axis=0) * total - (true * predicted).sum(axis=0)
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0)


def _ece(p: Any, labels: Any, weights: Numbers) -> Numbers:
    confidence, place = binned(p)
    gap = (p.argmax(axis=1) == np.asarray(labels)) - confidence
    sums = _sums(weights * gap[:, None], place, int(place.max()) + 1)
    return np.abs(sums).sum(axis=0) / weights.sum(axis=0)


def _kinds(values: Any, positive: Any, weights: Numbers) -> tuple[Numbers, Numbers]:
    """Weights of the negative and of the positive rows at each score, ascending: (U, R) each."""
    distinct, place = np.unique(np.asarray(values, np.float64), return_inverse=True)
    truth = np.asarray(positive).astype(bool)
    negatives, positives = (
        _sums(weights[kind], place[kind], len(distinct)) for kind in (~truth, truth)
    )
    return negatives, positives


def _over(part: Numbers, whole: Numbers) -> Numbers:
    """Divide, with NaN for what has nothing to divide by."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)


def _auroc(values: Any, positive: Any, weights: Numbers) -> Numbers:
    negatives, positives = _kinds(values, positive, weights)
    below = np.cumsum(negatives, axis=0) - negatives / 2  # of a tie one half
    return _over((positives * below).sum(axis=0), positives.sum(axis=0) * negatives.sum(axis=0))


def _average_precision(values: Any, positive: Any, weights: Numbers) -> Numbers:
    negatives, positives = (kind[::-1] for kind in _kinds(values, positive, weights))
    found = np.cumsum(positives, axis=0)
    precision = found / np.maximum(found + np.cumsum(negatives, axis=0), 1)
    return _over((positives * precision).sum(axis=0), positives.sum(axis=0))


def _one_vs_rest(of: Weighted) -> Weighted:
    """The form of a metric's plain mean over the classes, each against all others."""

    def many(scores: Any, labels: Any, weights: Numbers) -> Numbers:
        columns, true = np.asarray(scores, np.float64).T, np.asarray(labels)
        return np.mean([of(s, true == k, weights) for k, s in enumerate(columns)], axis=0)

    return many


def _auroc_one_vs_rest(scores: Any, labels: Any, weights: Numbers) -> Numbers:
    first, second = np.asarray(scores, np.float64).T[:2]
    if len(scores[0]) == 2 and np.array_equal(first, -second):  # either orders as the other does
        return _auroc(second, np.asarray(labels) == 1, weights)
    return _one_vs_rest(_auroc)(scores, labels, weights)


def _auroc_per_label(scores: Any, labels: Any, weights: Numbers) -> Numbers:
    pairs = zip(np.asarray(scores, np.float64).T, np.asarray(labels).T, strict=True)
    return np.mean([_auroc(s, t, weights) for s, t in pairs], axis=0)


def _cells(predictions: Any, labels: Any, weights: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Right, predicted and true rows of each label column, (L, R) each."""
    predicted, true = np.asarray(predictions).astype(bool), np.asarray(labels).astype(bool)
    right, said, there = (
        cells.T.astype(np.float64) @ weights for cells in (predicted & true, predicted, true)
    )
    return right, said, there


def _multilabel_micro_f1(predictions: Any, labels: Any, weights: Numbers) -> Numbers:
    counts = _cells(predictions, labels, weights)
    return scores_of_counts(*(count.sum(axis=0) for count in counts)).f1


def _multilabel_macro_f1(predictions: Any, labels: Any, weights: Numbers) -> Numbers:
    return scores_of_counts(*_cells(predictions, labels, weights)).f1.mean(axis=0)


def _rmse(predictions: Any, labels: Any, weights: Numbers) -> Numbers:
    return np.sqrt(_mean(_squares)(predictions, labels, weights))


_FORMS: dict[Metric, Weighted] = {
    row_mean: _mean(lambda scores, labels: scores),
    counted_mean: _counted_mean,
    accuracy: _mean(lambda predictions, labels: np.asarray(predictions) == np.asarray(labels)),
    balanced_accuracy: _balanced_accuracy,
    macro_f1: _macro_f1,
    weighted_f1: _weighted_f1,
    mcc: _mcc,
    auroc: _auroc,
    auroc_one_vs_rest: _auroc_one_vs_rest,
    auroc_per_label: _auroc_per_label,
    average_precision: _average_precision,
    average_precision_one_vs_rest: _one_vs_rest(_average_precision),
    nll: _mean(nll_rows),
    brier: _mean(brier_rows),
    ece: _ece,
    coverage: _mean(lambda sets, labels: np.asarray(sets)[np.arange(len(labels)), labels]),
    subset_accuracy: _mean(
        lambda predictions, labels: (np.asarray(predictions) == np.asarray(labels)).all(axis=1)
    ),
    multilabel_micro_f1: _multilabel_micro_f1,
    multilabel_macro_f1: _multilabel_macro_f1,
    mse: _mean(_squares),
    rmse: _rmse,
    mae: _mean(_absolutes),
}
