"""How often the chosen class is right: metrics of class ids against class ids.

Every metric is a function of `(predictions, labels)`, in that order, one class id a row; scores
become predictions by `argmax`. Where a ratio has nothing to divide by (a class never predicted),
it counts as 0, as in scikit-learn.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import class_ids, labels_fit, same_rows


class PerClass(NamedTuple):
    """Scores of each class, (C,) arrays in id order."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    """How many labels are of the class."""


def confusion_matrix(
    predictions: ArrayLike, labels: ArrayLike, num_classes: int | None = None
) -> NDArray[np.int64]:
    """Count the rows of each true class (first axis) that went to each predicted class (second).

    Args:
      predictions: (N,) class ids.
      labels: (N,) class ids.
      num_classes: C; the largest id plus one when left out.

    Returns:
      (C, C) int64 counts.

    Raises:
      ValueError: if the rows differ in number, are no class ids, or do not fit `num_classes`.

    >>> confusion_matrix([0, 1, 1, 1], [0, 0, 1, 1]).tolist()
    [[1, 1], [0, 2]]
    """
    predicted, true = _pair(predictions, labels)
    if num_classes is None:
        num_classes = 1 + int(max(predicted.max(), true.max()))
    else:
        labels_fit(true, num_classes)
        labels_fit(predicted, num_classes)
    cells = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of rows whose class is right.

    >>> accuracy([0, 1, 1, 1], [0, 0, 1, 1])
    0.75
    """
    predicted, true = _pair(predictions, labels)
    return float(np.mean(predicted == true))


def balanced_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean recall over the classes that occur among the labels.

    >>> balanced_accuracy([0, 0, 0, 1], [0, 0, 0, 0])
    0.75
    >>> balanced_accuracy([0, 0, 0, 0], [0, 0, 0, 1])
    0.5
    """
    scores = per_class(predictions, labels)
    return float(np.mean(scores.recall[scores.support > 0]))


def per_class(
    predictions: ArrayLike, labels: ArrayLike, num_classes: int | None = None
) -> PerClass:
    """Return precision, recall, F1 and support of every class.

    `precision = TP / predicted`, `recall = TP / support`, `F1 = 2 TP / (predicted + support)`.

    Args:
      predictions: (N,) class ids.
      labels: (N,) class ids.
      num_classes: C; the largest id plus one when left out.

    >>> per_class([0, 1, 1, 1], [0, 0, 1, 1]).recall.tolist()
    [0.5, 1.0]
    """
    counts = confusion_matrix(predictions, labels, num_classes)
    return scores_of_counts(np.diagonal(counts), counts.sum(axis=0), counts.sum(axis=1))


def macro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the plain mean of F1 over the classes that occur in labels or predictions.

    >>> round(macro_f1([0, 1, 1, 1], [0, 0, 1, 1]), 4)
    0.7333
    """
    counts = confusion_matrix(predictions, labels)
    predicted, support = counts.sum(axis=0), counts.sum(axis=1)
    f1 = scores_of_counts(np.diagonal(counts), predicted, support).f1
    return float(np.mean(f1[predicted + support > 0]))


def weighted_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of F1 weighted by how many labels each class has.

    >>> round(weighted_f1([0, 1, 1, 1], [0, 0, 0, 1]), 4)
    0.5
    """
    scores = per_class(predictions, labels)
    return float(np.average(scores.f1, weights=scores.support))


def mcc(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return Matthews' correlation coefficient, for two classes or more (Gorodkin 2004).

    With `t_k` rows of true class `k`, `p_k` predicted as `k`, `c` right of `s`:
    `MCC = (c s - sum t_k p_k) / sqrt((s² - sum p_k²) (s² - sum t_k²))`, and 0 when either side is
    constant.

    >>> mcc([0, 1, 0, 1], [0, 1, 0, 1]), mcc([1, 1, 1, 1], [0, 1, 0, 1])
    (1.0, 0.0)
    """
    counts = confusion_matrix(predictions, labels).astype(np.float64)
    true, predicted, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    spread_true = total**2 - true @ true
    spread_predicted = total**2 - predicted @ predicted
    if spread_true == 0 or spread_predicted == 0:
        return 0.0
    covariance = np.trace(counts) * total - true @ predicted
    return float(covariance / np.sqrt(spread_true * spread_predicted))


def scores_of_counts(right: ArrayLike, predicted: ArrayLike, support: ArrayLike) -> PerClass:
    """Return precision, recall and F1 from counts; nothing divided by nothing is 0.

    >>> float(scores_of_counts([1], [2], [1]).precision[0])
    0.5
    """
    right, predicted, support = (np.asarray(x, np.float64) for x in (right, predicted, support))
    return PerClass(
        precision=right / np.maximum(predicted, 1),
        recall=right / np.maximum(support, 1),
        f1=2 * right / np.maximum(predicted + support, 1),
        support=support.astype(np.int64),
    )


def _pair(predictions: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    predicted = class_ids("predictions", predictions)
    true = class_ids("labels", labels)
    same_rows(predicted, true)
    return predicted, true
