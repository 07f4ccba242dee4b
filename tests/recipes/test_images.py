"""The recipe for pictures end to end on a tiny model, its methods and policies, and bad input."""

import dataclasses
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from sftjax.cli import main
from sftjax.core import flatten
from sftjax.data import ImageBatches, Images, Processor, Table, processor_of
from sftjax.hub import load
from sftjax.models import statistics_of
from sftjax.recipes.above_prefix import above_prefix
from sftjax.recipes.finetune import finetune
from sftjax.recipes.image_models import load_images_model
from sftjax.recipes.images import about, images
from sftjax.recipes.images_job import PictureColumns, TuneImages
from sftjax.recipes.inspect import Inspect, inspect
from sftjax.recipes.predict import predict_rows
from sftjax.recipes.predict_job import Predict
from sftjax.recipes.prepare_images import prepare_images
from sftjax.recipes.streams import shuffled
from sftjax.recipes.training import Training
from sftjax.recipes.worn import wear

GROUPED = PictureColumns(group="patient")
QUICK = Training(
    per_device_train_batch_size=2, learning_rate=2e-3, max_steps=4, train=("all",), dose=0.1
)
LEARN = dataclasses.replace(QUICK, max_steps=60, eval_steps=30, learning_rate=5e-3)


def job(model, data, folder, training=QUICK, **more):
    return TuneImages(
        model=str(model), data=str(data), output_dir=folder, pictures=GROUPED,
        training=training, per_device_eval_batch_size=8, **more,
    )  # fmt: skip


def silent(text):
    """Tell nobody."""


@pytest.fixture(scope="module")
def finished(tiny_resnet, cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "a"
    said = []
    result = images(job(tiny_resnet, cells, folder, LEARN, augment=("flip",)), said.append)
    return folder, result, "\n".join(said)


@pytest.fixture(scope="module")
def resnet(tiny_resnet, cells, tmp_path_factory):
    return prepare_images(job(tiny_resnet, cells, tmp_path_factory.mktemp("never")), silent)


@pytest.fixture(scope="module")
def vit(tiny_vit, cells, tmp_path_factory):
    return prepare_images(job(tiny_vit, cells, tmp_path_factory.mktemp("never")), silent)


def tuned(ready, parts=None, stream=None, **options):
    """Fine-tune without the folder that a recipe leaves; returns before, after, and what is new."""
    training, run = dataclasses.replace(QUICK, **options), ready.run
    worn = wear(training.adapter, run.params, run.new)
    said = []
    found = finetune(
        worn.params, worn.new, worn.parts(parts or run.parts()),
        stream or shuffled(run.train, training.rows, 0), training, held=worn.held, tell=said.append,
    )  # fmt: skip
    before, after = flatten(worn.weights(worn.params)), flatten(worn.weights(found.params))
    for leaf in after.values():
        assert np.isfinite(leaf).all()
    moved = {p for p in before if not np.array_equal(before[p], after[p])}
    return moved, after, "\n".join(said)


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
    for words in ("augmentation: flip", "batch norm:", "over 5 groups", "![confusion]"):
        assert words in report, words
    assert "AutoModelForImageClassification" in (folder / "model" / "README.md").read_text()


def test_frozen_statistics_are_the_pretrained_bytes(finished, tiny_resnet):
    before = load_file(tiny_resnet / "model.safetensors")
    after = load_file(finished[0] / "model" / "model.safetensors")
    still = [name for name in before if "running_" in name]
    assert still
    for name in still:
        assert before[name].tobytes() == after[name].tobytes(), name
    weights = [n for n in before if n.endswith("convolution.weight")]
    assert any(before[name].tobytes() != after[name].tobytes() for name in weights)


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
    assert main(["predict", str(folder / "model"), "--text", "a"]) == 2
    assert "reads pictures" in capsys.readouterr().err


def test_statistics_follow_the_batches_where_their_module_moves(resnet):
    parts = resnet.run.parts(statistics="adapt")
    moved, after, said = tuned(resnet, parts, train=("last:1",))
    assert "follow the batches" in said
    own = [path for path in statistics_of(after) if "stages/1/" in path]
    assert own
    assert set(own) <= moved
    # A frozen trunk's statistics never move.
    assert not {path for path in statistics_of(after) if "stages/1/" not in path} & moved


def test_statistics_are_measured_anew(resnet):
    moved, after, said = tuned(resnet, resnet.run.parts(statistics="recalibrate"))
    assert "measured anew afterwards" in said
    assert set(statistics_of(after)) <= moved


def test_from_scratch_all_is_new(tiny_resnet, cells, tmp_path):
    wanted = job(tiny_resnet, cells, tmp_path / "a", dataclasses.replace(QUICK, train=(), seed=1),
                 scratch=True, rows_per_class=4)  # fmt: skip
    ready = prepare_images(wanted, silent)
    every = set(flatten(ready.run.params))
    assert set(ready.run.new) == every - set(statistics_of(ready.run.params))
    assert ready.job.policy == "adapt"
    assert ready.run.train.counts.tolist() == [4, 4, 4]
    before = flatten(load(tiny_resnet).params)
    kernels = [p for p in every if p.endswith("kernel") and "classifier" not in p]
    assert all(not np.array_equal(before[p], flatten(ready.run.params)[p]) for p in kernels)
    moved, _, _ = tuned(ready, train=ready.job.training.train, anchor="none")
    assert moved == every


def test_a_run_whose_statistics_follow_goes_on_and_can_be_repeated(tiny_resnet, cells, tmp_path):
    """Its best weights have their statistics beside them, and a checkpoint gives both back."""
    whole = dataclasses.replace(QUICK, train=("all",), max_steps=4)
    ran = images(job(tiny_resnet, cells, tmp_path, whole, statistics="adapt"), silent)
    again = images(job(tiny_resnet, cells, tmp_path, whole, statistics="adapt"), silent)
    assert ran.metrics == again.metrics
    for path, leaf in flatten(ran.tuned.params).items():
        np.testing.assert_array_equal(flatten(again.tuned.params)[path], leaf)


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": ("lora:r=2",), "train": ()},
        {"phases": ("lp", "ft"), "anchor": "l2-sp"},
        {"anchor": "wise-ft:1"},
        {"anchor": "features:1"},
        {"train": ("last:1",), "anchor": "ewc:1"},
    ],
    ids=lambda options: "-".join(map(str, options.get("phases") or options.values())),
)
def test_methods_work_on_pictures(options, vit):
    moved, _, _ = tuned(vit, **options)
    assert any("encoder/layer/1" in path for path in moved)


def test_convolutions_wear_adapters_by_name(tiny_resnet, cells, tmp_path):
    word = "lora:r=2,targets=convolution"
    training = dataclasses.replace(QUICK, adapter=(word,), train=())
    images(job(tiny_resnet, cells, tmp_path / "a", training), silent)
    beside, merged = (
        predict_rows(Predict(str(tmp_path / "a" / kind), data=str(cells)), silent)
        for kind in ("adapter", "model")
    )
    np.testing.assert_allclose(beside, merged, atol=1e-4)
    plain = dataclasses.replace(training, adapter=("lora:r=2",))
    with pytest.raises(ValueError, match="takes convolutions only by"):
        images(job(tiny_resnet, cells, tmp_path / "b", plain), silent)


def test_a_kept_prefix_changes_nothing(resnet, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTJAX_CACHE", str(tmp_path))
    run, training = resnet.run, dataclasses.replace(QUICK, train=("last:1",))
    prefix = above_prefix(run.model, run.params, run.report, training, "", silent)
    assert prefix.cut == 1
    stream = prefix.above(run.train, shuffled(run.train, training.rows, 0))
    _, kept, _ = tuned(resnet, run.parts(cut=1), stream, train=("last:1",))
    _, whole, _ = tuned(resnet, train=("last:1",))
    for path, leaf in whole.items():
        np.testing.assert_allclose(kept[path], leaf, rtol=1e-3, atol=2e-5, err_msg=path)


def test_many_runs_in_one_step(tiny_vit, cells, tmp_path):
    training = dataclasses.replace(QUICK, train=("last:1",), max_steps=12)
    swept = images(
        job(tiny_vit, cells, tmp_path / "a", training, sweep="dose=0|4", rows_per_class=8), silent
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
    ],
)
def test_what_cannot_be_is_refused(change, said, tiny_vit, tiny_resnet, cells, tmp_path):
    adapted = "training" in change and change["training"].adapter
    wrong = job(tiny_vit if adapted else tiny_resnet, cells, tmp_path / "a")
    with pytest.raises(ValueError, match=said):
        images(dataclasses.replace(wrong, **change), silent)
    assert not (tmp_path / "a" / "model").exists()


def test_a_text_model_is_refused(tiny_model, cells, tmp_path):
    with pytest.raises(ValueError, match=r"unknown head|reads pictures"):
        images(job(tiny_model, cells, tmp_path / "a"), silent)


def copied(cells, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(cells.parent, folder)
    return folder / "cells.csv"


def test_a_class_with_one_example_is_named(tiny_resnet, cells, tmp_path):
    manifest = copied(cells, tmp_path)
    lines = manifest.read_text().splitlines()
    file, _, *rest = lines[5].split(",")
    lines[5] = ",".join([file, "odd", *rest])
    manifest.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"row 5: class 'odd' has 1 patient, and 2 are needed"):
        images(job(tiny_resnet, manifest, tmp_path / "a"), silent)


def test_corrupt_pictures_are_listed_by_name(tiny_resnet, cells, tmp_path):
    manifest = copied(cells, tmp_path)
    (manifest.parent / "3-1-0.png").write_bytes(b"")
    whole = (manifest.parent / "4-0-1.png").read_bytes()
    (manifest.parent / "4-0-1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"(?s)cannot be read.*\.png"):
        images(job(tiny_resnet, manifest, tmp_path / "a"), silent)
    said = []
    ready = prepare_images(
        job(tiny_resnet, manifest, tmp_path / "b", skip_corrupt=True), said.append
    )
    told, report = "\n".join(said), "\n".join(about(ready))
    assert "2 pictures cannot be read and are left out" in told
    for name in ("3-1-0.png", "4-0-1.png"):
        assert name in told
        assert name in report


def test_a_patient_in_two_splits_is_refused(tiny_resnet, cells, tmp_path):
    manifest = copied(cells, tmp_path)
    lines = manifest.read_text().splitlines()
    split = ["split", *("train" if number % 2 else "test" for number in range(len(lines) - 1))]
    manifest.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, split, strict=True)) + "\n")
    with pytest.raises(ValueError, match=r"(?s)share 24 groups.*patient p0.*--leaks tell"):
        images(job(tiny_resnet, manifest, tmp_path / "a"), silent)


def test_a_folder_without_pictures_is_refused(tiny_resnet, tmp_path):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no image"):
        images(job(tiny_resnet, tmp_path / "empty", tmp_path / "a"), silent)
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        images(job(tiny_resnet, tmp_path / "nowhere", tmp_path / "a"), silent)
