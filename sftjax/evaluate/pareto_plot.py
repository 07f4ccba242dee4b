"""The picture of what was learned against what was kept, one labelled point a method."""

import os
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftjax.evaluate.figure import COLOURS, INK, MARKERS, QUIET, figure, head, save, tidy
from sftjax.evaluate.pareto import Measured, Point, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 12
"""At most so many points carry their names; more carry numbers, with the names below."""

FONT = 8.5


class _Look(NamedTuple):
    colour: str
    marker: str


def pareto(
    points: Sequence[Point],
    path: str | os.PathLike[str],
    *,
    pretrained: float | None = None,
    title: str = "What was learned against what was kept",
    xlabel: str = "retention",
    ylabel: str = "accuracy",
) -> Path:
    """Draw accuracy against retention, with the Pareto front and a line along each method's doses.

    Filled points are on the front, hollow ones are beaten in both. The same points give the same
    picture.

    Args:
      points: from `point`.
      path: file to write.
      pretrained: retention of the model before fine-tuning, a dashed line; None for none.
      title: above the picture.
      xlabel: the measure of retention.
      ylabel: the measure of accuracy.

    Raises:
      ValueError: if there is no point, two have one name, or a method has one dose twice.

    >>> import tempfile
    >>> from sftjax.evaluate.pareto import point
    >>> points = [point("FT", 0.79, 0.37), point("LP", 0.69, 0.55)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pareto(points, folder + "/pareto.png", pretrained=0.55).name
    'pareto.png'
    """
    looks = _looks(points)
    front = pareto_front(points)
    numbered = len(points) > NAMED
    drawing = figure(7.2, 5.4 + (0.3 + 0.19 * -(-len(points) // 3) if numbered else 0))
    axis = drawing.subplots()
    for index, (point, look) in enumerate(zip(points, looks, strict=True)):
        _mark(axis, point, look, filled=index in front)
    if pretrained is not None:
        label = f"pretrained ({pretrained:.3f})"
        axis.axvline(pretrained, color=QUIET, lw=1.2, ls=(0, (5, 3)), zorder=1, label=label)
    _join_doses(axis, points, looks)
    axis.margins(0.09)
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
    _draw_front(axis, [points[index] for index in front])
    axis.set_xlabel(_with_bars(xlabel, [point.retention for point in points]))
    axis.set_ylabel(_with_bars(ylabel, [point.accuracy for point in points]))
    tidy(axis, grid="both")
    head(drawing, axis, title)
    if numbered:
        _key(drawing, points, looks, front)
    words = [str(n + 1) if numbered else p.name for n, p in enumerate(points)]
    _label(drawing, axis, points, words)
    return save(drawing, path)


def places(
    at: NDArray[np.float64],
    sizes: NDArray[np.float64],
    taken: NDArray[np.float64],
    room: tuple[float, float, float, float],
) -> NDArray[np.float64]:
    """Return where the middle of each label goes, so that labels lie near and not over anything.

    Each label in turn takes the candidate around its point that covers least and lies nearest,
    the most crowded point first; twice more, knowing where all others went.

    Args:
      at: (N, 2) points.
      sizes: (N, 2) width and height of the labels.
      taken: (M, 4) boxes `x0, y0, x1, y1` to keep clear, by their area.
      room: the box that labels must stay in.

    Returns:
      (N, 2) positions.

    >>> one, many = np.zeros((1, 2)), np.array([[20.0, 8.0]])
    >>> places(one, many, np.array([[-4.0, -4.0, 4.0, 4.0]]), (-99, -99, 99, 99)).round().tolist()
    [[17.0, 0.0]]
    """
    angles = np.arange(16) * np.pi / 8
    ways = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    reach = np.array([7.0, 11.0, 17.0, 25.0, 35.0, 47.0, 61.0, 77.0])
    steps = (reach[:, None, None] * ways).reshape(-1, 2)
    sides = np.clip(1.5 * np.tile(ways, (len(reach), 1)), -1, 1) / 2
    far = np.repeat(reach, len(ways))
    gaps = np.linalg.norm(at[:, None] - at[None], axis=-1)
    order = np.argsort(-(gaps < 60).sum(axis=1), kind="stable").tolist()
    boxes = np.full((len(at), 4), np.nan)
    for _ in range(3):
        for label in order:
            middle = at[label] + steps + sides * sizes[label]
            candidate = np.concatenate([middle - sizes[label] / 2, middle + sizes[label] / 2], 1)
            others = np.delete(boxes, label, axis=0)
            others = others[np.isfinite(others[:, 0])]
            covers = _overlap(candidate, others).sum(1) + _overlap(candidate, taken).sum(1)
            inside = _overlap(candidate, np.array([room]))[:, 0]
            cost = 20 * covers + 20 * (np.prod(sizes[label]) - inside) + far
            boxes[label] = candidate[int(np.argmin(cost.round(6)))]
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _overlap(these: NDArray[np.float64], those: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas that boxes (C, 4) and (M, 4) share, (C, M)."""
    low = np.maximum(these[:, None, :2], those[None, :, :2])
    high = np.minimum(these[:, None, 2:], those[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=-1)


def _looks(points: Sequence[Point]) -> list[_Look]:
    names = [point.name for point in points]
    if not names:
        raise ValueError("there is no point to draw; pass at least one")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two points are named {twice!r}; give each point a name of its own")
    doses = [(point.method, point.dose) for point in points if point.dose is not None]
    if again := next((one for one in doses if doses.count(one) > 1), None):
        raise ValueError(f"method {again[0]!r} has dose {again[1]:g} twice; pass its seeds as one")
    methods = list(dict.fromkeys(point.method for point in points))
    if len(methods) > len(COLOURS) * len(MARKERS):
        raise ValueError(
            f"{len(methods)} methods in one picture; {len(COLOURS) * len(MARKERS)} can be told "
            "apart, so draw several"
        )
    # A colour's second method has another marker than its first.
    turn = {name: divmod(number, len(COLOURS)) for number, name in enumerate(methods)}
    looks = {
        name: _Look(COLOURS[at], MARKERS[(at + 2 * lap) % len(MARKERS)])
        for name, (lap, at) in turn.items()
    }
    return [looks[point.method] for point in points]


def _mark(axis: "Axes", point: Point, look: _Look, filled: bool) -> None:
    x, y = point.retention, point.accuracy
    axis.plot([x.low, x.high], [y.value, y.value], color=look.colour, lw=0.9, alpha=0.45, zorder=2)
    axis.plot([x.value, x.value], [y.low, y.high], color=look.colour, lw=0.9, alpha=0.45, zorder=2)
    axis.plot(
        [x.value],
        [y.value],
        color=look.colour,
        marker=look.marker,
        ms=7,
        mew=1.5,
        mfc=look.colour if filled else "white",
        ls="none",
        zorder=4,
    )


def _join_doses(axis: "Axes", points: Sequence[Point], looks: Sequence[_Look]) -> None:
    dosed = [(p, look) for p, look in zip(points, looks, strict=True) if p.dose is not None]
    dosed.sort(key=lambda one: (one[0].method, one[0].dose))
    for _, group in groupby(dosed, key=lambda one: one[0].method):
        line, group_looks = zip(*group, strict=True)
        if len(line) < 2:
            continue
        axis.plot(
            [p.retention.value for p in line],
            [p.accuracy.value for p in line],
            color=group_looks[0].colour,
            lw=1,
            zorder=3,
        )
    if len(dosed) > len({point.method for point, _ in dosed}):
        axis.plot([], [], color=QUIET, lw=1, label="doses of one method")


def _draw_front(axis: "Axes", front: Sequence[Point]) -> None:
    """A staircase: what lies below and left of it is beaten in both."""
    ordered = sorted(front, key=lambda p: (p.retention.value, -p.accuracy.value))
    xs = [p.retention.value for p in ordered]
    ys = [p.accuracy.value for p in ordered]
    axis.plot(
        np.repeat([axis.get_xlim()[0], *xs], 2)[1:],
        np.repeat([*ys, axis.get_ylim()[0]], 2)[:-1],
        color="#BFBFBF",
        lw=2.4,
        solid_joinstyle="miter",
        zorder=1.5,
        label="Pareto front (filled points)",
    )


def _with_bars(name: str, measured: Sequence[Measured]) -> str:
    bars = list(dict.fromkeys(one.bars for one in measured if one.bars))
    return f"{name}, {' or '.join(bars)}" if bars else name


def _key(
    drawing: "Figure", points: Sequence[Point], looks: Sequence[_Look], front: Sequence[int]
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=look.colour, marker=look.marker, ms=6, mew=1.3, ls="none",
            mfc=look.colour if index in front else "white",
        )
        for index, look in enumerate(looks)
    ]  # fmt: skip
    names = [f"{index + 1}  {point.name}" for index, point in enumerate(points)]
    legend = drawing.legend(
        handles,
        names,
        loc="outside lower left",
        ncols=3 if max(map(len, names)) <= 26 else 2,
        frameon=False,
        fontsize=FONT,
        handletextpad=0.2,
        labelspacing=0.35,
        borderpad=0,
    )
    for text in legend.get_texts():
        text.set_color(INK)


def _label(drawing: "Figure", axis: "Axes", points: Sequence[Point], words: Sequence[str]) -> None:
    """Write the words beside their points; from here on the layout stands still."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patheffects import withStroke

    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")
    assert isinstance(drawing.canvas, FigureCanvasAgg)
    renderer, unit = drawing.canvas.get_renderer(), 72 / drawing.dpi
    values = [(p.retention.value, p.accuracy.value) for p in points]
    at = axis.transData.transform(values) * unit
    written = [drawing.text(0, 0, word, fontsize=FONT) for word in words]
    extents = [text.get_window_extent(renderer) for text in written]
    sizes = np.array([(box.width, box.height) for box in extents]) * unit + 2
    for text in written:
        text.remove()
    box = axis.get_window_extent(renderer)
    room = (box.x0 * unit + 2, box.y0 * unit + 2, box.x1 * unit - 2, box.y1 * unit - 2)
    marks = np.concatenate([at - 5, at + 5], axis=1)
    middles = places(at, sizes, np.concatenate([marks, _specks(axis) * unit]), room)
    for word, value, point, middle, size in zip(words, values, at, middles, sizes, strict=True):
        edge = np.maximum(np.abs(middle - point) - size / 2, 0)
        axis.annotate(
            word,
            value,
            middle - point,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=FONT,
            color=INK,
            zorder=5,
            annotation_clip=False,
            path_effects=[withStroke(linewidth=2.4, foreground="white", alpha=0.85)],
            arrowprops=(
                {"arrowstyle": "-", "color": QUIET, "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
                if np.hypot(*edge) > 12
                else None
            ),
        )


def _specks(axis: "Axes") -> NDArray[np.float64]:
    """Return small boxes along every line, in pixels: a label on one is worse than beside it."""
    boxes = [np.empty((0, 4))]
    for line in axis.lines:
        ends = line.get_transform().transform(line.get_xydata())
        for one, other in pairwise(ends):
            steps = np.linspace(0, 1, 2 + int(np.hypot(*(other - one)) / 6))[:, None]
            along = one + steps * (other - one)
            boxes.append(np.concatenate([along - 0.7, along + 0.7], axis=1))
    return np.concatenate(boxes)
