"""Whether a probability means what it says: NLL, Brier score, expected calibration error."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import class_ids, labels_fit, same_rows, scores


class Bins(NamedTuple):
    """Rows grouped by the confidence of their prediction; (M,) arrays."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    """A row falls in the bin with `low < confidence <= high`."""
    rows: NDArray[np.int64]
    """How many rows the bin holds."""
    confidence: NDArray[np.float64]
    """Mean confidence of the bin's rows; NaN in an empty bin."""
    accuracy: NDArray[np.float64]
    """Share of the bin's rows that are right; NaN in an empty bin."""


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Return `z - log sum exp z` over the last axis, in float64.

    >>> log_softmax([[0.0, 0.0]]).round(4).tolist()
    [[-0.6931, -0.6931]]
    """
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Return `exp z / sum exp z` over the last axis, in float64.

    >>> softmax([[0.0, 0.0]]).tolist()
    [[0.5, 0.5]]
    """
    return np.exp(log_softmax(logits))


def sigmoid(logits: ArrayLike) -> NDArray[np.float64]:
    """Return `1 / (1 + exp(-z))`, in float64 and without overflow.

    >>> sigmoid([0.0, -1000.0]).tolist()
    [0.5, 0.0]
    """
    z = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1 + small)


def nll(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean negative log-likelihood of the labels, in nats: `-mean log p(label)`.

    Args:
      predictions: (N, C) logits, or log-probabilities (their softmax is themselves). Logits
        keep it finite where a probability would have been rounded to 0.
      labels: (N,) class ids below C.

    Raises:
      ValueError: for probabilities, whose softmax is something else.

    >>> round(nll([[0.0, 0.0], [0.0, 1.0]], [0, 1]), 4)
    0.5032
    """
    logits, true = _rows("predictions", predictions, labels)
    if len(logits) > 1 and (logits >= 0).all() and np.allclose(logits.sum(1), 1.0, atol=1e-4):
        raise ValueError(
            "predictions: every row has no negative number and sums to 1, so these are "
            "probabilities; nll takes logits, or the logarithm of probabilities"
        )
    return float(np.mean(nll_rows(logits, true)))


def nll_rows(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each row's label, of what `nll` has checked.

    >>> nll_rows(np.zeros((1, 2)), np.array([0])).round(4).tolist()
    [0.6931]
    """
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean squared distance of the probabilities from the one-hot label.

    `mean_n sum_c (p_nc - [c = label_n])²` (Brier 1950): 0 is perfect, 2 the worst, for two
    classes twice the one-column form.

    Args:
      probabilities: (N, C), rows summing to 1.
      labels: (N,) class ids below C.

    >>> round(brier([[0.8, 0.2], [0.4, 0.6]], [0, 1]), 4)
    0.2
    """
    p, true = _probabilities(probabilities, labels)
    return float(np.mean(brier_rows(p, true)))


def brier_rows(p: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row's squared distance from its one-hot label, of what `brier` has checked.

    >>> brier_rows(np.array([[0.5, 0.5]]), np.array([0])).tolist()
    [0.5]
    """
    return (p * p).sum(axis=1) - 2 * p[np.arange(len(labels)), labels] + 1


def ece(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> float:
    """Return the expected calibration error: `sum_m n_m / N |accuracy_m - confidence_m|`.

    Rows are binned by the probability of the predicted class, in bins of equal width
    (Guo et al. 2017).

    Args:
      probabilities: (N, C), rows summing to 1.
      labels: (N,) class ids below C.
      num_bins: M.

    >>> round(ece([[0.9, 0.1], [0.9, 0.1]], [0, 1]), 4)
    0.4
    """
    bins = calibration_bins(probabilities, labels, num_bins)
    full = bins.rows > 0
    gap = np.abs(bins.accuracy - bins.confidence)[full]
    return float(np.average(gap, weights=bins.rows[full]))


def ece_equal_mass(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> float:
    """Return the expected calibration error over bins of equally many rows (Nixon et al. 2019).

    Rows are sorted by confidence and cut into `num_bins` runs whose sizes differ by one at most; a
    rare confidence then has no bin, and its noise no weight, of its own.

    Args:
      probabilities: (N, C), rows summing to 1.
      labels: (N,) class ids below C.
      num_bins: M; fewer where there are fewer rows.

    >>> round(ece_equal_mass([[0.9, 0.1], [0.9, 0.1]], [0, 1], num_bins=1), 4)
    0.4
    """
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; calibration needs at least one bin")
    p, true = _probabilities(probabilities, labels)
    order = np.argsort(p.max(axis=1), kind="stable")
    gap = (p.argmax(axis=1) == true) - p.max(axis=1)
    runs = np.array_split(gap[order], min(num_bins, len(gap)))
    return float(sum(abs(run.sum()) for run in runs) / len(gap))


def calibration_bins(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> Bins:
    """Group rows by the probability of their predicted class, for `ece` and its plot.

    >>> calibration_bins([[0.9, 0.1], [0.6, 0.4]], [0, 0], num_bins=2).rows.tolist()
    [0, 2]
    """
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; calibration needs at least one bin")
    p, true = _probabilities(probabilities, labels)
    edges = np.linspace(0, 1, num_bins + 1)
    confidence, place = binned(p, num_bins)
    count = np.bincount(place, minlength=num_bins)
    size = np.where(count > 0, count, np.nan)
    right = p.argmax(axis=1) == true
    return Bins(
        low=edges[:-1],
        high=edges[1:],
        rows=count,
        confidence=np.bincount(place, confidence, num_bins) / size,
        accuracy=np.bincount(place, right, num_bins) / size,
    )


def binned(
    p: NDArray[np.float64], num_bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return each row's confidence and the number of its bin.

    >>> binned(np.array([[0.9, 0.1]]), num_bins=2)[1].tolist()
    [1]
    """
    confidence = np.minimum(p.max(axis=1), 1.0)
    return confidence, np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:], confidence, side="left")


def _rows(
    name: str, values: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    columns = scores(name, values, ndim=2)
    true = class_ids("labels", labels)
    same_rows(columns, true)
    labels_fit(true, columns.shape[1])
    return columns, true


def _probabilities(
    probabilities: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p, true = _rows("probabilities", probabilities, labels)
    # Rows rounded to bfloat16 sum to 1 within 2e-3; logits seldom sum to 1 within this.
    wrong = (np.abs(p.sum(axis=1) - 1) > 1e-2) | (p.min(axis=1) < 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"probabilities: row {row} sums to {p[row].sum():.4g} with smallest value "
            f"{p[row].min():.4g}; pass probabilities (softmax of the logits), not logits"
        )
    return p, true
