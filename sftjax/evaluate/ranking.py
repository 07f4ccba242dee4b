"""How well scores put the right rows first: AUROC and average precision.

Both depend only on the order of the scores, and equal scores share a place.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import (
    Undefined,
    class_ids,
    indicators,
    labels_fit,
    same_rows,
    scores,
)


def average_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Return the place of every value in ascending order, from 1; ties share their mean place.

    >>> average_ranks([10.0, 30.0, 20.0, 20.0]).tolist()
    [1.0, 4.0, 2.5, 2.5]
    """
    array = np.asarray(values)
    order = np.argsort(array, kind="stable")
    ordered = array[order]
    first = np.append(True, ordered[1:] != ordered[:-1])
    starts = np.append(np.flatnonzero(first), len(array))
    run = np.cumsum(first) - 1
    ranks = np.empty(len(array))
    ranks[order] = (starts[run] + starts[run + 1] + 1) / 2
    return ranks


def auroc(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the chance that a random positive row scores above a random negative one.

    The area under the ROC curve, as the Mann-Whitney statistic of the average ranks `r`:
    `(sum_{positive} r - P (P + 1) / 2) / (P N)`; a tie counts one half.

    Args:
      predictions: (N,) scores, higher for class 1.
      labels: (N,) 0 or 1.

    Raises:
      Undefined: (a ValueError) if only one of the two classes is present.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    """
    return _auroc(*_binary(predictions, labels), of="labels")


def auroc_one_vs_rest(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the plain mean over classes of the AUROC of that class against all others.

    Args:
      predictions: (N, C) scores, one column a class; compared within a column, so pass
        probabilities rather than logits when their offset varies by row.
      labels: (N,) class ids below C.

    Raises:
      Undefined: (a ValueError) naming the class that no row, or every row, has.

    >>> auroc_one_vs_rest([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]], [0, 1, 2])
    1.0
    """
    columns = scores("predictions", predictions, ndim=2)
    true = class_ids("labels", labels)
    same_rows(columns, true)
    labels_fit(true, columns.shape[1])
    return float(
        np.mean(
            [
                _auroc(column, true == label, of=f"class {label}")
                for label, column in enumerate(columns.T)
            ]
        )
    )


def auroc_per_class(predictions: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return the AUROC of each class against all others, NaN for a class without either kind.

    Args:
      predictions: (N, C) scores, as in `auroc_one_vs_rest`.
      labels: (N,) class ids below C.

    >>> auroc_per_class([[0.8, 0.2, 0.0], [0.3, 0.7, 0.0]], [0, 1]).tolist()
    [1.0, 1.0, nan]
    """
    return _per_class(auroc, predictions, labels)


def average_precision_per_class(predictions: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return the average precision of each class against all others, NaN for a class without rows.

    Args:
      predictions: (N, C) scores, as in `auroc_one_vs_rest`.
      labels: (N,) class ids below C.

    >>> average_precision_per_class([[0.8, 0.2], [0.3, 0.7]], [0, 1]).tolist()
    [1.0, 1.0]
    """
    return _per_class(average_precision, predictions, labels)


def average_precision_one_vs_rest(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the plain mean over the classes of `average_precision_per_class` (macro AUPRC).

    Raises:
      Undefined: (a ValueError) naming a class that no row has.

    >>> average_precision_one_vs_rest([[0.8, 0.2], [0.3, 0.7]], [0, 1])
    1.0
    """
    each = average_precision_per_class(predictions, labels)
    if np.isnan(each).any():
        missing = int(np.flatnonzero(np.isnan(each))[0])
        raise Undefined(f"average precision has no value: no row is of class {missing}")
    return float(each.mean())


def auroc_per_label(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the plain mean over the columns of a multi-label task of each column's AUROC.

    Args:
      predictions: (N, L) scores.
      labels: (N, L) of 0 and 1.

    Raises:
      Undefined: (a ValueError) naming the column that is all 0 or all 1.

    >>> auroc_per_label([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]])
    1.0
    """
    columns = scores("predictions", predictions, ndim=2)
    true = indicators("labels", labels)
    if columns.shape != true.shape:
        raise ValueError(f"predictions are {columns.shape}, labels {true.shape}; pass one a label")
    pairs = zip(columns.T, true.T, strict=True)
    return float(np.mean([_auroc(s, t, of=f"label column {k}") for k, (s, t) in enumerate(pairs)]))


def average_precision(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean precision at each step of recall, `sum_k (R_k - R_{k-1}) P_k`.

    The area under the precision-recall curve without interpolation; rows with equal scores enter
    together.

    Args:
      predictions: (N,) scores, higher for class 1.
      labels: (N,) 0 or 1.

    Raises:
      Undefined: (a ValueError) if no row is of class 1.

    >>> round(average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), 4)
    0.8333
    """
    values, positive = _binary(predictions, labels)
    if not positive.any():
        raise Undefined("average precision has no value: no row is of class 1")
    order = np.argsort(-values, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    found = np.cumsum(positive[order])[last_of_tie]
    return float(np.diff(found, prepend=0) @ (found / (last_of_tie + 1)) / positive.sum())


def _per_class(
    metric: Callable[..., float], predictions: ArrayLike, labels: ArrayLike
) -> NDArray[np.float64]:
    columns = scores("predictions", predictions, ndim=2)
    true = class_ids("labels", labels)
    same_rows(columns, true)
    labels_fit(true, columns.shape[1])
    found = []
    for label, column in enumerate(columns.T):
        try:
            found.append(metric(column, true == label))
        except Undefined:
            found.append(np.nan)
    return np.array(found)


def _binary(
    predictions: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = scores("predictions", predictions, ndim=1)
    positive = indicators("labels", labels, ndim=1)
    same_rows(values, positive)
    return values, positive


def _auroc(values: NDArray[np.float64], positive: NDArray[np.bool_], of: str) -> float:
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        raise Undefined(
            f"AUROC has no value: all {len(positive)} rows are {int(positives > 0)} in {of}; it "
            "compares rows of both kinds, so evaluate on rows that have them"
        )
    total = average_ranks(values)[positive].sum()
    return float((total - positives * (positives + 1) / 2) / (positives * negatives))
