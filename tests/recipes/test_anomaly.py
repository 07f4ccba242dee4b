"""The anomaly recipe on a tiny model: fitted on normal pictures alone, measured on others."""

import csv
import dataclasses

import numpy as np
import pytest

from sftjax.hub import TensorFile
from sftjax.recipes.anomaly import anomaly, threshold_of
from sftjax.recipes.anomaly_job import Anomaly
from sftjax.recipes.detectors import Seen, fit_detector, middle
from sftjax.recipes.images_job import PictureColumns


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
