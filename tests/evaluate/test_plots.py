"""Pictures: files that hold what they should, without overlap, display or global state."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from sftjax.evaluate import (
    Interval,
    Moved,
    domains,
    loss_curve,
    moved_per_block,
    reliability,
    softmax,
)

HISTORY = [
    {"step": s, "loss": 0.7 - s / 1000, "grad_norm": 1.0 + s / 300, "learning_rate": 1e-4}
    for s in range(10, 210, 10)
] + [{"step": s, "eval_loss": 0.65, "eval_accuracy": 0.6 + s / 1000} for s in (100, 200)]
TABLE = [
    Moved("embeddings", 0.0, 0.0, 10, 0),
    Moved("layer 0", 0.1, 0.02, 10, 0),
    Moved("layer 1", 0.2, 0.04, 10, 0),
    Moved("classifier", 0.0, 0.0, 0, 6),
]
RESULTS = {
    run: {d: Interval(0.8 + k / 50, 0.77, 0.9, 0.95, 1000, 0) for d in ("movie", "tweets")}
    for k, run in enumerate(["before", "a run with quite a long name", "with L2-SP, dose 1"])
}
rng = np.random.default_rng(0)
LOGITS = 2 * rng.normal(size=(300, 2))
LABELS = (rng.random(300) < softmax(0.5 * LOGITS)[:, 1]).astype(int)

DRAWINGS = {
    "loss": lambda path: loss_curve(HISTORY, path),
    "short": lambda path: loss_curve([{"step": 1, "eval_loss": 0.5}], path),
    "moved": lambda path: moved_per_block({"free": TABLE, "held": TABLE}, path),
    "reliability": lambda path: reliability(softmax(LOGITS), LABELS, path),
    "domains": lambda path: domains(RESULTS, path),
}


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


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_text_overlaps_or_leaves_the_picture(tmp_path, saved, name):
    DRAWINGS[name](tmp_path / "plot.png")
    (figure,) = saved
    renderer = figure.canvas.get_renderer()
    legend = figure.legends[0].get_window_extent(renderer)
    boxes = [legend] + [axis.get_tightbbox(renderer) for axis in figure.axes]
    if figure._supxlabel is not None:
        boxes.append(figure._supxlabel.get_window_extent(renderer))
    width, height = figure.canvas.get_width_height()
    for k, box in enumerate(boxes):
        assert min(box.x0, box.y0) >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
        for other in boxes[k + 1 :]:
            apart = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert apart <= 1, f"{name}: {box} and {other}"
    for axis in figure.axes:
        labels = [t.get_window_extent(renderer) for t in axis.get_yticklabels() if t.get_text()]
        heights = sorted((box.y0, box.y1) for box in labels)
        assert all(low[1] <= high[0] for low, high in pairwise(heights))


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_png_of_150_dpi_in_a_new_folder(tmp_path, saved, name):
    path = DRAWINGS[name](tmp_path / "plots" / "plot.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert saved[0].dpi == 150


def test_the_suffix_chooses_the_format(tmp_path):
    assert "<svg" in loss_curve(HISTORY, tmp_path / "a.svg").read_text()


def test_the_loss_is_drawn_at_its_steps(tmp_path, saved):
    loss_curve(HISTORY, tmp_path / "a.png", title="A run")
    loss, accuracy, *_ = saved[0].axes
    training, evaluation = loss.lines
    assert training.get_xdata().tolist() == list(range(10, 210, 10))
    assert evaluation.get_xdata().tolist() == [100, 200]
    assert accuracy.lines[0].get_ydata().tolist() == pytest.approx([0.7, 0.8])
    assert [axis.get_ylabel() for axis in saved[0].axes] == [
        "loss (nats)", "accuracy", "gradient norm", "learning rate",
    ]  # fmt: skip
    assert saved[0].legends[0].get_title().get_text() == "A run"


def test_bars_are_the_relative_distances_and_new_blocks_are_mentioned(tmp_path, saved):
    endless = [*TABLE[:3], Moved("norm", 1.0, float("inf"), 3, 0), TABLE[3]]
    moved_per_block({"free": TABLE, "held": endless}, tmp_path / "a.png")
    (axis,) = saved[0].axes
    assert [bar.get_width() for bar in axis.patches[:3]] == pytest.approx([0, 2, 4])
    assert [t.get_text() for t in axis.get_yticklabels()] == [
        "embeddings", "layer 0", "layer 1", "norm",
    ]  # fmt: skip
    assert "inf" in [t.get_text() for t in axis.texts]
    assert "classifier" in saved[0]._supxlabel.get_text()


def test_points_are_the_values(tmp_path, saved):
    domains(RESULTS, tmp_path / "a.png", xlabel="AUROC")
    (axis,) = saved[0].axes
    drawn = [line for line in axis.lines if line.get_label() in RESULTS]
    assert [line.get_xdata()[0] for line in drawn] == pytest.approx([0.8, 0.82, 0.84])
    assert len({line.get_color() for line in drawn}) == 3
    assert len({line.get_marker() for line in drawn}) == 3
    assert axis.get_xlabel() == "AUROC, with its 95% bootstrap interval"


def test_pyplot_is_never_loaded_and_matplotlib_only_to_draw(tmp_path):
    code = (
        "import sys, sftjax.evaluate as e\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"e.loss_curve([{{'step': 1, 'loss': 0.5}}], {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_to_draw_is_an_error(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="neither 'loss' nor 'eval_loss'"):
        loss_curve([{"step": 1, "grad_norm": 1.0}], path)
    with pytest.raises(ValueError, match="no run to draw"):
        domains({}, path)
    with pytest.raises(ValueError, match="8 runs in one picture"):
        moved_per_block({str(k): TABLE for k in range(8)}, path)
    with pytest.raises(ValueError, match="no run has a block with pretrained"):
        moved_per_block({"a": TABLE[3:]}, path)
    other = {"movie": RESULTS["before"]["movie"]._replace(level=0.9)}
    with pytest.raises(ValueError, match=r"the levels \[0.9, 0.95\]"):
        domains({**RESULTS, "other": other}, path)
    assert not path.exists()


def test_a_notebook_shows_what_a_plot_returns(tmp_path):
    png = loss_curve(HISTORY, tmp_path / "loss.png")
    shown = png._repr_png_()
    assert shown is not None
    assert shown[0] == png.read_bytes()
    assert shown[1] == {"width": 691}  # 7.2 inches of 96 pixels
    assert png._repr_svg_() is None
    svg = loss_curve(HISTORY, tmp_path / "loss.svg")
    assert svg._repr_png_() is None
    assert "<svg" in svg._repr_svg_()
    assert (png.parent, png.with_suffix(".svg")) == (tmp_path, svg)
