"""The diagnosis recipe on a tiny model: parts apart, judgement from the right rows, limits said."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from sftjax.cli import main
from sftjax.evaluate import at_threshold, coverage, softmax
from sftjax.hub import load
from sftjax.recipes.diagnose import diagnose
from sftjax.recipes.diagnose_job import Diagnose
from sftjax.recipes.images_job import PictureColumns
from sftjax.recipes.judging import fit_judge, load_judge, save_judge
from sftjax.recipes.looking import looks
from sftjax.recipes.measuring import thirds
from sftjax.recipes.training import Training

TRAIN = Training(
    per_device_train_batch_size=2, learning_rate=5e-3, max_steps=30, train=("all",), dose=0.1
)


def read(path):
    return list(csv.DictReader(path.read_text("utf8").splitlines()))


def job(model, data, folder, group="patient", **more):
    return Diagnose(
        model=str(model), data=str(data), output_dir=folder, training=TRAIN,
        pictures=PictureColumns(group=group), per_device_eval_batch_size=8,
        validation_fraction=0.2, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_vit, cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans") / "a"
    said = []
    result = diagnose(
        job(tiny_vit, cells, folder, subgroups=("age",), saliency=3, intended_use="Counting."),
        said.append,
    )
    return folder, result, "\n".join(said)


def test_the_folder_has_everything_and_warns_first(finished):
    folder, result, said = finished
    for name in (
        "report.md", "predictions.csv", "metrics.json", "model/judgement.json", "model/README.md",
        "plots/roc.png", "plots/confusion.png", "plots/reliability.png",
        "plots/reliability-before.png", "plots/saliency.png",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    report = (folder / "report.md").read_text()
    card = (folder / "model" / "README.md").read_text()
    for text in (report, card, said):
        assert "not a medical device" in text
    for words in ("## Thresholds", "## Prediction sets", "## Subgroups", "## Limits", "rollout"):
        assert words in report, words
    for words in ("### Intended use\n\nCounting.", "### Out of scope", "### Limits"):
        assert words in card, words
    assert result.metrics["auroc"].value > 0.7


def test_no_patient_is_in_two_parts(finished, cells):
    facts = json.loads((finished[0] / "run.json").read_text())
    assert set(facts["parts"]) == {"train", "validation", "calibration", "test"}
    rows = {row["row"]: row for row in read(finished[0] / "predictions.csv")}
    table = read(cells)
    patients = {table[int(number) - 1]["patient"] for number in rows}
    assert patients == {row["group"] for row in rows.values()}
    # A patient is wholly in the test, or not at all.
    for number, row in enumerate(table, 1):
        assert (str(number) in rows) == (row["patient"] in patients)


def test_what_is_written_is_what_was_measured(finished):
    folder, result, _ = finished
    judge = load_judge(folder / "model")
    rows = read(folder / "predictions.csv")
    labels = np.array([judge.names.index(row["label"]) for row in rows])
    for name, threshold in judge.thresholds.items():
        p = np.array([float(row[f"probability_{name}"]) for row in rows])
        flags = np.array([row[f"flagged_{name}"] == "1" for row in rows])
        truth = (labels == judge.names.index(name)).astype(int)
        found = next(row for row in result.measured.thresholds if row["class"] == name)
        assert found["sensitivity"].value == at_threshold(flags.astype(float), truth, 0.5)[0]
        assert (flags == (p >= threshold.value - 1e-6)).mean() > 0.95
    sets = np.array([[name in row["set"].split("|") for name in judge.names] for row in rows])
    assert result.measured.sets[0]["coverage"].value == coverage(sets, labels)


def test_prediction_applies_the_judgement(finished, cells, capsys):
    assert main(["predict", str(finished[0] / "model"), "--data", str(cells.parent)]) == 0
    printed = capsys.readouterr().out
    assert "flagged" in printed
    assert "for research only" in printed


def test_grad_cam_shows_a_map_of_every_picture(tiny_resnet):
    model, params, _ = load(tiny_resnet)
    pixels = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    maps, how = looks(model, params, pixels, np.array([0, 2]))
    assert maps.shape[0] == 2
    assert (maps >= 0).all()
    assert "Grad-CAM above block" in how


def test_a_judge_is_fitted_on_its_own_rows_and_kept(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=600)
    logits = 3.0 * (np.eye(3)[labels] + rng.normal(0, 0.6, (600, 3)))
    judge, said = fit_judge(
        ("a", "b", "c"), (logits[:300], labels[:300]), (logits[300:], labels[300:]),
        wanted=("a",), alpha=0.2,
    )  # fmt: skip
    assert "Temperature" in said[0]
    assert judge.thresholds["a"].rows == judge.conformal.rows == 300
    p = judge.probabilities(logits[:300])
    assert at_threshold(p[:, 0], labels[:300] == 0, judge.thresholds["a"]).sensitivity >= 0.95
    save_judge(tmp_path, judge)
    kept = load_judge(tmp_path)
    np.testing.assert_allclose(kept.probabilities(logits), judge.probabilities(logits), rtol=1e-12)
    assert kept.thresholds == judge.thresholds
    assert kept.conformal == judge.conformal
    shifted, _ = fit_judge(
        ("a", "b", "c"), (logits[:300], labels[:300]), (logits[300:], labels[300:]),
        wanted=("a",), calibrate="none", prior=np.log([0.8, 0.1, 0.1]),
    )  # fmt: skip
    np.testing.assert_allclose(
        shifted.probabilities(logits), softmax(logits + np.log([0.8, 0.1, 0.1])), rtol=1e-12
    )


def test_perfect_validation_rows_calibrate_nothing():
    logits, labels = np.eye(2)[[0, 1] * 10] * 9, np.array([0, 1] * 10)
    judge, said = fit_judge(("a", "b"), (logits, labels), (logits, labels), wanted=("b",))
    assert judge.scaling is None
    assert "left as they are" in said[0]


def test_numbers_are_cut_in_thirds_and_words_are_not():
    assert thirds(["f", "m"]) == ["f", "m"]
    assert len(set(thirds(np.arange(30)))) == 3


def test_patients_must_be_named(tiny_vit, cells, tmp_path):
    wanted = job(tiny_vit, cells, tmp_path / "a", group=None)
    with pytest.raises(ValueError, match=r"no column of patients.*--group patient"):
        diagnose(wanted, lambda text: None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positive": ("blue",)}, "--positive blue: no class"),
        ({"subgroups": ("sex",)}, "no column 'sex'"),
        ({"validation_fraction": 0.5}, "between 0 and 1/3"),
    ],
)
def test_what_cannot_be_is_refused(change, said, tiny_vit, cells, tmp_path):
    wanted = dataclasses.replace(job(tiny_vit, cells, tmp_path / "a"), **change)
    with pytest.raises(ValueError, match=said):
        diagnose(wanted, lambda text: None)
    assert not (tmp_path / "a").exists()
