"""Tests with a threshold: sensitivity at a specificity, and thresholds chosen on validation rows.

A threshold is chosen by `choose_threshold` on rows that are not those it is then measured on by
`at_threshold`; nothing here does both at once.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import Undefined, indicators, same_rows, scores
from sftjax.evaluate.metric import Metric, Prepared, counted_mean

Rule = Literal["youden", "f1", "sensitivity", "specificity"]


class Threshold(NamedTuple):
    """A score from which on a row counts as positive, and where it came from."""

    value: float
    rule: str
    """As it was asked for, `sensitivity>=0.95`."""
    rows: int
    """How many rows it was chosen on."""
    sensitivity: float
    specificity: float
    """On the rows it was chosen on, and so too good: measure on others."""


class Screening(NamedTuple):
    """What a test with a threshold does; NaN where nothing divides."""

    sensitivity: float
    """Share of the positive rows that are found."""
    specificity: float
    """Share of the negative rows that are left alone."""
    ppv: float
    """Share of the rows found that are positive; depends on how common they are."""
    npv: float
    positives: int
    negatives: int


def sensitivity_at_specificity(
    predictions: ArrayLike, labels: ArrayLike, specificity: float = 0.95
) -> float:
    """Return the greatest sensitivity of any threshold with at least this specificity.

    The threshold is the best for these very rows, as on an ROC curve.

    Args:
      predictions: (N,) scores, higher for class 1.
      labels: (N,) 0 or 1.
      specificity: in [0, 1].

    Raises:
      Undefined: (a ValueError) if only one of the two classes is present.

    >>> sensitivity_at_specificity([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 1.0)
    0.5
    """
    _, found, spared = _curve(predictions, labels)
    return float(found[spared >= _share("specificity", specificity) - 1e-12].max())


def specificity_at_sensitivity(
    predictions: ArrayLike, labels: ArrayLike, sensitivity: float = 0.95
) -> float:
    """Return the greatest specificity of any threshold with at least this sensitivity.

    >>> specificity_at_sensitivity([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 1.0)
    0.5
    """
    _, found, spared = _curve(predictions, labels)
    return float(spared[found >= _share("sensitivity", sensitivity) - 1e-12].max())


def choose_threshold(
    predictions: ArrayLike, labels: ArrayLike, rule: Rule = "youden", least: float = 0.95
) -> Threshold:
    """Choose a threshold on *validation* rows.

    Args:
      predictions: (N,) scores, higher for class 1.
      labels: (N,) 0 or 1.
      rule: `youden` (greatest sensitivity + specificity), `f1` (greatest F1), `sensitivity`
        (greatest specificity with at least `least` sensitivity), or `specificity` (the reverse).
      least: of the last two.

    Returns:
      A `Threshold` halfway between the last row that counts as positive and the next.

    Raises:
      Undefined: (a ValueError) if only one of the two classes is present.
      ValueError: for an unknown rule.

    >>> choose_threshold([0.1, 0.4, 0.6, 0.8], [0, 0, 1, 1]).value
    0.5
    """
    cuts, found, spared = _curve(predictions, labels)
    positive = indicators("labels", labels, ndim=1)
    if rule == "youden":
        merit, name = found + spared, rule
    elif rule == "f1":
        right = found * positive.sum()
        marked = right + (1 - spared) * (~positive).sum()
        merit, name = 2 * right / (marked + positive.sum()), rule
    elif rule in ("sensitivity", "specificity"):
        held, gained = (found, spared) if rule == "sensitivity" else (spared, found)
        enough = held >= _share(rule, least) - 1e-12
        merit, name = np.where(enough, gained, -1.0), f"{rule}>={least:g}"
    else:
        raise ValueError(f"rule {rule!r} is unknown; use youden, f1, sensitivity or specificity")
    # Of cuts that are alike in what was asked for, the one that finds (or spares) the most.
    alike = np.flatnonzero(merit >= merit.max() - 1e-12)
    other = spared if rule == "specificity" else found
    best = int(alike[np.argmax(other[alike])])
    return Threshold(
        float(cuts[best]), name, len(positive), float(found[best]), float(spared[best])
    )


def roc_curve(
    predictions: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return `(threshold, sensitivity, specificity)`, from no row marked to all of them.

    >>> roc_curve([0.1, 0.4, 0.6], [0, 1, 1])[1].tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    return _curve(predictions, labels)


def at_threshold(
    predictions: ArrayLike, labels: ArrayLike, threshold: Threshold | float
) -> Screening:
    """Measure a threshold: rows with `score >= threshold` count as positive.

    >>> at_threshold([0.1, 0.4, 0.6, 0.8], [0, 1, 0, 1], 0.5).sensitivity
    0.5
    """
    marked, positive = _marked(predictions, labels, threshold)
    right, left = int((marked & positive).sum()), int((~marked & ~positive).sum())
    positives, negatives = int(positive.sum()), int((~positive).sum())

    def ratio(part: int, whole: int) -> float:
        return part / whole if whole else float("nan")

    return Screening(
        ratio(right, positives),
        ratio(left, negatives),
        ratio(right, int(marked.sum())),
        ratio(left, int((~marked).sum())),
        positives,
        negatives,
    )


def screening_metrics(threshold: Threshold | float) -> dict[str, Metric]:
    """Return what `at_threshold` gives as metrics for `bootstrap`, by name.

    Each is a mean over the rows that it is about, and `Undefined` where there are none:
    `sensitivity`, `specificity`, `ppv` and `npv`.

    >>> found = screening_metrics(0.5)
    >>> found["sensitivity"]([0.1, 0.4, 0.6, 0.8], [0, 1, 0, 1]), found["ppv"]([0.6, 0.8], [1, 1])
    (0.5, 1.0)
    """

    def of(positives: bool, told: bool) -> Metric:
        """Of rows of one kind (by their labels, or by what they were told), how many are right."""

        def rows(predictions: Any, labels: Any) -> tuple[Any, Any]:
            marked, positive = _marked(predictions, labels, threshold)
            counts = (marked if told else positive) == positives
            return np.where(counts, marked == positive, np.nan), labels

        return Prepared(rows, counted_mean)

    return {
        "sensitivity": of(True, told=False),
        "specificity": of(False, told=False),
        "ppv": of(True, told=True),
        "npv": of(False, told=True),
    }


def _marked(
    predictions: ArrayLike, labels: ArrayLike, threshold: Threshold | float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows count as positive, and which are."""
    values, positive = scores("predictions", predictions, ndim=1), indicators("labels", labels, 1)
    same_rows(values, positive)
    return values >= (threshold.value if isinstance(threshold, Threshold) else threshold), positive


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it is a share between 0 and 1")
    return value


def _curve(
    predictions: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return `(threshold, sensitivity, specificity)` from none marked to all marked."""
    values, positive = scores("predictions", predictions, ndim=1), indicators("labels", labels, 1)
    same_rows(values, positive)
    positives, negatives = positive.sum(), (~positive).sum()
    if not positives or not negatives:
        raise Undefined(
            f"all {len(positive)} rows are {int(positives > 0)} in labels; sensitivity and "
            "specificity need rows of both kinds"
        )
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    found = np.append(0, np.cumsum(positive[order])[last]) / positives
    spared = 1 - np.append(0, np.cumsum(~positive[order])[last]) / negatives
    between = (ordered[last[:-1]] + ordered[last[:-1] + 1]) / 2
    cuts = np.concatenate([[np.nextafter(ordered[0], np.inf)], between, [ordered[-1]]])
    return cuts, found, spared
