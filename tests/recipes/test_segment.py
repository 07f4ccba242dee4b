"""Masks end to end on a tiny model: learning, files, prediction, and masks that are refused."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sftjax.data import Processor, Table
from sftjax.data.masks import load_masks, read_mask, read_masked
from sftjax.evaluate import dice_per_class
from sftjax.hub import load
from sftjax.recipes.mask_scores import counts_of, dice_of
from sftjax.recipes.predict import predict_rows
from sftjax.recipes.predict_job import Predict
from sftjax.recipes.segment import segment
from sftjax.recipes.segment_job import MaskColumns, Segment
from sftjax.recipes.training import Training

QUICK = Training(
    per_device_train_batch_size=4, learning_rate=1e-2, max_steps=40, train=("all",), dose=0.01
)


def draw(folder, count, seed=0):
    """Bright squares on dark noise, and where they are; values 0 and 255."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = rng.normal(60, 20, (24, 20, 3))
        mask = np.zeros((24, 20), np.uint8)
        top, left = rng.integers(2, 10, 2)
        mask[top : top + 11, left : left + 9] = 255
        pixels[mask > 0] += 110
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{number}.png")
        Image.fromarray(mask).save(folder / f"masks/{number}.png")
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("squares"), 24)


@pytest.fixture(scope="module")
def finished(tiny_resnet, squares, tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment") / "run"
    job = Segment(
        model=str(tiny_resnet), data=str(squares), output_dir=folder, training=QUICK,
        masks=MaskColumns(labels=("background", "square")), augment=("flip", "colour:0.1"),
        leaks="tell",
    )  # fmt: skip
    said = []
    return job, segment(job, said.append), "\n".join(said)


def test_masks_are_learned_measured_and_drawn(finished):
    job, result, said = finished
    found = result.metrics["eval_dice"]
    assert found.value > 0.8
    assert found.low <= found.value <= found.high
    assert "train: 19 pictures" in said
    report = (job.output_dir / "report.md").read_text()
    assert "values in the masks: 0 background, 255 square" in report
    assert (job.output_dir / "plots" / "masks.png").stat().st_size > 5000
    model, params, _ = load(job.output_dir / "model")
    assert model.head.kind == "segment"
    assert model.head.labels == ("background", "square")
    assert "decoder" in params


def test_a_saved_model_writes_masks_of_the_picture_s_own_size(finished, squares, tmp_path):
    job, *_ = finished
    out = tmp_path / "out"
    found = predict_rows(
        Predict(str(job.output_dir / "model"), data=str(squares), output=out), lambda text: None
    )
    assert found.shape == (24, 16, 16)
    mask = Image.open(out / "3.png")
    assert mask.mode == "P"
    assert mask.size == (20, 24)
    truth = np.asarray(Image.open(squares / "masks" / "3.png")) > 0
    assert dice_per_class(np.asarray(mask), truth.astype(int), 2)[1] > 0.6
    assert (out / "overlays.png").is_file()


def test_dice_from_counts_is_dice_of_pixels():
    rng = np.random.default_rng(0)
    found, truth = rng.integers(0, 3, (2, 5, 7, 6))
    truth[2] = -100
    np.testing.assert_allclose(
        dice_of(counts_of(found, truth, 3).sum(0)), dice_per_class(found, truth, 3), atol=1e-12
    )


def table_of(folder, image=(6, 4), mask=(6, 4), value=1, name="m.png", mode=None):
    Image.fromarray(np.zeros((*image, 3), np.uint8)).save(folder / "a.png")
    pixels = np.full(mask, value, np.uint8)
    pixels[0] = 0
    picture = Image.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(folder / name)
    return Table({"image": [str(folder / "a.png")], "mask": [str(folder / name)]}, "toy.csv")


def test_masks_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"m.png is 5 x 4, and its picture .*a.png is 6 x 4"):
        load_masks(table_of(tmp_path, mask=(5, 4)), (4, 4))
    with pytest.raises(ValueError, match=r"m.png holds the value 7, and the 2 classes"):
        load_masks(table_of(tmp_path, value=7), (4, 4), ("no", "yes"), seen=(0, 1))
    three = ("no", "yes", "third")
    with pytest.raises(ValueError, match="the value 7, and the 3 classes have the values 0, 1, 2"):
        load_masks(table_of(tmp_path, value=7), (4, 4), three)
    with pytest.raises(ValueError, match="is JPEG, which changes the numbers"):
        load_masks(table_of(tmp_path, name="m.jpg"), (4, 4))
    (tmp_path / "m.png").write_bytes(b"")
    empty = Table({"image": [str(tmp_path / "a.png")], "mask": [str(tmp_path / "m.png")]}, "toy")
    with pytest.raises(ValueError, match="is empty"):
        load_masks(empty, (4, 4))
    with pytest.raises(ValueError, match="not of colours"):
        read_mask(np.zeros((2, 2, 3), np.uint8) + np.array([1, 2, 3], np.uint8))
    with pytest.raises(ValueError, match="hold 1 different values"):
        load_masks(table_of(tmp_path, value=0), (4, 4))


def test_values_become_classes_in_order_and_some_do_not_count(tmp_path):
    found = load_masks(table_of(tmp_path, value=255), (6, 4), ("no", "yes"))
    assert found.seen == (0, 255)
    assert found.values[0, :2, 0].tolist() == [0, 1]
    found = load_masks(table_of(tmp_path, value=255, mode="P"), (6, 4), ("no", "yes"), ignore=255)
    assert found.values[0, :2, 0].tolist() == [0, -100]


def test_missing_masks_are_refused(tmp_path, tiny_resnet):
    draw(tmp_path, 4)
    (tmp_path / "masks" / "2.png").unlink()
    with pytest.raises(ValueError, match="1 of the pictures and masks have no partner"):
        read_masked(str(tmp_path))
    manifest = tmp_path / "m.csv"
    manifest.write_text("image,mask\nimages/0.png,masks/0.png\nimages/1.png,\n")
    with pytest.raises(ValueError, match="row 2: no mask is named there"):
        read_masked(str(manifest))
    manifest.write_text("image,mask\nimages/0.png,masks/2.png\n")
    with pytest.raises(FileNotFoundError, match=r"row 1: there is no mask .*2.png"):
        read_masked(str(manifest))
    manifest.write_text("image,mask\nimages/0.png,masks/0.png\n")
    job = Segment(model=str(tiny_resnet), data=str(manifest), output_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="has one picture, and two are needed"):
        segment(job, lambda text: None)
    crop = dataclasses.replace(job, data=str(tmp_path), augment=("crop",))
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(ValueError, match="--augment crop: a mask follows flip"):
        segment(crop, lambda text: None)


def test_planes_of_a_volume_are_rows_and_the_volume_is_their_group(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    scan = rng.normal(100, 20, (5, 6, 7)).astype(np.float32)
    tissue = rng.integers(0, 3, (5, 6, 7)).astype(np.int16)
    for name, values in (("t1", scan), ("seg", tissue), ("small", tissue[:4])):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
    manifest = tmp_path / "m.csv"
    manifest.write_text("image,mask\nt1.nii.gz,seg.nii.gz\n")
    table = read_masked(str(manifest), every=2)
    assert len(table) == 4
    assert len(set(table["group"])) == 1
    found = load_masks(table, (6, 5))
    np.testing.assert_array_equal(found.values[1], tissue[:, :, 2].T)
    assert Processor((6, 5)).size == (6, 5)
    manifest.write_text("image,mask\nt1.nii.gz,small.nii.gz\n")
    with pytest.raises(ValueError, match=r"small.nii.gz is of another size than"):
        read_masked(str(manifest))
