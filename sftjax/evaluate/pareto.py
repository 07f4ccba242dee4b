"""Accuracy against retention: the methods that no other one beats in both."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sftjax.evaluate.bootstrap import Interval


class Measured(NamedTuple):
    """A value with the ends of its error bar."""

    value: float
    low: float
    high: float
    bars: str
    """What the bar shows, in words; "" where there is none."""


class Point(NamedTuple):
    """Where one run, or one method over its seeds, stands."""

    name: str
    """Of the point; unique in a picture."""
    accuracy: Measured
    retention: Measured
    method: str
    """Points of one method share their look, and a line joins them by dose."""
    dose: float | None
    """The place in that line; None for a method without."""


def point(
    name: str,
    accuracy: "float | Interval | Sequence[float]",
    retention: "float | Interval | Sequence[float]",
    *,
    method: str | None = None,
    dose: float | None = None,
) -> Point:
    """Return a point from values, intervals, or the values of several seeds.

    Args:
      name: of the point.
      accuracy: a value, an interval, or one value a seed (mean and standard deviation).
      retention: likewise.
      method: `name` when left out.
      dose: of the method.

    Raises:
      ValueError: if there is no value, or one is not finite.

    >>> at = point("L2-SP 1", [0.7, 0.8], 0.5, method="L2-SP", dose=1)
    >>> round(at.accuracy.value, 3), round(at.accuracy.high, 3), at.accuracy.bars
    (0.75, 0.821, '± 1 s.d. over 2 seeds')
    """
    found = [
        _measured(f"{what} of {name!r}", given)
        for what, given in (("accuracy", accuracy), ("retention", retention))
    ]
    return Point(name, found[0], found[1], method or name, dose)


def pareto_front(points: Sequence[Point] | ArrayLike) -> list[int]:
    """Return which points no other one beats: as good in both, and better in one.

    Both coordinates are to be large. Of equal points, all are on the front or none.

    Args:
      points: `Point`s, or (N, 2) numbers.

    Returns:
      Their positions, by rising first coordinate (accuracy), so by falling second.

    Raises:
      ValueError: if there is no point, or a coordinate is not finite.

    >>> pareto_front([(0.7, 0.5), (0.8, 0.4), (0.7, 0.4), (0.75, 0.45)])
    [0, 3, 1]
    """
    values = np.array(
        [
            (p.accuracy.value, p.retention.value) if isinstance(p, Point) else p
            for p in points  # type: ignore[union-attr]
        ],
        np.float64,
    )
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"the points have shape {values.shape}; pass (N, 2), at least one point")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise ValueError(f"point {row} is {values[row].tolist()}; leave out what was not measured")
    # The best of each accuracy first, so that a point is only ever beaten by one before it.
    order = np.lexsort((-values[:, 1], -values[:, 0]))
    front: list[int] = []
    for index in order.tolist():
        if (
            not front
            or values[index, 1] > values[front[-1], 1]
            or (values[index] == values[front[-1]]).all()
        ):
            front.append(index)
    return sorted(front, key=lambda index: (*values[index] * (1, -1), index))


def _measured(what: str, given: "float | Interval | Sequence[float]") -> Measured:
    if isinstance(given, Interval):
        found = Measured(given.value, given.low, given.high, f"{given.level:.0%} interval")
    else:
        values = np.asarray(given, np.float64).reshape(-1)
        if not len(values):
            raise ValueError(f"{what}: there are no values; give at least one seed")
        mean = float(values.mean())
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        bars = f"± 1 s.d. over {len(values)} seeds" if len(values) > 1 else ""
        found = Measured(mean, mean - spread, mean + spread, bars)
    if not np.isfinite(found[:3]).all():
        raise ValueError(f"{what} is {found.value}, which has no place in a plot; leave it out")
    return found
