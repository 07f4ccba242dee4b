"""Pictures of every kind come out right, and every bad one is named."""

import gzip
import importlib.util
import io
import pathlib
import warnings

import numpy as np
import pytest
from PIL import Image

from sftjax.data import (
    Crop,
    ImageBatches,
    Processor,
    Table,
    UnreadableImage,
    classes,
    decode,
    image_splits,
    load_images,
    processor_of,
    read_idx,
    read_images,
    refuse_leaks,
    split_table,
)
from sftjax.data.leaks import leaks
from sftjax.data.tfds_prepare import prepare_tfds
from sftjax.data.voc import read_voc

RNG = np.random.default_rng(0)
PHOTO = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((48, 32), 3))
BCCD = pathlib.Path(__file__).parents[3] / "shared" / "data" / "bccd"


def save(path, pixels=PHOTO, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return str(path)


def folder_of(root, rows):
    for name, pixels in rows.items():
        save(root / name, pixels)
    return root


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_what_pillow_shows(tmp_path, mode):
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), mode=mode)
    pixels = decode(path)
    assert pixels.shape == (32, 48, 3)
    assert pixels.dtype == np.uint8
    expected = Image.fromarray(PHOTO).convert(mode).convert("RGB")
    np.testing.assert_array_equal(pixels, np.asarray(expected))
    assert decode(path, channels=1).shape == (32, 48, 1)


def test_a_cmyk_jpeg_is_refused_by_nobody(tmp_path):
    pixels = decode(save(tmp_path / "a.jpg", np.full((16, 16, 3), 200, np.uint8), "CMYK"))
    assert np.abs(pixels.astype(int) - 200).max() <= 4


def test_transparent_pixels_lie_over_white(tmp_path):
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (decode(save(tmp_path / "a.png", clear)) == 255).all()


def test_sixteen_bits_keep_their_values_through_resizing(tmp_path):
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    pixels = decode(save(tmp_path / "a.png", grey), channels=None)
    np.testing.assert_array_equal(pixels[..., 0], grey)
    small = Processor(resize=(4, 4))(pixels)
    assert small.dtype == np.uint16
    assert abs(int(small.astype(float).mean()) - 31500) < 300
    white = Processor(mean=(0.0,), std=(1.0,)).normalize(np.full((1, 1, 1), 65535, np.uint16))
    assert white.item() == 1


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    path = save(tmp_path / "a.png", PHOTO, exif=exif)
    np.testing.assert_array_equal(decode(path), np.rot90(PHOTO, -1))


def test_a_picture_of_one_pixel_is_a_picture(tmp_path):
    path = save(tmp_path / "a.png", np.full((1, 1, 3), 7, np.uint8))
    images = load_images(Table({"image": [path]}, name="x"), Processor(shortest=4, crop=(4, 4)))
    assert (images.pixels == 7).all()


def bad_files(root):
    whole = pathlib.Path(save(root / "ok" / "whole.jpg", quality=95)).read_bytes()
    (root / "ok" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "ok" / "empty.png").write_bytes(b"")
    (root / "ok" / "text.png").write_text("no picture")
    frames = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1])]
    frames[0].save(root / "ok" / "two.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.ones((2, 2), np.float32)).save(root / "ok" / "float.tif")
    return {
        "cut.jpg": "truncated", "empty.png": r"\(0 bytes\)", "text.png": "no image format",
        "two.tif": "2 frames", "float.tif": "floating-point",
    }  # fmt: skip


def test_every_corrupt_picture_is_named_and_none_skipped_silently(tmp_path):
    bad = bad_files(tmp_path)
    table = read_images(tmp_path)
    processor = Processor(resize=(8, 8))
    with pytest.raises(UnreadableImage, match="5 of 6 images cannot be read") as error:
        load_images(table, processor)
    assert all(name in str(error.value) for name in bad)
    images = load_images(table, processor, skip_corrupt=True)
    assert [pathlib.Path(p).name for p in images.table["image"]] == ["whole.jpg"]
    assert {pathlib.Path(b.name).name for b in images.corrupt} == set(bad)
    for name, reason in bad.items():
        with pytest.raises(UnreadableImage, match=reason):
            decode(tmp_path / "ok" / name)


def test_mixed_sizes_need_a_processor_of_one_size(tmp_path):
    folder_of(tmp_path, {"a/1.png": PHOTO, "b/2.png": PHOTO[:9, :9]})
    with pytest.raises(ValueError, match="different sizes do not fit one batch"):
        load_images(read_images(tmp_path), Processor())
    images = load_images(read_images(tmp_path), Processor(shortest=16, crop=(16, 20)))
    assert images.pixels.shape == (2, 16, 20, 3)


def test_folders_of_classes_with_and_without_splits(tmp_path):
    folder_of(tmp_path / "flat", {"cat/1.png": PHOTO, "dog/x/2.jpg": PHOTO, "dog/3.png": PHOTO})
    table = read_images(tmp_path / "flat")
    assert table["label"] == ["cat", "dog", "dog"]
    assert image_splits(tmp_path / "flat") == ()
    with pytest.raises(ValueError, match="its folders are classes"):
        read_images(tmp_path / "flat", "train")
    folder_of(tmp_path / "deep", {"train/cat/1.png": PHOTO, "train/dog/2.png": PHOTO,
                                  "val/dog/3.png": PHOTO[::-1]})  # fmt: skip
    assert image_splits(tmp_path / "deep") == ("train", "validation")
    held = read_images(tmp_path / "deep", "validation")
    # A class that the split lacks keeps its number.
    assert classes(held, least=1).names == ("cat", "dog")
    assert classes(held, least=1).values.tolist() == [1]
    (tmp_path / "flat" / "cat" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"1 files below .* are no images"):
        read_images(tmp_path / "flat")
    (tmp_path / "flat" / "bird").mkdir()
    with pytest.raises(ValueError, match="bird holds no image"):
        read_images(tmp_path / "flat")


def test_manifests(tmp_path):
    folder_of(tmp_path, {"p/1.png": PHOTO, "p/2.png": PHOTO[::-1]})
    path = tmp_path / "m.csv"
    path.write_text("path,label,patient,split\np/1.png,a,x,train\np/2.png,b,y,val\n")
    assert image_splits(path) == ("train", "val")
    table = read_images(path, "validation")
    assert (table["patient"], table.locate([0])) == (["y"], f"{path} row 2")
    np.testing.assert_array_equal(decode(table["image"][0]), PHOTO[::-1])
    path.write_text("path,label\np/1.png,a\np/3.png,b\n")
    with pytest.raises(FileNotFoundError, match=r"row 2: there is no file .*3.png"):
        read_images(path)
    path.write_text("picture,label\np/1.png,a\n")
    with pytest.raises(ValueError, match="name the column of images"):
        read_images(path)
    assert len(read_images(path, image="picture")) == 1


def test_medmnist_and_idx(tmp_path):
    pixels, labels = (
        RNG.integers(0, 256, (3, 28, 28), np.uint8),
        np.array([[1], [0], [1]], np.uint8),
    )
    np.savez(tmp_path / "set.npz", val_images=pixels, val_labels=labels)
    table = read_images(tmp_path / "set.npz", "validation")
    assert table["label"].tolist() == [1, 0, 1]
    assert image_splits(tmp_path / "set.npz") == ("val",)
    folder = tmp_path / "fashion"
    folder.mkdir()
    head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    tail = bytes([0, 0, 8, 1, 0, 0, 0, 3]) + labels.tobytes()
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(tail))
    table = read_images(folder, "test")
    np.testing.assert_array_equal(table["image"], pixels)
    assert classes(table).names[1] == "Trouser"
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(tail[:-1])
    with pytest.raises(ValueError, match="was it copied to the end"):
        read_idx(folder / "t10k-labels-idx1-ubyte.gz")


def test_batches_are_a_function_of_the_step():
    images = load_images(
        Table({"image": RNG.integers(0, 256, (5, 4, 4, 3), np.uint8)}, name="x"), Processor((4, 4))
    )
    batches = ImageBatches(images, np.arange(5, dtype=np.int32), batch_size=2, seed=3)
    seen = np.concatenate([batches.at(step)["index"] for step in range(3)])
    assert sorted(seen[seen >= 0]) == [0, 1, 2, 3, 4]
    again = ImageBatches(images, np.arange(5, dtype=np.int32), batch_size=2, seed=3)
    for name, value in batches.at(7).items():
        np.testing.assert_array_equal(value, again.at(7)[name])
    batch = batches.at(0)
    unit = images.pixels[batch["index"]] / 255
    expected = (unit - images.processor.mean) / images.processor.std
    np.testing.assert_allclose(batch["pixel_values"], expected, atol=1e-5)
    raw = ImageBatches(images, batch_size=2, seed=3, normalized=False).at(0)["pixel_values"]
    np.testing.assert_array_equal(raw, images.pixels[batch["index"]])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"image_processor_type": "ViTImageProcessor", "size": 224, "resample": 2,
          "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
         Processor((224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)),
        ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256},
          "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3,
          "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
         Processor(shortest=256, crop=(224, 224), interpolation="bicubic")),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224},
          "crop_pct": 0.875, "resample": 3, "do_normalize": False},
         Processor(shortest=256, crop=(224, 224), interpolation="bicubic",
                   mean=(0.0,) * 3, std=(1.0,) * 3)),
        ({"pretrained_cfg": {"input_size": [3, 288, 288], "crop_pct": 1.0,
                             "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}},
         Processor(shortest=288, crop=(288, 288), interpolation="bicubic",
                   mean=(0.5,) * 3, std=(0.5,) * 3)),
    ],
)  # fmt: skip
def test_processor_files(config, expected):
    found = processor_of(config)
    assert found._replace(mean=(), std=()) == expected._replace(mean=(), std=())
    np.testing.assert_allclose(found.mean + found.std, expected.mean + expected.std, atol=1e-12)
    with pytest.raises(ValueError, match="says nothing of how pictures"):
        processor_of({"hidden_size": 3})


@pytest.mark.torch
def test_a_processor_equals_transformers():
    transformers = pytest.importorskip("transformers")
    photo = np.asarray(Image.fromarray(PHOTO).resize((61, 40)))
    config = {
        "size": {"shortest_edge": 24},
        "crop_size": {"height": 20, "width": 20},
        "resample": 3,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
    }
    try:
        theirs = transformers.BitImageProcessor(**config, do_convert_rgb=False)
        expected = theirs(Image.fromarray(photo), return_tensors="np")["pixel_values"][0]
    except ImportError as error:
        pytest.skip(f"transformers has no picture processor here: {error}")
    ours = processor_of(config)
    found = ours.normalize(ours(photo))
    # The same filter of Pillow or torch; half a grey level is 1/255/2/0.2.
    np.testing.assert_allclose(found, np.moveaxis(expected, 0, -1), atol=1.01 / 255 / 0.2)
    assert np.abs(found - np.moveaxis(expected, 0, -1)).mean() < 1e-3


def test_splits_keep_groups_apart_and_proportions():
    label = np.repeat([0, 1, 1, 1], 60)
    table = Table({"label": label, "patient": np.arange(240) // 3}, name="toy")
    parts = split_table(table, seed=1, group="patient")
    patients = [set(part["patient"].tolist()) for part in parts.values()]
    assert not patients[0] & patients[1]
    assert not (patients[0] | patients[1]) & patients[2]
    assert sum(map(len, parts.values())) == 240
    for part in parts.values():
        assert abs(np.mean(part["label"]) - 0.75) < 0.05
    one = Table({"label": [0] * 9 + [1], "patient": list(range(10))}, name="rare")
    assert sum(sum(part["label"]) for part in split_table(one).values()) == 1


def pictures(arrays, **columns):
    table = Table({"image": arrays, **columns}, name="x")
    return load_images(table, Processor(resize=(32, 48)))


def test_leaks_are_refused_and_shown():
    other = [np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((48, 32)))
             for _ in range(6)]  # fmt: skip
    train = pictures([PHOTO, *other[:3]], patient=["a", "b", "c", "d"])
    clean = pictures(other[3:], patient=["e", "f", "g"])
    refuse_leaks({"train": train, "test": clean}, group="patient")
    same = pictures([other[3], PHOTO], patient=["e", "c"])
    with pytest.raises(ValueError, match="1 group, 1 identical image") as error:
        refuse_leaks({"train": train, "test": same}, group="patient")
    assert "train row 3: an array" in str(error.value)
    assert "(patient c) | test row 2" in str(error.value)
    file = io.BytesIO()
    Image.fromarray((PHOTO * 0.93 + 15).astype(np.uint8)).resize((60, 40)).save(file, "JPEG")
    near = pictures([other[4], file.getvalue()], patient=["e", "f"])
    (leak,) = leaks({"train": train, "test": near}, group="patient")
    assert leak.kind == "near-duplicate"
    assert "test row 2" in leak.second
    assert 0.985 < leak.alike < 1


def test_the_same_file_under_two_names_is_a_leak(tmp_path):
    root = folder_of(tmp_path, {"train/a/1.png": PHOTO, "test/a/other.png": PHOTO})
    parts = {split: read_images(root, split) for split in image_splits(root)}
    with pytest.raises(ValueError, match=r"1 identical image.*\n.*1.png.*other.png"):
        refuse_leaks(parts)


def test_boxes_of_annotations(tmp_path):
    save(tmp_path / "JPEGImages" / "one.png")
    sides = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    box = "<object><name>{}</name><bndbox>" + sides + "</bndbox></object>"
    body = (
        box.format("cell", 3, 5, 12, 30)
        + box.format("dot", 48, 9, 48, 99)
        + box.format("none", 60, 1, 70, 9)
    )
    (tmp_path / "Annotations").mkdir()
    size = "<size><width>48</width><height>32</height></size>"
    (tmp_path / "Annotations" / "one.xml").write_text(f"<annotation>{size}{body}</annotation>")
    with pytest.warns(UserWarning, match=r"1 boxes of 3 hold no pixels.*object 3 \(none"):
        table = read_images(tmp_path)
    assert table["label"] == ["cell", "dot"]
    assert table["group"] == ["one", "one"]
    np.testing.assert_array_equal(decode(table["image"][0]), PHOTO[4:30, 2:12])
    assert decode(table["image"][1]).shape == (24, 1, 3)
    with pytest.raises(UnreadableImage, match="holds no pixels"):
        decode(Crop(str(tmp_path / "JPEGImages" / "one.png"), 5, 5, 5, 9))


def test_the_real_blood_cells():
    if not BCCD.is_dir():
        pytest.skip(f"{BCCD} is not here")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = read_voc(BCCD)
    assert len(table) >= 4886 - 2
    assert len(set(table["group"])) == 364
    assert all("hold no pixels" in str(warning.message) for warning in caught)
    some = table.take(np.flatnonzero([g < "BloodImage_00010" for g in table["group"]]))
    parts = {name: load_images(part, Processor(resize=(32, 32)))
             for name, part in split_table(some, group="group").items()}  # fmt: skip
    refuse_leaks(parts, group="group")


def test_preparing_says_that_it_needs_tensorflow(tmp_path):
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed here")
    with pytest.raises(ImportError, match=r"needs TensorFlow, once.*prepare"):
        prepare_tfds("fashion_mnist", tmp_path)
