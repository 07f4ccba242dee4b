"""The front by brute force, and a picture whose labels can be read."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from sftjax.evaluate.bootstrap import Interval
from sftjax.evaluate.pareto import pareto_front, point
from sftjax.evaluate.pareto_plot import pareto, places

coordinates = st.integers(0, 6) | st.floats(0, 6)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=25))
def test_the_front_is_what_no_point_dominates(values):
    def beaten(p):
        return any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in values)

    front = pareto_front(values)
    assert sorted(front) == [n for n, p in enumerate(values) if not beaten(p)]
    accuracy = [values[n][0] for n in front]
    kept = [values[n][1] for n in front]
    assert accuracy == sorted(accuracy)
    assert kept == sorted(kept, reverse=True)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=12), st.randoms())
def test_order_and_monotone_scales_do_not_matter(values, random):
    front = {values[n] for n in pareto_front(values)}
    shuffled = random.sample(values, len(values))
    assert {shuffled[n] for n in pareto_front(shuffled)} == front
    # Exact in floats: doubling keeps every order and every tie.
    scaled = [(2 * a, 4 * r) for a, r in values]
    assert {values[n] for n in pareto_front(scaled)} == front


def test_points_are_values_intervals_or_seeds():
    interval = Interval(0.5, 0.4, 0.7, 0.95, 1000, 0)
    at = point("a", [0.7, 0.8, 0.9], interval)
    assert at.accuracy[:3] == (pytest.approx(0.8), pytest.approx(0.7), pytest.approx(0.9))
    assert at.accuracy.bars == "± 1 s.d. over 3 seeds"
    assert at.retention == (0.5, 0.4, 0.7, "95% interval")
    assert at.method == "a"
    assert point("a", 0.5, np.float32(0.25)).retention == (0.25, 0.25, 0.25, "")
    assert pareto_front([at, point("b", 0.9, 0.1), point("c", 0.5, 0.1)]) == [0, 1]


# What methods.md reports, with spreads: families by dose, coincident points, and long names.
KEPT = [
    ("LP", None, None, 0.690, 0.550), ("FT", None, None, 0.786, 0.369),
    ("LP-FT", None, None, 0.724, 0.549), ("WiSE .5 of LP-FT", None, None, 0.715, 0.559),
    ("L2-SP 0.01", "L2-SP", 0.01, 0.786, 0.369), ("L2-SP 1", "L2-SP", 1.0, 0.786, 0.407),
    ("L2-SP 4", "L2-SP", 4.0, 0.788, 0.441),
    ("coupled L2-SP 0.01", "coupled L2-SP", 0.01, 0.787, 0.378),
    ("coupled L2-SP 0.1", "coupled L2-SP", 0.1, 0.791, 0.414),
    ("mixout .7", None, None, 0.791, 0.406),
    ("feature distillation", None, None, 0.742, 0.547),
    ("LLRD .7", None, None, 0.775, 0.461), ("BitFit", None, None, 0.767, 0.457),
    ("LoRA r 8", None, None, 0.770, 0.474),
]  # fmt: skip


def family(count):
    rng = np.random.default_rng(0)
    return [
        point(name, a + 0.012 * rng.normal(size=4), r + 0.012 * rng.normal(size=4), method=method,
              dose=dose)
        for name, method, dose, a, r in KEPT[:count]
    ]  # fmt: skip


@pytest.fixture
def saved(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig

    def spy(figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return figures


def boxes_of(drawing):
    renderer = drawing.canvas.get_renderer()
    (axis,) = drawing.axes
    # Text.get_window_extent: that of an annotation would hold its line to the point.
    return {t.get_text(): super(type(t), t).get_window_extent(renderer) for t in axis.texts}


def area(one, other):
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0) * max(height, 0)


@pytest.mark.parametrize("count", [1, 2, 7, 12, 14])
def test_no_label_covers_another_or_leaves_the_plot(count, tmp_path, saved):
    points = family(count)
    pareto(points, tmp_path / "a.png", pretrained=0.55, xlabel="retrieval P@1")
    (drawing,) = saved
    boxes = boxes_of(drawing)
    words = [p.name for p in points] if count <= 12 else [str(n + 1) for n in range(count)]
    assert list(boxes) == words
    for one, other in combinations(boxes.values(), 2):
        assert area(one, other) == 0
    axis = drawing.axes[0].get_window_extent()
    for box in boxes.values():
        assert area(box, axis) == pytest.approx(box.width * box.height)
    legends = [legend.get_window_extent() for legend in drawing.legends]
    for one, other in combinations([*legends, axis], 2):
        assert area(one, other) == 0
    width, height = drawing.get_size_inches() * drawing.dpi
    for box in legends:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    if count > 12:
        named = [text.get_text() for text in drawing.legends[1].get_texts()]
        assert named == [f"{n + 1}  {p.name}" for n, p in enumerate(points)]


def test_doses_are_joined_in_order_and_the_front_and_the_pretrained_are_drawn(tmp_path, saved):
    points = [
        point("b", 0.7, 0.5, method="m", dose=4), point("a", 0.8, 0.3, method="m", dose=0.1),
        point("c", 0.75, 0.4, method="m", dose=1), point("d", 0.6, 0.2),
    ]  # fmt: skip
    pareto(points, tmp_path / "a.png", pretrained=0.55)
    (axis,) = saved[0].axes
    lines = {line.get_label(): line for line in axis.lines}
    assert "doses of one method" in lines
    (joined,) = (line for line in axis.lines if len(line.get_xdata()) == 3)
    assert joined.get_xdata() == pytest.approx([0.3, 0.4, 0.5])
    assert joined.get_ydata() == pytest.approx([0.8, 0.75, 0.7])
    front = lines["Pareto front (filled points)"]
    assert front.get_xdata()[1:] == pytest.approx([0.3, 0.3, 0.4, 0.4, 0.5, 0.5])
    assert front.get_ydata()[:-1] == pytest.approx([0.8, 0.8, 0.75, 0.75, 0.7, 0.7])
    assert lines["pretrained (0.550)"].get_xdata() == [0.55, 0.55]
    marks = [line for line in axis.lines if line.get_marker() not in ("None", "")]
    assert [m.get_markerfacecolor() == "white" for m in marks] == [False, False, False, True]
    assert len({(m.get_color(), m.get_marker()) for m in marks}) == 2


def test_the_axes_say_what_the_bars_are(tmp_path, saved):
    interval = Interval(0.5, 0.4, 0.7, 0.95, 1000, 0)
    pareto([point("a", [0.7, 0.8], interval)], tmp_path / "a.png", xlabel="P@1")
    (axis,) = saved[0].axes
    assert axis.get_xlabel() == "P@1, 95% interval"
    assert axis.get_ylabel() == "accuracy, ± 1 s.d. over 2 seeds"


def test_the_same_points_give_the_same_bytes(tmp_path):
    files = [pareto(family(14), tmp_path / f"{n}.png", pretrained=0.55) for n in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_labels_of_scattered_points_find_room(seed):
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, 400, size=(12, 2))
    sizes = np.stack([rng.uniform(20, 80, size=12), np.full(12, 12.0)], axis=1)
    markers = np.concatenate([at - 5, at + 5], axis=1)
    middles = places(at, sizes, markers, (-40, -40, 440, 440))
    low, high = middles - sizes / 2, middles + sizes / 2
    for one, other in combinations(range(12), 2):
        shared = np.minimum(high[one], high[other]) - np.maximum(low[one], low[other])
        assert (shared <= 0).any()
    assert (low >= -40).all()
    assert (high <= 440).all()


def test_bad_input_is_named(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="no point to draw"):
        pareto([], path)
    with pytest.raises(ValueError, match="two points are named 'a'"):
        pareto([point("a", 1, 1), point("a", 1, 2)], path)
    with pytest.raises(ValueError, match="'m' has dose 1 twice"):
        pareto([point(n, 1, 1, method="m", dose=1) for n in "ab"], path)
    with pytest.raises(ValueError, match="50 methods in one picture"):
        pareto([point(str(n), n, n) for n in range(50)], path)
    with pytest.raises(ValueError, match="accuracy of 'a' is nan"):
        point("a", float("nan"), 0.5)
    with pytest.raises(ValueError, match="retention of 'a': there are no values"):
        point("a", 0.5, [])
    with pytest.raises(ValueError, match="point 1 is"):
        pareto_front([(0, 1), (np.inf, 1)])
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        pareto_front([])
    assert not path.exists()
