"""Metrics with intervals, of all rows together and of each part of them (sex, site, scanner)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sftjax.evaluate.bootstrap import Interval, Metric, Rows, bootstrap
from sftjax.evaluate.checks import Undefined


def with_intervals(
    metrics: Mapping[str, Metric],
    predictions: Rows,
    labels: Rows,
    *,
    groups: Rows | None = None,
    **options: Any,
) -> dict[str, Interval | float]:
    """Return each metric with its bootstrap interval, the same resamples for all.

    Args:
      metrics: name -> `(predictions, labels) -> float`.
      predictions: N rows.
      labels: N rows.
      groups: N group ids (patients), drawn together.
      **options: those of `bootstrap`.

    Returns:
      Name -> `Interval`; NaN where a metric has no value on the rows or on half of the resamples.

    >>> from sftjax.evaluate import accuracy
    >>> found = with_intervals({"accuracy": accuracy}, np.arange(8) % 2, np.zeros(8, int))
    >>> found["accuracy"].value
    0.5
    """
    found: dict[str, Interval | float] = {}
    for name, metric in metrics.items():
        try:
            found[name] = bootstrap(metric, predictions, labels, groups=groups, **options)
        except Undefined:
            found[name] = float("nan")
    return found


def subgroup_table(
    metrics: Mapping[str, Metric],
    predictions: np.ndarray,
    labels: np.ndarray,
    parts: Mapping[str, Rows],
    *,
    groups: Rows | None = None,
    least: int = 20,
    **options: Any,
) -> list[dict[str, Any]]:
    """Return rows for `table`: everyone, then each value of each attribute.

    Args:
      metrics: as in `with_intervals`.
      predictions: N rows.
      labels: N rows.
      parts: attribute -> N values, one a row (`{"sex": [...], "site": [...]}`).
      groups: as in `with_intervals`.
      least: a part of fewer rows gets its count and no metric: it would say nothing.
      **options: those of `bootstrap`.

    Returns:
      Rows with `subgroup`, `rows`, with `groups` also `groups`, and the metrics.

    Raises:
      ValueError: if an attribute has not one value a row.

    >>> from sftjax.evaluate import accuracy
    >>> rows = subgroup_table({"accuracy": accuracy}, np.zeros(40, int), np.zeros(40, int),
    ...                       {"sex": ["f"] * 25 + ["m"] * 15})
    >>> [(row["subgroup"], row["rows"], "accuracy" in row) for row in rows]
    [('all', 40, True), ('sex=f', 25, True), ('sex=m', 15, False)]
    """
    chosen: list[tuple[str, np.ndarray]] = [("all", np.ones(len(labels), bool))]
    for name, values in parts.items():
        if len(values) != len(labels):
            raise ValueError(f"{len(values)} values of {name!r} for {len(labels)} rows")
        text = np.array([str(value) for value in values])
        chosen += [(f"{name}={value}", text == value) for value in sorted(set(text))]
    ids = None if groups is None else np.array([str(group) for group in groups])
    out = []
    for name, mask in chosen:
        row: dict[str, Any] = {"subgroup": name, "rows": int(mask.sum())}
        inside = None if ids is None else ids[mask]
        if inside is not None:
            row["groups"] = len(set(inside))
        if row["rows"] >= least:
            row |= with_intervals(
                metrics, predictions[mask], labels[mask], groups=inside, **options
            )
        out.append(row)
    return out
