"""The anomaly recipe on a tiny model: fitted on normal pictures alone, measured on others."""

import csv
import dataclasses

import numpy as np
import pytest

from sftjax.hub import TensorFile
from sftjax.recipes.anomaly import anomaly, threshold_of
from sftjax.recipes.anomaly_job import Anomaly
from sftjax.recipes.anomaly_rows import with_classes_left_out
from sftjax.recipes.detectors import Seen, fit_detector, middle
from sftjax.recipes.images_job import PictureColumns
from sftjax.recipes.predict import predict_rows
from sftjax.recipes.predict_job import Predict


def read(path):
    return list(csv.DictReader(path.read_text("utf8").splitlines()))


def job(model, data, folder, **more):
    return Anomaly(
        model=str(model), data=str(data), output_dir=folder, normal=("red",),
        per_device_eval_batch_size=8, coreset=0.2, heat_maps=3, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_resnet, cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strange") / "a"
    said = []
    methods = ("knn", "mahalanobis", "patchcore", "energy")
    result = anomaly(job(tiny_resnet, cells, folder, methods=methods), said.append)
    return folder, result, said


def test_another_colour_is_strange(finished):
    folder, result, _ = finished
    for method in ("knn", "mahalanobis", "patchcore"):
        assert result.metrics[method]["auroc"].value > 0.9, method
    for name in (
        "report.md", "scores.csv", "metrics.json", "plots/heat-patchcore.png",
        "plots/scores-knn.png", "plots/strangest-knn.png",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert "nothing was trained" in (folder / "report.md").read_text()
    assert "patchcore/patches" in TensorFile(folder / "detectors.safetensors")


def test_a_saved_run_scores_new_pictures_as_it_scored_its_own(finished, cells, tmp_path):
    folder, result, _ = finished
    out = tmp_path / "scores.csv"
    scores = predict_rows(Predict(str(folder), data=str(cells), output=out), lambda text: None)
    place = {int(row["row"]): n for n, row in enumerate(read(folder / "scores.csv"))}
    for column, (name, own) in enumerate(result.scores.items()):
        mine = [scores[row - 1, column] for row in place]
        np.testing.assert_allclose(mine, own[list(place.values())], rtol=1e-4, atol=1e-4)
        marked = [name in row["strange by"].split(", ") for row in read(out)]
        assert marked == (scores[:, column] > result.thresholds[name]).tolist()
    assert (tmp_path / "heat-patchcore.png").is_file()
    (tmp_path / "detectors.json").write_text((folder / "detectors.json").read_text())
    with pytest.raises(ValueError, match=r"no detectors.safetensors; run sftjax anomaly again"):
        predict_rows(Predict(str(tmp_path), data=str(cells)), lambda text: None)


def test_a_class_is_left_out_by_its_name(tiny_resnet, cells, tmp_path):
    left = dataclasses.replace(job(tiny_resnet, cells, tmp_path), normal=(), leave_out=("white",))
    assert with_classes_left_out(left).normal == ("plate", "red")
    with pytest.raises(ValueError, match=r"--leave-out blue: .* has the classes plate, red, white"):
        with_classes_left_out(dataclasses.replace(left, leave_out=("blue",)))
    with pytest.raises(ValueError, match="give one of them"):
        with_classes_left_out(dataclasses.replace(left, normal=("red",)))


def test_no_strange_picture_was_fitted_on(finished, cells):
    rows = read(finished[0] / "scores.csv")
    table = read(cells)
    tested = {int(row["row"]) for row in rows}
    assert {row["kind"] for row in rows} == {"normal", "white", "plate"}
    strange = {n for n, row in enumerate(table, 1) if row["label"] != "red"}
    assert strange <= tested
    fitted = len(table) - len(tested)
    assert 0 < fitted < sum(row["label"] == "red" for row in table)


def test_groups_of_fitted_pictures_are_kept_out_of_the_test(tiny_resnet, cells, tmp_path):
    said = []
    anomaly(
        job(tiny_resnet, cells, tmp_path / "a", methods=("knn",),
            pictures=PictureColumns(group="patient")),
        said.append,
    )  # fmt: skip
    assert any("share a patient with normal ones" in line for line in said)
    table = read(cells)
    tested = {int(row["row"]) for row in read(tmp_path / "a" / "scores.csv")}
    patients = {table[number - 1]["patient"] for number in tested}
    assert all((n in tested) == (row["patient"] in patients) for n, row in enumerate(table, 1))


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(4000, 40))
    alarms = [(row[20:] > threshold_of(row[:20], 0.1)).mean() for row in drawn]
    # (n + 1 - ceil((n + 1) 0.9)) / (n + 1) = 2 / 21 in the mean.
    assert abs(np.mean(alarms) - 2 / 21) < 0.005


def test_two_stages_in_the_middle():
    assert middle(tuple(f"stage{i}" for i in range(1, 13))) == ("stage5", "stage8")
    assert middle(("stem", "stage1")) == ("stage1",)


def test_detectors_say_when_rows_are_too_few():
    few = Seen(np.ones((3, 2), np.float32), np.zeros((3, 0)), np.zeros((3, 0)))
    options = {"neighbours": 5, "coreset": 0.1, "seed": 0}
    with pytest.raises(ValueError, match="there are 3 normal pictures"):
        fit_detector("knn", few, np.zeros(3, int), **options)
    with pytest.raises(ValueError, match="two normal classes"):
        fit_detector("relative-mahalanobis", few, np.zeros(3, int), **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normal": ("blue",)}, "no picture of blue; its classes are plate, red, white"),
        ({"normal": ()}, "nothing to test"),
        ({"stages": ("stage9",)}, "no stage 'stage9'; its stages are"),
        ({"coreset": 0.0}, "--coreset 0"),
    ],
)
def test_what_cannot_be_is_refused(change, said, tiny_resnet, cells, tmp_path):
    wanted = dataclasses.replace(job(tiny_resnet, cells, tmp_path / "a"), **change)
    with pytest.raises(ValueError, match=said):
        anomaly(wanted, lambda text: None)
