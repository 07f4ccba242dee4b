"""Agreement on grades and on maps: Cohen's kappa with weights, Dice and intersection over union."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import Undefined
from sftjax.evaluate.classification import confusion_matrix


def cohen_kappa(
    predictions: ArrayLike,
    labels: ArrayLike,
    weights: Literal["none", "linear", "quadratic"] = "none",
    num_classes: int | None = None,
) -> float:
    """Return the agreement beyond chance (Cohen 1968).

    `1 - sum w O / sum w E`, with the confusion counts `O`, those expected of the same margins `E`,
    and `w = [i ≠ j]`, `|i - j|` or `(i - j)²`.

    Args:
      predictions: (N,) class ids; grades in their order, for weights.
      labels: (N,) class ids.
      weights: see above.
      num_classes: as in `confusion_matrix`.

    Raises:
      Undefined: (a ValueError) if every row has one and the same class on both sides.

    >>> round(cohen_kappa([0, 1, 2, 2], [0, 1, 1, 2], "quadratic"), 4)
    0.8
    """
    counts = confusion_matrix(predictions, labels, num_classes).astype(np.float64)
    apart = np.abs(np.subtract.outer(*[np.arange(len(counts))] * 2)).astype(np.float64)
    powers = {"none": apart > 0, "linear": apart, "quadratic": apart**2}
    if weights not in powers:
        raise ValueError(f"weights {weights!r} is unknown; use none, linear or quadratic")
    cost = powers[weights]
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    if not (cost * expected).sum():
        raise Undefined("kappa has no value: every prediction and label is the same class")
    return float(1 - (cost * counts).sum() / (cost * expected).sum())


def quadratic_kappa(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return `cohen_kappa` with quadratic weights, the usual measure of grades.

    >>> quadratic_kappa([0, 1, 2], [0, 1, 2])
    1.0
    """
    return cohen_kappa(predictions, labels, "quadratic")


def dice_per_class(
    predictions: ArrayLike, labels: ArrayLike, num_classes: int, *, ignore: int = -100
) -> NDArray[np.float64]:
    """Return `2 TP / (predicted + true)` of each class over all pixels; NaN of nothing.

    Args:
      predictions: any shape, class ids a pixel.
      labels: the same shape; `ignore` does not count.
      num_classes: C.
      ignore: the label of pixels that do not count.

    >>> dice_per_class([[0, 1]], [[0, 0]], 2).round(4).tolist()
    [0.6667, 0.0]
    """
    found, true = np.asarray(predictions), np.asarray(labels)
    if found.shape != true.shape:
        raise ValueError(
            f"predictions are {found.shape}, labels {true.shape}; pass one predicted class for "
            "each pixel of the labels"
        )
    counts = confusion_matrix(found[true != ignore], true[true != ignore], num_classes)
    total = (counts.sum(0) + counts.sum(1)).astype(np.float64)
    return 2 * np.diagonal(counts) / np.where(total > 0, total, np.nan)


def dice(predictions: ArrayLike, labels: ArrayLike, num_classes: int) -> float:
    """Return the mean Dice over the classes but 0 (background) that occur; as `dice_per_class`.

    Raises:
      Undefined: (a ValueError) if there is nothing but background on both sides.

    >>> round(dice([[0, 1, 1]], [[0, 0, 1]], 2), 4)
    0.6667
    """
    each = dice_per_class(predictions, labels, num_classes)[1:]
    if np.isnan(each).all():
        raise Undefined("Dice has no value: there is nothing but background")
    return float(np.nanmean(each))
