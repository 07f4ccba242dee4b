"""What a judge is worth on test rows: everything with intervals over groups."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sftjax.evaluate import (
    Interval,
    Metric,
    accuracy,
    auroc,
    auroc_one_vs_rest,
    average_precision,
    average_precision_one_vs_rest,
    balanced_accuracy,
    brier,
    coverage,
    ece,
    ece_equal_mass,
    macro_f1,
    mean_size,
    nll,
    screening_metrics,
    softmax,
    subgroup_table,
    table_markdown,
    with_intervals,
)
from sftjax.recipes.judging import Judge
from sftjax.recipes.picture_rows import PictureRows

Numbers = dict[str, Any]
THIRDS = 8
"""A column of numbers with more values than this is cut into thirds."""


class Measured(NamedTuple):
    """What was found on the test rows."""

    metrics: dict[str, Interval | float]
    thresholds: list[Numbers]
    """A row a class that has a threshold."""
    sets: list[Numbers]
    """Coverage and size of the prediction sets, of all rows and of each class."""
    subgroups: list[Numbers]
    over: str
    """What intervals are taken over."""
    probabilities: np.ndarray
    """(N, C), calibrated."""
    chosen: np.ndarray
    """(N,) class ids: the largest logit."""
    members: np.ndarray
    """(N, C), whether a class is in the row's set."""

    def table(self) -> str:
        """Return the metrics and thresholds as tables."""
        rows = [{"metric": name, "test": value} for name, value in self.metrics.items()]
        return "\n\n".join(
            [
                table_markdown(rows, ["metric", "test"]),
                table_markdown(self.thresholds, list(self.thresholds[0])),
                table_markdown(self.sets, list(self.sets[0])),
            ]
        )


def measure(
    judge: Judge, logits: np.ndarray, rows: PictureRows, subgroups: Sequence[str] = ()
) -> Measured:
    """Measure a judge on rows that decided nothing.

    Choices are the largest logits, as they were trained for (balanced, where the loss was adjusted
    for the classes' frequency); probabilities are calibrated.

    Args:
      judge: of `fit_judge`.
      logits: (N, C) of the test rows.
      rows: with labels and groups.
      subgroups: columns whose values are measured apart.
    """
    assert rows.labels is not None
    labels, groups = np.asarray(rows.labels.values), rows.groups
    z = np.asarray(logits, np.float64)
    p, chosen = judge.probabilities(z), z.argmax(1)
    logs = np.log(np.maximum(p, 1e-300))
    found: dict[str, Interval | float] = {}

    def take(metrics: dict[str, Metric], values: np.ndarray) -> None:
        found.update(with_intervals(metrics, values, labels, groups=groups))

    take(
        {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1},
        chosen,
    )
    if len(judge.names) == 2:
        take({"auroc": auroc, "auprc": average_precision}, p[:, 1])
    else:
        take({"auroc": auroc_one_vs_rest, "auprc": average_precision_one_vs_rest}, p)
    take({"nll": nll}, logs)
    take({"brier": brier, "ece": ece, "ece_equal_mass": ece_equal_mass}, p)
    before = softmax(z + judge.prior)
    take({"nll before": nll}, np.log(np.maximum(before, 1e-300)))
    take({"brier before": brier, "ece before": ece}, before)
    members = np.ones_like(p, bool)
    if judge.conformal is not None:
        members = judge.conformal.sets(p, never_empty=True)
    return Measured(
        found,
        [_at(judge, name, p, labels, groups) for name in judge.thresholds],
        _sets(judge, members, labels, groups),
        _parts(rows, subgroups, logs, chosen, labels, groups),
        "pictures" if groups is None else f"{len(set(groups)):,} groups",
        p,
        chosen,
        members,
    )


def _at(
    judge: Judge, name: str, p: np.ndarray, labels: np.ndarray, groups: list[str] | None
) -> Numbers:
    k, threshold = judge.names.index(name), judge.thresholds[name]
    truth = (labels == k).astype(int)
    found = with_intervals(
        {"auroc": auroc, **screening_metrics(threshold)}, p[:, k], truth, groups=groups
    )
    return {
        "class": name, "pictures": int(truth.sum()), "rule": threshold.rule,
        "threshold": f"{threshold.value:.4g}", **found,
    }  # fmt: skip


def _sets(
    judge: Judge, members: np.ndarray, labels: np.ndarray, groups: list[str] | None
) -> list[Numbers]:
    promised = 0.0 if judge.conformal is None else 1 - judge.conformal.alpha
    out = []
    for name, mask in [("all", np.ones(len(labels), bool))] + [
        (name, labels == k) for k, name in enumerate(judge.names)
    ]:
        if not mask.any():
            continue
        own = (
            None
            if groups is None
            else [g for g, inside in zip(groups, mask, strict=True) if inside]
        )
        found = with_intervals({"coverage": coverage}, members[mask], labels[mask], groups=own)
        out.append(
            {
                "class": name, "pictures": int(mask.sum()), "promised": promised, **found,
                "mean size": mean_size(members[mask]),
                "of one class": float((members[mask].sum(1) == 1).mean()),
            }
        )  # fmt: skip
    return out


def _parts(
    rows: PictureRows,
    columns: Sequence[str],
    logs: np.ndarray,
    chosen: np.ndarray,
    labels: np.ndarray,
    groups: list[str] | None,
) -> list[Numbers]:
    if not columns:
        return []
    parts = {name: thirds(rows.table[name]) for name in columns}

    def right(pairs: Any, true: Any) -> float:
        return accuracy(np.asarray(pairs)[:, 0].astype(int), true)

    def balanced(pairs: Any, true: Any) -> float:
        return balanced_accuracy(np.asarray(pairs)[:, 0].astype(int), true)

    def loss(pairs: Any, true: Any) -> float:
        return nll(np.asarray(pairs)[:, 1:], true)

    return subgroup_table(
        {"accuracy": right, "balanced accuracy": balanced, "nll": loss},
        np.concatenate([chosen[:, None], logs], 1), labels, parts, groups=groups,
    )  # fmt: skip


def thirds(values: Sequence[Any] | np.ndarray) -> list[str]:
    """Return a column as words: numbers of many values by thirds, anything else as it is.

    >>> thirds(list(range(9)))[::3]
    ['1: below 2.67', '2: 2.67 to 5.33', '3: 5.33 and more']
    """
    words = [str(value) for value in values]
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        return words
    if len(set(words)) <= THIRDS or not np.isfinite(numbers).all():
        return words
    low, high = np.quantile(numbers, [1 / 3, 2 / 3])
    names = [f"1: below {low:.3g}", f"2: {low:.3g} to {high:.3g}", f"3: {high:.3g} and more"]
    return [names[int(x >= low) + int(x >= high)] for x in numbers]
