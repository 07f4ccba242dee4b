"""The look that all plots share.

A figure is an object of its own, drawn by Agg: no display, no global state of matplotlib. Colours
are Okabe and Ito's, told apart by colour-blind readers too; every run has its own marker besides.
"""

import os
import struct
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
INK, QUIET, FAINT = "#222222", "#6B6B6B", "#D9D9D9"
DPI = 150
_SHOWN = 96
"""Pixels of a page to an inch of the figure."""


class Picture(Path if TYPE_CHECKING else type(Path())):
    """The path of a picture; a notebook whose cell ends with it shows the picture."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]] | None:
        if self.suffix.lower() != ".png" or not self.is_file():
            return None
        content = self.read_bytes()
        (width,) = struct.unpack(">I", content[16:20])  # of the header, which comes first
        return content, {"width": round(width * _SHOWN / DPI)}

    def _repr_svg_(self) -> str | None:
        if self.suffix.lower() != ".svg" or not self.is_file():
            return None
        return self.read_text(encoding="utf-8")


def figure(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches at 150 dpi.

    >>> figure(4, 3).get_size_inches().tolist()
    [4.0, 3.0]
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(drawing)
    drawing.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr]
    return drawing


def tidy(axis: "Axes", grid: Literal["x", "y", "both"]) -> None:
    """Leave two spines, a pale grid behind the data, and labels of one size.

    >>> axis = figure(4, 3).subplots()
    >>> tidy(axis, "y")
    >>> axis.spines["top"].get_visible()
    False
    """
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#8C8C8C")
    axis.tick_params(colors=INK, labelsize=9)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(fontsize=9.5, color=INK)
    axis.grid(axis=grid, color=FAINT, lw=0.7)
    axis.set_axisbelow(True)


def distinct_runs(runs: Sequence[str]) -> None:
    """Check that there are few enough runs to tell apart.

    >>> distinct_runs([])
    Traceback (most recent call last):
    ValueError: there is no run to draw; ...
    """
    if not runs:
        raise ValueError("there is no run to draw; pass at least one, by name")
    if len(runs) > len(COLOURS):
        raise ValueError(
            f"{len(runs)} runs in one picture; {len(COLOURS)} can be told apart, so draw several"
        )


def named_rows(axis: "Axes", names: Sequence[str]) -> None:
    """Name the rows of a horizontal plot, the first at the top.

    >>> axis = figure(4, 3).subplots()
    >>> named_rows(axis, ["movie", "tweets"])
    >>> [tick.get_text() for tick in axis.get_yticklabels()]
    ['movie', 'tweets']
    """
    axis.set_yticks(range(len(names)), list(names))
    axis.set_ylim(len(names) - 0.5, -0.5)
    for edge in range(1, len(names)):
        axis.axhline(edge - 0.5, color=FAINT, lw=0.7, zorder=0)
    tidy(axis, grid="x")
    axis.tick_params(axis="y", length=0)


def head(drawing: "Figure", axis: "Axes", title: str) -> None:
    """Put the title and, below it, the legend above the plot, where they can hide nothing.

    >>> drawing = figure(4, 3)
    >>> axis = drawing.subplots()
    >>> _ = axis.plot([0, 1], label="training")
    >>> head(drawing, axis, "Loss")
    >>> drawing.legends[0].get_title().get_text()
    'Loss'
    """
    handles, labels = axis.get_legend_handles_labels()
    width = drawing.get_figwidth()
    # About 13 characters of 9 pt fit an inch, and a handle takes the room of 6.
    columns = int(width * 13 / (6 + max(map(len, labels))))
    # The legend's own title: constrained layout would lay a figure's title over the legend.
    legend = drawing.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=max(1, min(columns, len(labels))),
        frameon=False,
        fontsize=9,
        handlelength=1.4,
        columnspacing=1.6,
        borderpad=0,
        labelspacing=0.4,
        title=textwrap.fill(title, int(width * 8)),
        title_fontproperties={"size": 12, "weight": "bold"},
        alignment="left",
    )
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_color(INK)


def save(drawing: "Figure", path: str | os.PathLike[str]) -> Path:
    """Write the figure, making the folder if there is none, and return its path, a `Picture`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(figure(4, 3), folder + "/plots/loss.png").name
    'loss.png'
    """
    path = Picture(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path)
    return path
