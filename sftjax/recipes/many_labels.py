"""Pictures with any number of labels: their loss, metrics, tables and plots."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from sftjax.core import Objective
from sftjax.evaluate import (
    Interval,
    Metric,
    Undefined,
    auroc,
    average_precision,
    per_label,
    roc_curves,
    sigmoid,
    table_markdown,
    with_intervals,
    write_predictions,
)
from sftjax.objectives import Apply, multi_label
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.picture_rows import PictureRows

MOST = 20.0
"""A rare label's positives count at most so many times."""


def objective_of_labels(
    job: TuneImages, rows: int, counts: np.ndarray
) -> Callable[[Apply], Objective]:
    """Return the objective of labels that are true or not, each by itself.

    `class-balanced` weighs a label's positives by (rows without it) / (rows with it), at most 20;
    `focal` is the binary focal loss. `logit-adjusted` is of one class a picture and leaves this
    loss as it is: thresholds make up for rare labels.

    Args:
      job: its `imbalance` and dropout.
      rows: how many pictures are learned from.
      counts: (L,) how many have each label.
    """
    dropout = job.training.dropout
    if job.imbalance == "focal":
        return functools.partial(multi_label, dropout=dropout, gamma=2.0)
    weight: Any = 1.0
    if job.imbalance == "class-balanced":
        with_it = np.maximum(counts, 1)
        weight = jnp.asarray(np.clip((rows - counts) / with_it, 1.0, MOST), jnp.float32)
    return functools.partial(multi_label, dropout=dropout, pos_weight=weight)


def mean_over_labels(metric: Metric) -> Metric:
    """Return the mean of a metric of `(scores (N,), truth (N,))` over the labels that have one.

    >>> mean_over_labels(auroc)(np.eye(2), np.eye(2))
    1.0
    """

    def of(scores: Any, truth: Any) -> float:
        found = []
        for k in range(np.shape(truth)[1]):
            try:
                found.append(metric(np.asarray(scores)[:, k], np.asarray(truth)[:, k].astype(int)))
            except Undefined:
                continue
        if not found:
            raise Undefined("no label is there in some rows and not in others")
        return float(np.mean(found))

    return of


def beside_labels(outputs: np.ndarray, rows: PictureRows) -> dict[str, Interval | float]:
    """Return the metrics of labels beside the usual ones."""
    assert rows.labels is not None
    found = with_intervals(
        {"auprc": mean_over_labels(average_precision)},
        sigmoid(outputs), np.asarray(rows.labels.values), groups=rows.groups,
    )  # fmt: skip
    return {f"eval_{name}": value for name, value in found.items()}


def label_rows(
    outputs: np.ndarray, rows: PictureRows, chosen: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Return a line a label: how often, precision, recall, F1, AUROC and AUPRC with intervals.

    Args:
      outputs: (N, L) logits.
      rows: their labels and groups.
      chosen: (N, L) which labels are given; those of a probability above 1/2 when left out.
    """
    assert rows.labels is not None
    truth, names = np.asarray(rows.labels.values), rows.labels.names
    scores = sigmoid(outputs)
    each = per_label((scores > 0.5) if chosen is None else chosen, truth)
    lines = []
    for k, name in enumerate(names):
        ranked = with_intervals(
            {"auroc": auroc, "auprc": average_precision},
            scores[:, k], truth[:, k].astype(int), groups=rows.groups,
        )  # fmt: skip
        lines.append(
            {"label": name, "pictures": int(truth[:, k].sum()), "precision": each.precision[k],
             "recall": each.recall[k], "f1": each.f1[k], **ranked}
        )  # fmt: skip
    return lines


def write_label_pictures(folder: pathlib.Path, outputs: np.ndarray, rows: PictureRows) -> None:
    """Write predictions.csv with every label, and the curves of the first seven."""
    assert rows.labels is not None
    truth, names = np.asarray(rows.labels.values), rows.labels.names
    numbers = [int(row) for row in np.asarray(rows.table.rows)] or range(1, len(outputs) + 1)
    write_predictions(
        folder / "predictions.csv", numbers, outputs, truth, names,
        problem_type="multi_label_classification",
    )  # fmt: skip
    scores = sigmoid(outputs)
    both = told_apart(truth)[:7]
    if both:
        roc_curves(
            {names[k]: (scores[:, k], truth[:, k].astype(bool)) for k in both},
            folder / "plots" / "roc.png",
        )


def told_apart(truth: np.ndarray) -> list[int]:
    """Return the labels that some rows have and others lack: those that have a curve.

    >>> told_apart(np.array([[1, 1], [0, 1]]))
    [0]
    """
    return [k for k in range(truth.shape[1]) if 0 < truth[:, k].sum() < len(truth)]


def label_tables(outputs: np.ndarray, rows: PictureRows) -> list[str]:
    """Return the report's section on each label."""
    assert rows.labels is not None
    lines = label_rows(outputs, rows)
    drawn = bool(told_apart(np.asarray(rows.labels.values)))
    return [
        "## By label\n\nA label is given where its probability is above 1/2.",
        table_markdown(lines, list(lines[0])),
        *(["![curves](plots/roc.png)"] if drawn else []),
    ]
