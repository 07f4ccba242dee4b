"""Methods compared over the same seeds: means, spreads, and paired differences with t intervals.

A few seeds differ by more than most methods do. What a seed does to every method alike (its head,
its order of the data) cancels in the difference of two runs of that seed, so differences are
taken within seeds first and averaged after. Rows are dicts, one a run: columns that name the run
(method, dose, seed) and columns that measure it.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from sftjax.evaluate.bootstrap import Interval

Row = Mapping[str, Any]
"""Column -> value of one run."""


def summarize(
    rows: Sequence[Row],
    by: str | Sequence[str],
    metrics: str | Sequence[str],
    *,
    level: float | None = None,
) -> list[dict[str, Any]]:
    """Return the mean and standard deviation of metrics over the runs of each setting.

    Args:
      rows: one a run.
      by: the columns that name a setting; runs that share their values are summarized together.
      metrics: the columns to summarize.
      level: of Student's interval for the mean; `None` gives none.

    Returns:
      One row a setting, in order of first appearance: its `by` columns, `n` runs, and for each
      metric its mean under its own name and its standard deviation (of a sample, n - 1; NaN for
      one run) under `<metric>_sd`; with a level also `<metric>_low` and `<metric>_high`, which
      are infinite for one run. A metric that is not finite, of a run that failed, makes all NaN.

    Raises:
      ValueError: if there are no rows, or a row lacks a column or a number in it.

    >>> rows = [{"dose": 1, "seed": s, "accuracy": a} for s, a in enumerate([0.7, 0.8, 0.9])]
    >>> for row in summarize(rows, "dose", "accuracy"):
    ...     print({name: round(value, 6) for name, value in row.items()})
    {'dose': 1, 'n': 3, 'accuracy': 0.8, 'accuracy_sd': 0.1}
    """
    by, metrics = _names(by), _names(metrics)
    _check(rows, (*by, *metrics), metrics)
    summary = []
    for setting, group in _groups(rows, by).items():
        entry = {**dict(zip(by, setting, strict=True)), "n": len(group)}
        for metric in metrics:
            values = [float(row[metric]) for row in group]
            entry[metric] = _mean(values)
            entry[f"{metric}_sd"] = _deviation(values)
            if level is not None:
                interval = t_interval(values, level)
                entry |= {f"{metric}_low": interval.low, f"{metric}_high": interval.high}
        summary.append(entry)
    return summary


def paired_difference(
    rows: Sequence[Row],
    baseline: Mapping[str, Any],
    by: str | Sequence[str],
    pair: str | Sequence[str] = "seed",
    *,
    metrics: str | Sequence[str],
    level: float = 0.95,
) -> list[dict[str, Any]]:
    r"""Return how each setting differs from a baseline over the same seeds, with t intervals.

    $$ \bar d \pm t_{(1+\text{level})/2,\,n-1} \, s_d / \sqrt n, \quad d_i = a_i - b_i $$

    (Student 1908), where $a_i$ and $b_i$ are the metric under the setting and under the baseline
    with seed $i$. It supposes differences that are about normal; with one pair the interval is the
    whole line.

    Args:
      rows: one a run.
      baseline: values of `by` columns that name the baseline. `by` columns that it leaves out are
        matched: with `by=("method", "rate")` and `{"method": "none"}` each method is compared
        with "none" at its own rate.
      by: the columns that name a setting.
      pair: the columns that name a pair, the seed as a rule.
      metrics: the columns to compare.
      level: between 0 and 1.

    Returns:
      One row a setting other than the baseline, in order of first appearance: its `by` columns, `n`
      pairs, and for each metric an `Interval` of the difference (`resamples` is 0: its range comes
      from the t distribution). A metric that is not finite makes its interval NaN.

    Raises:
      ValueError: if there are no rows, a row lacks a column or a number in it, the baseline has no
        rows, a setting has two rows of one pair, or its pairs are not the baseline's.

    >>> rows = [{"method": m, "seed": s, "accuracy": 0.5 + 0.2 * s + gain * (1 + s / 10)}
    ...         for m, gain in [("none", 0.0), ("l2-sp", 0.1)] for s in range(3)]
    >>> for row in paired_difference(rows, {"method": "none"}, "method", metrics="accuracy"):
    ...     print(row["method"], row["n"], [round(x, 3) for x in row["accuracy"][:3]])
    l2-sp 3 [0.11, 0.085, 0.135]
    """
    by, pair, metrics = _names(by), _names(pair), _names(metrics)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a level lies between 0 and 1 (0.95 as a rule)")
    if not baseline or any(name not in by for name in baseline):
        raise ValueError(
            f"the baseline {dict(baseline)} must name its values of some of the columns in `by` "
            f"({', '.join(by)})"
        )
    _check(rows, (*by, *pair, *metrics), metrics)
    settings = {
        setting: _pairs(group, pair, _label(by, setting))
        for setting, group in _groups(rows, by).items()
    }
    differences = []
    for setting, runs in settings.items():
        values = dict(zip(by, setting, strict=True))
        against = tuple({**values, **baseline}.values())
        if against == setting:
            continue
        if against not in settings:
            known = "; ".join(_label(by, other) for other in settings)
            raise ValueError(
                f"{_label(by, setting)} has no baseline: there are no rows of "
                f"{_label(by, against)}. Settings with rows: {known}"
            )
        theirs = settings[against]
        ours_only = [key for key in runs if key not in theirs]
        theirs_only = [key for key in theirs if key not in runs]
        if odd := ours_only + theirs_only:
            where = _label(by, setting if ours_only else against)
            raise ValueError(
                f"{_label(by, setting)} and its baseline {_label(by, against)} do not pair: "
                f"{_label(pair, odd[0])} is only in {where} ({len(odd)} such in all). Run both "
                "with the same ones, or leave the others out of the rows"
            )
        entry: dict[str, Any] = {**values, "n": len(runs)}
        for metric in metrics:
            gaps = [float(runs[key][metric]) - float(theirs[key][metric]) for key in runs]
            entry[metric] = t_interval(gaps, level)
        differences.append(entry)
    return differences


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of a few values with Student's interval for it.

    Args:
      values: n of them, independent.
      level: between 0 and 1.

    >>> [round(x, 3) for x in t_interval([1.0, 2.0, 3.0])[:3]]
    [2.0, -0.484, 4.484]
    """
    if not values:
        raise ValueError("there are no values to take the mean of")
    mean = round(_mean(values), 12)
    if not math.isfinite(mean):
        return Interval(math.nan, math.nan, math.nan, level, 0, 0)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf, level, 0, 0)
    reach = t_quantile((1 + level) / 2, len(values) - 1)
    margin = round(reach * _deviation(values) / math.sqrt(len(values)), 12)
    return Interval(mean, mean - margin, mean + margin, level, 0, 0)


def t_quantile(probability: float, freedom: int) -> float:
    r"""Return the $t$ that Student's distribution stays below with this probability.

    By bisection over the angle $\theta = \arctan(t / \sqrt\nu)$, in which the distribution has a
    finite sum for whole $\nu$ (Abramowitz & Stegun 26.7.3 and 26.7.4).

    Args:
      probability: between 0 and 1.
      freedom: $\nu \ge 1$, degrees of freedom.

    >>> round(t_quantile(0.975, 7), 4)
    2.3646
    """
    if not 0 < probability < 1 or freedom < 1:
        raise ValueError(
            f"a t quantile needs a probability between 0 and 1 and at least one degree of freedom; "
            f"got {probability} and {freedom}"
        )
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Return P(|T| < sqrt(freedom) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    if not names:
        raise ValueError("name at least one column; the list of columns is empty")
    return names


def _check(rows: Sequence[Row], columns: Sequence[str], metrics: Sequence[str]) -> None:
    if not rows:
        raise ValueError("there are no rows to compare")
    for number, row in enumerate(rows):
        for name in columns:
            if name not in row:
                raise ValueError(f"row {number} has no column {name!r}; it has {', '.join(row)}")
        for name in metrics:
            try:
                float(row[name])
            except (TypeError, ValueError):
                raise ValueError(
                    f"row {number}: {name} is {row[name]!r}, not a number; a metric is a number "
                    "in every row (NaN for a run that failed)"
                ) from None


def _groups(rows: Sequence[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return groups


def _pairs(group: list[Row], pair: Sequence[str], where: str) -> dict[tuple[Any, ...], Row]:
    """Return pair -> row of one setting."""
    pairs = _groups(group, pair)
    for key, same in pairs.items():
        if len(same) > 1:
            raise ValueError(
                f"{where} has {len(same)} rows with {_label(pair, key)}; add the column that tells "
                "them apart to `by` or `pair`"
            )
    return {key: same[0] for key, same in pairs.items()}


def _label(columns: Sequence[str], values: Sequence[Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in zip(columns, values, strict=True))


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if all(map(math.isfinite, values)) else math.nan


def _deviation(values: Sequence[float]) -> float:
    finite = all(map(math.isfinite, values))
    return stdev(values) if len(values) > 1 and finite else math.nan
