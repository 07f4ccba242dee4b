"""The recipe for pictures end to end on tiny models, its policies, and bad input by name."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from sftjax.cli import main
from sftjax.data import ImageBatches, Images, Processor, Table, processor_of
from sftjax.hub import load
from sftjax.models import statistics_of
from sftjax.recipes.image_models import load_images_model
from sftjax.recipes.images import images
from sftjax.recipes.images_job import PictureColumns, TuneImages
from sftjax.recipes.inspect import Inspect, inspect
from sftjax.recipes.training import Training

GROUPED = PictureColumns(group="patient")
QUICK = {
    "per_device_train_batch_size": 2, "learning_rate": 2e-3, "logging_steps": 5, "max_steps": 12,
    "train": ("all",), "dose": 0.1,
}  # fmt: skip


def job(model, data, folder, training=None, **more):
    return TuneImages(
        model=str(model), data=str(data), output_dir=folder, pictures=GROUPED,
        training=Training(**{**QUICK, **(training or {})}), per_device_eval_batch_size=8, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_resnet, cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "a"
    said = []
    learn = {"max_steps": 60, "eval_steps": 30, "learning_rate": 5e-3}
    result = images(job(tiny_resnet, cells, folder, learn, augment=("flip",)), said.append)
    return folder, result, "\n".join(said)


def test_a_run_learns_and_leaves_a_whole_folder(finished):
    folder, result, said = finished
    assert result.metrics["eval_accuracy"].value > 0.8
    assert result.metrics["eval_auprc"].value > 0.8
    for name in (
        "run.json", "metrics.json", "report.md", "predictions.csv", "plots/loss.png",
        "plots/moved.png", "plots/reliability.png", "plots/confusion.png",
        "model/model.safetensors", "model/config.json", "model/preprocessor_config.json",
        "model/README.md",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    report = (folder / "report.md").read_text()
    assert "statistics stand still (resnet)" in said
    assert "augmentation: flip" in report
    assert "batch norm:" in report
    assert "groups" in report


def test_frozen_statistics_are_the_pretrained_bytes(finished, tiny_resnet):
    before = load_file(tiny_resnet / "model.safetensors")
    after = load_file(finished[0] / "model" / "model.safetensors")
    still = [name for name in before if "running_" in name]
    assert still
    for name in still:
        assert before[name].tobytes() == after[name].tobytes(), name
    moved = [n for n in before if n.endswith("convolution.weight")]
    assert any(before[name].tobytes() != after[name].tobytes() for name in moved)


def test_the_saved_folder_prepares_pictures_as_the_run_did(finished):
    loaded = load_images_model(str(finished[0] / "model"))
    assert loaded.processor == processor_of(finished[0] / "model")
    assert loaded.model.head.labels == ("plate", "red", "white")


def test_the_saved_model_predicts_what_the_run_predicted(finished, cells, capsys):
    folder = finished[0]
    out = folder / "again.csv"
    assert main(["predict", str(folder / "model"), "--data", str(cells), "--output", str(out)]) == 0
    again = [line.split(",") for line in out.read_text().splitlines()]
    of = {line[0]: line[2] for line in again[1:]}
    for line in (folder / "predictions.csv").read_text().splitlines()[1:]:
        row, _, predicted, *_ = line.split(",")
        assert of[row] == predicted
    capsys.readouterr()
    one = cells.parent / "0-0-0.png"
    assert main(["predict", str(folder / "model"), "--data", str(one)]) == 0
    assert "0-0-0.png" in capsys.readouterr().out


def test_the_same_command_again_gives_the_same(finished, tiny_resnet, cells):
    folder, result, _ = finished
    before = (folder / "model" / "model.safetensors").read_bytes()
    learn = {"max_steps": 60, "eval_steps": 30, "learning_rate": 5e-3}
    said = []
    again = images(job(tiny_resnet, cells, folder, learn, augment=("flip",)), said.append)
    assert any("holds this very run" in line for line in said)
    assert again.metrics == result.metrics
    assert (folder / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("policy", ["adapt", "recalibrate"])
def test_statistics_follow_or_are_measured_anew(policy, tiny_resnet, cells, tmp_path):
    said = []
    images(job(tiny_resnet, cells, tmp_path / "a", statistics=policy), said.append)
    words = {"adapt": "follow the batches", "recalibrate": "measured anew afterwards"}[policy]
    assert any(words in line for line in said)
    before = load_file(tiny_resnet / "model.safetensors")
    after = load_file(tmp_path / "a" / "model" / "model.safetensors")
    for name in before:
        if "running_" in name:
            assert not np.array_equal(before[name], after[name]), name
            assert np.isfinite(after[name]).all()


def test_from_scratch_nothing_is_kept_and_nothing_claimed(tiny_resnet, cells, tmp_path):
    result = images(
        dataclasses.replace(
            job(tiny_resnet, cells, tmp_path / "a", {"train": ()}), scratch=True, rows_per_class=4
        ),
        lambda text: None,
    )
    assert result.retention is None
    assert (tmp_path / "a" / "model" / "model.safetensors").exists()
    facts = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert "retention" not in facts
    assert "4, red 4, white 4" in (tmp_path / "a" / "report.md").read_text()


@pytest.mark.parametrize(
    ("training", "more"),
    [
        ({"adapter": ("lora:r=2",), "train": ()}, {}),
        ({"train": ("last:1",), "anchor": "wise-ft:1"}, {"keep_prefix": True}),
        ({"train": ("last:1",), "phases": ("lp", "ft"), "anchor": "l2-sp"}, {}),
        ({"train": ("last:1",), "anchor": "features:1"}, {"augment": ("flip", "mixup")}),
    ],
    ids=["lora", "wise-ft above a kept prefix", "lp-ft", "features and mixup"],
)
def test_methods_work_on_pictures(training, more, tiny_vit, cells, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTJAX_CACHE", str(tmp_path / "cache"))
    result = images(job(tiny_vit, cells, tmp_path / "a", training, **more), lambda text: None)
    assert np.isfinite(result.metrics["eval_loss"])
    model, params, _ = load(tmp_path / "a" / "model")
    assert model.head.labels == ("plate", "red", "white")
    assert np.isfinite(params["classifier"]["kernel"]).all()


def test_a_kept_prefix_changes_nothing(tiny_resnet, cells, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTJAX_CACHE", str(tmp_path / "cache"))
    found = [
        images(
            job(tiny_resnet, cells, tmp_path / f"{keep}", {"train": ("last:1",)}, keep_prefix=keep),
            lambda text: None,
        ).metrics["eval_loss"]
        for keep in (True, False)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_many_runs_in_one_step(tiny_resnet, cells, tmp_path):
    swept = images(
        job(tiny_resnet, cells, tmp_path / "a", {"train": ("last:1",)}, sweep="dose=0|4"),
        lambda text: None,
    )
    assert [row["dose"] for row in swept.rows] == [0.0, 4.0]
    assert swept.rows[0]["moved"] > swept.rows[1]["moved"]
    assert "sftjax images" in (tmp_path / "a" / "report.md").read_text()


def test_filled_batches_hold_different_pictures():
    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(3, -1)
    table = Table({"image": list(pixels)}, "five")
    batch = ImageBatches(Images(pixels, Processor((1, 1)), table), batch_size=4, normalized=False)
    last = batch.at(1)
    assert last["valid"].tolist() == [1, 0, 0, 0]
    assert len(set(last["pixel_values"][:, 0, 0, 0].tolist())) == 4


def test_inspect_keeps_rules_off_statistics(tiny_resnet):
    text = inspect(Inspect(str(tiny_resnet), train=("all",)))
    assert "(statistics)" in text
    assert "stand still" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows_per_class": 1000}, "--rows-per-class 1000: class 'plate' has"),
        ({"augment": ("flip",), "keep_prefix": True}, "leave one of the two out"),
        ({"augment": ("flipp",)}, "flipp"),
        ({"scratch": True, "training": Training(phases=("lp", "ft"))}, "--scratch has no"),
        ({"statistics": "adapt", "training": Training(phases=("lp", "ft"))}, "--statistics adapt"),
        ({"statistics": "adapt", "training": Training(adapter=("lora:r=2",))}, "--adapter"),
        ({"pictures": PictureColumns(group="patent")}, "Did you mean 'patient'"),
        ({"model": "asset:efficientnet"}, "there is no asset 'efficientnet'"),
        ({"validation_fraction": 1.5}, "--validation-fraction is 1.5"),
        ({"sweep": "dose=0|1", "statistics": "adapt"}, "use --statistics frozen"),
    ],
)
def test_what_cannot_be_is_refused(change, said, tiny_resnet, cells, tmp_path):
    wrong = dataclasses.replace(job(tiny_resnet, cells, tmp_path / "a"), **change)
    with pytest.raises(ValueError, match=said):
        images(wrong, lambda text: None)
    assert not (tmp_path / "a" / "model").exists()


def test_a_text_model_is_refused(tiny_model, cells, tmp_path):
    with pytest.raises(ValueError, match=r"unknown head|reads pictures"):
        images(job(tiny_model, cells, tmp_path / "a"), lambda text: None)


def copied(cells, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(cells.parent, folder)
    return folder / "cells.csv"


def test_a_class_with_one_example_is_named(tiny_resnet, cells, tmp_path):
    manifest = copied(cells, tmp_path)
    lines = manifest.read_text().splitlines()
    lines[5] = lines[5].replace(",white,", ",odd,").replace(",red,", ",odd,")
    lines[5] = lines[5].replace(",plate,", ",odd,")
    manifest.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"row 5: class 'odd' has 1 patient, and 2 are needed"):
        images(job(tiny_resnet, manifest, tmp_path / "a"), lambda text: None)


def test_corrupt_pictures_are_listed_by_name(tiny_resnet, cells, tmp_path):
    manifest = copied(cells, tmp_path)
    (manifest.parent / "3-1-0.png").write_bytes(b"")
    whole = (manifest.parent / "4-0-1.png").read_bytes()
    (manifest.parent / "4-0-1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"(?s)cannot be read.*\.png"):
        images(job(tiny_resnet, manifest, tmp_path / "a"), lambda text: None)
    said = []
    images(
        job(tiny_resnet, manifest, tmp_path / "b", {"max_steps": 1}, skip_corrupt=True),
        said.append,
    )
    told = "\n".join(said)
    assert "2 pictures cannot be read and are left out" in told
    report = (tmp_path / "b" / "report.md").read_text()
    for name in ("3-1-0.png", "4-0-1.png"):
        assert name in told
        assert name in report


def test_a_patient_in_two_splits_is_refused(tiny_resnet, cells, tmp_path):
    manifest = copied(cells, tmp_path)
    lines = manifest.read_text().splitlines()
    split = ["split", *("train" if number % 2 else "test" for number in range(len(lines) - 1))]
    manifest.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, split, strict=True)) + "\n")
    with pytest.raises(ValueError, match=r"(?s)share 24 groups.*patient p0.*--leaks tell"):
        images(job(tiny_resnet, manifest, tmp_path / "a"), lambda text: None)


def test_a_folder_without_pictures_is_refused(tiny_resnet, tmp_path):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no image"):
        images(job(tiny_resnet, tmp_path / "empty", tmp_path / "a"), lambda text: None)
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        images(job(tiny_resnet, tmp_path / "nowhere", tmp_path / "a"), lambda text: None)


def test_text_models_have_no_statistics(tiny_model):
    _, params, _ = load(tiny_model)
    assert not statistics_of(params)
