"""Plots of a run on pictures: which class goes for which, the pictures that it got wrong, scores.

Each function writes one file; the suffix of the path chooses the format (`.png`, `.svg`, `.pdf`).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from sftjax.evaluate.classification import confusion_matrix
from sftjax.evaluate.figure import COLOURS, INK, MARKERS, QUIET, figure, head, save, tidy
from sftjax.evaluate.ranking import auroc
from sftjax.evaluate.screening import at_threshold, roc_curve


def confusion(
    predictions: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str = "Which class is taken for which",
) -> Path:
    """Draw the confusion matrix: shares of each true class (a row), with the counts.

    Args:
      predictions: (N,) class ids.
      labels: (N,) class ids.
      names: C class names in id order.
      path: file to write.
      title: above the picture.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     confusion([0, 1, 1], [0, 0, 1], ["no", "yes"], folder + "/a.png").name
    'a.png'
    """
    counts = confusion_matrix(predictions, labels, len(names))
    rows = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    side = min(0.62 * len(names) + 1.9, 11)
    drawing = figure(side + 0.7, side)
    axis = drawing.subplots()
    image = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    size = 9 if len(names) < 12 else 6
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = shares[row, column] > 0.55
            axis.text(
                column, row, f"{count:,}", ha="center", va="center", fontsize=size,
                color="white" if dark else INK,
            )  # fmt: skip
    longest = max(map(len, names))
    axis.set_xticks(
        range(len(names)), list(names), rotation=0 if longest * len(names) < 30 else 60,
        ha="center" if longest * len(names) < 30 else "right", rotation_mode="anchor",
    )  # fmt: skip
    axis.set_yticks(range(len(names)), list(names))
    axis.set(xlabel="predicted", ylabel="true")
    tidy(axis, grid="both")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    bar = drawing.colorbar(image, ax=axis, shrink=0.8)
    bar.set_label("% of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    drawing.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    return save(drawing, path)


def gallery(
    pictures: ArrayLike,
    titles: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    columns: int = 6,
) -> Path:
    """Draw pictures side by side, each under a line of text.

    Args:
      pictures: (N, H, W, C) uint8, uint16, or floats from 0 to 1.
      titles: one a picture; `\\n` breaks a line.
      path: file to write.
      title: above all of them.
      columns: pictures in a row.

    Raises:
      ValueError: if there is no picture, or not one title for each.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gallery(np.zeros((2, 4, 4, 3)), ["a", "b"], folder + "/a.png").name
    'a.png'
    """
    shown = np.asarray(pictures)
    if not len(shown) or len(shown) != len(titles):
        raise ValueError(f"{len(shown)} pictures and {len(titles)} titles; give one of each")
    if shown.dtype.kind == "u":
        shown = shown / np.iinfo(shown.dtype).max
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    drawing = figure(1.55 * columns + 0.2, 1.95 * rows + (0.45 if title else 0.1))
    axes = drawing.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, words in zip(axes.flat, shown, titles, strict=False):
        grey = picture.shape[-1] == 1
        axis.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=1)
        axis.set_title(words, fontsize=7.5, color=INK)
    if title:
        drawing.suptitle(title, fontsize=11, fontweight="bold", color=INK)
    return save(drawing, path)


def roc_curves(
    scores: Mapping[str, tuple[ArrayLike, ArrayLike]],
    path: str | os.PathLike[str],
    *,
    thresholds: Mapping[str, float] | None = None,
    title: str = "ROC curves, thresholds marked",
) -> Path:
    """Draw sensitivity against specificity of each class, and where its threshold is.

    Args:
      scores: class -> `(scores, whether the row is of the class)`, at most seven classes.
      path: file to write.
      thresholds: class -> the threshold that is used.
      title: above the picture.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     roc_curves({"ill": ([0.1, 0.9], [0, 1])}, folder + "/a.png").name
    'a.png'
    """
    drawing = figure(5.6, 5.4)
    axis = drawing.subplots()
    axis.plot([0, 1], [1, 0], color=QUIET, lw=1, ls=(0, (4, 3)), label="chance")
    for number, (name, (values, truth)) in enumerate(scores.items()):
        _, found, spared = roc_curve(values, truth)
        axis.plot(
            spared, found, color=COLOURS[number], lw=1.8,
            label=f"{name} (AUROC {auroc(values, truth):.3f})", clip_on=False,
        )  # fmt: skip
        if thresholds and name in thresholds:
            at = at_threshold(values, truth, thresholds[name])
            axis.plot(
                at.specificity, at.sensitivity, color=COLOURS[number], marker=MARKERS[number],
                ms=8, mec="white", clip_on=False, zorder=5,
            )  # fmt: skip
    axis.set(
        xlim=(1, 0), ylim=(0, 1), xlabel="specificity (share of the others left alone)",
        ylabel="sensitivity (share of the class found)",
    )  # fmt: skip
    tidy(axis, grid="both")
    head(drawing, axis, title)
    return save(drawing, path)


def score_histogram(
    groups: Mapping[str, ArrayLike],
    path: str | os.PathLike[str],
    *,
    title: str = "Anomaly scores",
    xlabel: str = "score (higher is stranger)",
    line: tuple[float, str] | None = None,
) -> Path:
    """Draw how the scores of each kind of row are spread, each kind's bars adding up to 100 %.

    Args:
      groups: kind -> its scores, at most seven kinds.
      path: file to write.
      title: above the picture.
      xlabel: what the score is.
      line: `(score, word)` of a threshold to mark.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     score_histogram({"normal": [0.0, 1.0], "odd": [3.0]}, folder + "/a.png").name
    'a.png'
    """
    every = np.concatenate([np.asarray(values, np.float64) for values in groups.values()])
    low, high = np.quantile(every, [0.0, 0.995])
    edges = np.linspace(low, max(high, low + 1e-9), 41)
    drawing = figure(7.2, 3.8)
    axis = drawing.subplots()
    for number, (name, values) in enumerate(groups.items()):
        own = np.clip(np.asarray(values, np.float64), edges[0], edges[-1])
        axis.hist(
            own, edges, weights=np.full(len(own), 100 / len(own)), color=COLOURS[number],
            alpha=0.55, label=f"{name} ({len(own):,})",
        )  # fmt: skip
    if line is not None:
        axis.axvline(line[0], color=INK, lw=1.2, ls=(0, (4, 3)), label=line[1])
    axis.set(xlabel=xlabel, ylabel="% of the kind's pictures")
    tidy(axis, grid="y")
    head(drawing, axis, title)
    return save(drawing, path)
