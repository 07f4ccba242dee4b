"""Sets of classes that hold the truth as often as promised: split conformal prediction.

The promise (at least `1 - alpha`, over rows drawn alike) holds for rows that are exchangeable with
the calibration rows, and on average over classes and patients, not within each.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import class_ids, labels_fit, same_rows, scores


class Conformal(NamedTuple):
    """Where a set ends."""

    method: Literal["lac", "aps"]
    alpha: float
    """The share of sets that may miss."""
    level: float
    """Classes whose score is at most this are in the set; infinity takes all."""
    rows: int
    """How many rows it was calibrated on."""

    def sets(self, probabilities: ArrayLike, *, never_empty: bool = False) -> NDArray[np.bool_]:
        """Return (N, C), True where a class is in the row's set.

        Args:
          probabilities: (N, C).
          never_empty: whether LAC's sets too hold the likeliest class at least, and so miss less
            than promised where a model errs less than that; APS's always do.

        >>> conformal = Conformal("lac", 0.1, 0.5, 10)
        >>> conformal.sets([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]]).tolist()
        [[True, False, False], [False, False, False]]
        >>> conformal.sets([[0.4, 0.3, 0.3]], never_empty=True).tolist()
        [[True, False, False]]
        """
        p = np.asarray(probabilities, np.float64)
        inside = _scores(p, self.method) <= self.level + 1e-12
        if never_empty or self.method == "aps":
            inside[np.arange(len(p)), p.argmax(1)] = True
        return inside


def fit_conformal(
    probabilities: ArrayLike,
    labels: ArrayLike,
    alpha: float = 0.1,
    method: Literal["lac", "aps"] = "lac",
) -> Conformal:
    """Calibrate sets on rows that neither trained nor chose anything.

    The score of a class is `1 - p` (LAC, Sadinle et al. 2019: smallest sets on average), or the
    mass of all classes that are likelier plus its own (APS, Romano et al. 2020: sizes follow the
    difficulty). The level is the `ceil((n + 1)(1 - alpha))`-th smallest score of the true classes.

    Args:
      probabilities: (N, C).
      labels: (N,) class ids.
      alpha: in (0, 1).
      method: "lac" or "aps" (without its random tie-breaking, so it covers more: of a model that is
        nearly always sure, far more, as the mass of two classes is then nearly that of one).

    Raises:
      ValueError: for an alpha outside (0, 1), an unknown method, or input that does not fit.

    >>> conformal = fit_conformal([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], [0, 0, 1], alpha=0.5)
    >>> round(conformal.level, 4)
    0.2
    """
    p, true = scores("probabilities", probabilities, ndim=2), class_ids("labels", labels)
    same_rows(p, true)
    labels_fit(true, p.shape[1])
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it is the share of misses allowed, between 0 and 1")
    if method not in ("lac", "aps"):
        raise ValueError(f"method {method!r} is unknown; use 'lac' or 'aps'")
    own = np.sort(_scores(p, method)[np.arange(len(p)), true])
    # Rounded first: (n + 1)(1 - alpha) of 0.9 * 10 must be 9.
    rank = int(np.ceil(round((len(own) + 1) * (1 - alpha), 9)))
    level = float(own[rank - 1]) if rank <= len(own) else float("inf")
    return Conformal(method, alpha, level, len(own))


def coverage(sets: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of rows whose set holds the truth; a metric for `bootstrap`.

    >>> coverage([[True, False], [True, True]], [1, 1])
    0.5
    """
    chosen, true = np.asarray(sets, bool), class_ids("labels", labels)
    same_rows(chosen, true)
    labels_fit(true, chosen.shape[1])
    return float(chosen[np.arange(len(true)), true].mean())


def mean_size(sets: ArrayLike) -> float:
    """Return how many classes a set holds on average.

    >>> mean_size([[True, False], [True, True]])
    1.5
    """
    return float(np.asarray(sets, bool).sum(1).mean())


def _scores(p: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    if method == "lac":
        return 1 - p
    order = np.argsort(-p, axis=1, kind="stable")
    mass = np.cumsum(np.take_along_axis(p, order, 1), 1)
    out = np.empty_like(mass)
    np.put_along_axis(out, order, mass, 1)
    return out
