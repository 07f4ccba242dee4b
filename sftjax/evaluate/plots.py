"""The pictures of a run folder: training, what moved, calibration, and results by domain.

Each function writes one file; the suffix of the path chooses the format (`.png`, `.svg`, `.pdf`).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from sftjax.evaluate.bootstrap import Interval
from sftjax.evaluate.calibration import calibration_bins, ece
from sftjax.evaluate.figure import (
    COLOURS,
    INK,
    MARKERS,
    QUIET,
    distinct_runs,
    figure,
    head,
    named_rows,
    save,
    tidy,
)
from sftjax.evaluate.moved import Moved

Record = Mapping[str, float]
"""`step` and named numbers, as the training loop records them."""


def loss_curve(
    history: Sequence[Record],
    path: str | os.PathLike[str],
    *,
    title: str = "Training",
    metric: str = "eval_accuracy",
    loss_unit: str = "nats",
) -> Path:
    """Draw the loss over the updates and, as far as recorded, a metric, gradient norm and rate.

    Args:
      history: `{"step": 10, "loss": 0.6, "grad_norm": 1.2, "learning_rate": 1e-4}` and
        `{"step": 50, "eval_loss": 0.5, "eval_accuracy": 0.8}`, in any mixture.
      path: file to write.
      title: above the picture.
      metric: which evaluated metric has a panel.
      loss_unit: beside the loss; "" for none.

    Raises:
      ValueError: if no record has a `loss` or `eval_loss`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     loss_curve([{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}], folder + "/a.png").name
    'a.png'
    """
    names = {name for record in history for name in record}
    if not names & {"loss", "eval_loss"}:
        raise ValueError("the history has neither 'loss' nor 'eval_loss'; there is nothing to draw")
    panels = [name for name in (metric, "grad_norm", "learning_rate") if name in names]
    heights = [3.0, *(1.3 for _ in panels)]
    drawing = figure(7.2, 1.2 + sum(heights))
    axes = drawing.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    drawn = [(name, axes[0, 0]) for name in ("loss", "eval_loss") if name in names]
    drawn += zip(panels, axes[1:, 0], strict=True)
    for name, axis in drawn:
        evaluated = name.startswith("eval_")
        axis.plot(
            *_series(history, name),
            color=COLOURS[1 if evaluated else 0],
            marker="o" if evaluated else "",
            ms=4.5,
            lw=1.6,
            label="evaluation" if evaluated else "training",
        )
        axis.set_ylabel(name.removeprefix("eval_").replace("grad_", "gradient ").replace("_", " "))
        tidy(axis, grid="both")
    if metric in names and "eval_loss" not in names:  # its colour is told beside the loss's
        axes[0, 0].plot([], [], color=COLOURS[1], marker="o", ms=4.5, lw=1.6, label="evaluation")
    axes[0, 0].set_ylabel(f"loss ({loss_unit})" if loss_unit else "loss")
    if "learning_rate" in panels:
        axes[-1, 0].ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=True)
        axes[-1, 0].yaxis.get_offset_text().set_fontsize(8)
    for name, axis in zip(panels, axes[1:, 0], strict=True):
        if name in ("grad_norm", "learning_rate"):
            axis.set_ylim(bottom=0)
    axes[-1, 0].set_xlabel("update")
    axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[:-1, 0]:
        axis.tick_params(axis="x", length=0)
    drawing.align_ylabels()
    head(drawing, axes[0, 0], title)
    return save(drawing, path)


def moved_per_block(
    tables: Mapping[str, Sequence[Moved]],
    path: str | os.PathLike[str],
    *,
    title: str = "How far each block moved from its pretrained weights",
) -> Path:
    """Draw the relative distance of every block, one bar a run.

    Args:
      tables: run name -> what `moved` returned.
      path: file to write.
      title: above the picture.

    Raises:
      ValueError: if there is no run, there are too many to tell apart, or none has a block with
        pretrained weights.
    """
    runs = list(tables)
    distinct_runs(runs)
    everything = [row for run in runs for row in tables[run]]
    blocks = list(dict.fromkeys(row.block for row in everything if row.scalars))
    fresh = list(dict.fromkeys(row.block for row in everything if not row.scalars))
    if not blocks:
        raise ValueError("no run has a block with pretrained weights; there is nothing to draw")
    thick = 0.8 / len(runs)
    drawing = figure(7.2, 1.7 + len(blocks) * max(0.3, 0.16 * len(runs)))
    axis = drawing.subplots()
    finite = [row.relative for row in everything if row.scalars and np.isfinite(row.relative)]
    limit = 110 * max(finite, default=0) or 1.0
    for number, run in enumerate(runs):
        rows = [row for row in tables[run] if row.scalars]
        lane = (number - (len(runs) - 1) / 2) * thick
        bars = axis.barh(
            [blocks.index(row.block) + lane for row in rows],
            [min(100 * row.relative, limit) for row in rows],
            thick * 0.88,
            color=COLOURS[number],
            label=run,
        )
        words = [_percent(row.relative) for row in rows]
        axis.bar_label(bars, words, padding=3, fontsize=7.5, color=INK)
    named_rows(axis, blocks)
    axis.set_xlim(0, limit)
    axis.set_xlabel("distance moved (% of the block's pretrained norm)")
    head(drawing, axis, title)
    if fresh:
        note = f"Not shown, being new, without pretrained weights: {', '.join(fresh)}"
        drawing.supxlabel(note, fontsize=8, color=QUIET)
    return save(drawing, path)


def reliability(
    probabilities: ArrayLike,
    labels: ArrayLike,
    path: str | os.PathLike[str],
    *,
    title: str = "Reliability",
    num_bins: int = 15,
) -> Path:
    """Draw how often the model is right at each confidence, and how often it has that confidence.

    Args:
      probabilities: (N, C), rows summing to 1.
      labels: (N,) class ids.
      path: file to write.
      title: above the picture.
      num_bins: bars between confidence 0 and 1.
    """
    bins = calibration_bins(probabilities, labels, num_bins)
    total = int(bins.rows.sum())
    full = bins.rows > 0
    low, accuracy = bins.low[full], bins.accuracy[full]
    bars = {"width": 1 / num_bins, "align": "edge"}
    drawing = figure(5.6, 6.2)
    top, bottom = drawing.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    top.bar(low, accuracy, **bars, color=COLOURS[5], edgecolor="white", lw=1, label="accuracy")
    top.plot([0, 1], [0, 1], color=QUIET, lw=1.2, ls=(0, (4, 3)), label="calibrated")
    for number, (confidence, right) in enumerate(zip(bins.confidence[full], accuracy, strict=True)):
        top.plot(
            [confidence, confidence],
            [right, confidence],
            color=COLOURS[1],
            marker="o",
            markevery=[0],
            ms=4.5,
            lw=2,
            label=None if number else "calibration gap",
        )
    top.set(ylim=(0, 1.02), xlim=(float(low[0]), 1.005), ylabel="accuracy")
    bottom.bar(low, 100 * bins.rows[full] / total, **bars, color="#8C8C8C", edgecolor="white", lw=1)
    bottom.set(
        xlabel="confidence (probability of the predicted class)",
        ylabel=f"% of {total:,} rows",
    )
    for axis in (top, bottom):
        tidy(axis, grid="y")
    top.tick_params(axis="x", length=0)
    drawing.align_ylabels()
    head(drawing, top, f"{title} (ECE {ece(probabilities, labels, num_bins):.3f})")
    return save(drawing, path)


def domains(
    results: Mapping[str, Mapping[str, Interval]],
    path: str | os.PathLike[str],
    *,
    title: str = "Accuracy by domain",
    xlabel: str = "accuracy",
) -> Path:
    """Draw a metric with its interval, one row a domain, one colour and marker a run.

    Args:
      results: run name -> domain -> interval.
      path: file to write.
      title: above the picture.
      xlabel: the metric, with its unit if it has one.

    Raises:
      ValueError: if there is nothing to draw, or there are too many runs to tell apart.
    """
    runs = list(results)
    distinct_runs(runs)
    rows = list(dict.fromkeys(domain for run in runs for domain in results[run]))
    levels = {interval.level for run in runs for interval in results[run].values()}
    if len(levels) != 1:
        raise ValueError(
            f"the intervals have the levels {sorted(levels)}, and one picture shows one; make all "
            "of them at one level (bootstrap's `level`)"
        )
    lane = 0.7 / len(runs)
    drawing = figure(7.2, 1.7 + len(rows) * max(0.4, 0.2 * len(runs)))
    axis = drawing.subplots()
    for number, run in enumerate(runs):
        found = results[run]
        at = [rows.index(domain) + (number - (len(runs) - 1) / 2) * lane for domain in found]
        low, high = [i.low for i in found.values()], [i.high for i in found.values()]
        axis.hlines(at, low, high, color=COLOURS[number])
        axis.plot(
            [i.value for i in found.values()],
            at,
            color=COLOURS[number],
            marker=MARKERS[number],
            ms=6,
            ls="none",
            label=run,
        )
    named_rows(axis, rows)
    axis.set_xlabel(f"{xlabel}, with its {levels.pop():.0%} bootstrap interval")
    head(drawing, axis, title)
    return save(drawing, path)


def _series(history: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(record["step"], record[name]) for record in history if name in record]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _percent(relative: float) -> str:
    return f"{100 * relative:#.2g}".rstrip(".") if relative else "0"
