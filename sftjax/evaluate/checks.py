"""What can be measured and what cannot: every metric refuses bad input in the same words."""

from collections.abc import Sized

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Undefined(ValueError):
    """The input is well formed, yet the metric has no value on it (AUROC of a single class)."""


def scores(name: str, values: ArrayLike, ndim: int) -> NDArray[np.float64]:
    """Return finite float64 scores of the given number of axes and at least one row.

    Raises:
      ValueError: if the shape is another, there are no rows, or a value is NaN or infinite.

    >>> scores("predictions", [0.5, float("nan")], ndim=1)
    Traceback (most recent call last):
    ValueError: predictions: row 1 is nan; a metric needs finite numbers, ...
    """
    array = np.asarray(values, np.float64)
    _shape(name, array, ndim)
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argwhere(~finite)[0, 0])
        bad = array[row][~finite[row]][0] if ndim > 1 else array[row]
        raise ValueError(
            f"{name}: row {row} is {bad}; a metric needs finite numbers, so look at what the "
            "model returned for that row (or at the row's label)"
        )
    return array


def class_ids(name: str, values: ArrayLike, ndim: int = 1) -> NDArray[np.int64]:
    """Return class ids `0, 1, ...` as int64.

    Raises:
      ValueError: if they are not integers, are negative, of another shape, or there are no rows.

    >>> class_ids("labels", [0, -100])
    Traceback (most recent call last):
    ValueError: labels: row 1 is -100; class ids start at 0 ...
    """
    array = np.asarray(values)
    _shape(name, array, ndim)
    if array.dtype.kind not in "iub":
        raise ValueError(
            f"{name}: expected class ids (integers), got {array.dtype}; take the argmax of logits, "
            "or map names to ids first"
        )
    array = array.astype(np.int64, copy=False)
    if array.min() < 0:
        row = int(np.argwhere(array < 0)[0, 0])
        raise ValueError(
            f"{name}: row {row} is {array[row]}; class ids start at 0 (leave rows without a label "
            "out; for -100 in token labels use the token metrics)"
        )
    return array


def indicators(name: str, values: ArrayLike, ndim: int = 2) -> NDArray[np.bool_]:
    """Return yes/no labels, one column a label, as booleans.

    Raises:
      ValueError: if a value is neither 0 nor 1, or the shape is another.

    >>> indicators("labels", [[0.0, 1.0]])
    array([[False,  True]])
    """
    array = np.asarray(values)
    _shape(name, array, ndim)
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        row = int(np.argwhere(wrong)[0, 0])
        raise ValueError(f"{name}: row {row} is {array[row]}; expected only 0 and 1")
    return array.astype(bool)


def same_rows(predictions: Sized, labels: Sized) -> None:
    """Check that predictions and labels describe the same number of rows.

    >>> same_rows([1, 2], [1])
    Traceback (most recent call last):
    ValueError: 2 predictions for 1 labels; ...
    """
    if len(predictions) != len(labels):
        raise ValueError(
            f"{len(predictions)} predictions for {len(labels)} labels; pass one of each per row, "
            "in the same order"
        )


def labels_fit(labels: NDArray[np.int64], num_classes: int) -> None:
    """Check that every class id has a column among `num_classes`.

    >>> labels_fit(np.array([0, 2]), num_classes=2)
    Traceback (most recent call last):
    ValueError: labels: row 1 is class 2, but there are 2 classes ...
    """
    if labels.max() >= num_classes:
        row = int(np.argmax(labels >= num_classes))
        raise ValueError(
            f"labels: row {row} is class {labels[row]}, but there are {num_classes} classes "
            f"(0 to {num_classes - 1}); check the label names against the model's"
        )


def _shape(name: str, array: np.ndarray, ndim: int) -> None:
    if array.ndim != ndim:
        wanted = {1: "(rows,)", 2: "(rows, columns)"}[ndim]
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name}: there are no rows to measure (shape {array.shape})")
