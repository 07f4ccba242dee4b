"""Tasks where a row has any number of labels: (N, L) arrays of yes and no."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import indicators
from sftjax.evaluate.classification import PerClass, scores_of_counts


def subset_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of rows with every label right.

    >>> subset_accuracy([[1, 0], [1, 1]], [[1, 0], [0, 1]])
    0.5
    """
    predicted, true = _pair(predictions, labels)
    return float(np.mean((predicted == true).all(axis=1)))


def per_label(predictions: ArrayLike, labels: ArrayLike) -> PerClass:
    """Return precision, recall, F1 and support of every label column.

    >>> per_label([[1, 0], [1, 1]], [[1, 0], [0, 1]]).precision.tolist()
    [0.5, 1.0]
    """
    predicted, true = _pair(predictions, labels)
    return scores_of_counts((predicted & true).sum(0), predicted.sum(0), true.sum(0))


def multilabel_micro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return F1 over all cells together: `2 TP / (predicted + true)`, 0 if there are neither.

    >>> multilabel_micro_f1([[1, 0], [1, 1]], [[1, 0], [0, 1]])
    0.8
    """
    predicted, true = _pair(predictions, labels)
    return float(scores_of_counts((predicted & true).sum(), predicted.sum(), true.sum()).f1)


def multilabel_macro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the plain mean of F1 over the label columns; a column without any yes counts 0.

    >>> round(multilabel_macro_f1([[1, 0], [1, 1]], [[1, 0], [0, 1]]), 4)
    0.8333
    """
    return float(np.mean(per_label(predictions, labels).f1))


def _pair(predictions: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    predicted, true = indicators("predictions", predictions), indicators("labels", labels)
    if predicted.shape != true.shape:
        raise ValueError(
            f"predictions are {predicted.shape}, labels {true.shape}; pass one column a label and "
            "one row an example, in the same order"
        )
    return predicted, true
