"""Laws of augmentation: strength 0 is the identity, a row's fate is its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sftjax.core import partition
from sftjax.data import Processor, augmentation
from sftjax.data import augment_pixels as pixels
from sftjax.data.augment import cutmix, mixup
from sftjax.objectives import augmented, classification, cross_entropy
from sftjax.train import compile_step, init, make_step

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 12, 10, 3), np.uint8)
IMAGE = jnp.asarray(IMAGES[0]) / 255
PROCESSOR = Processor((12, 10))
KEY = jax.random.key(7)
ALL = ["crop", "flip", "flip-vertical", "rotate", "colour:0.4:0.1", "randaugment", "erase:1",
       "mixup", "cutmix"]  # fmt: skip
OFF = ["crop:1:1", "flip:0", "flip-vertical:0", "rotate:0", "colour:0:0", "randaugment:2:0",
       "erase:0", "mixup:0", "cutmix:0"]  # fmt: skip


def batch_of(rows=range(8)):
    rows = np.array(rows, np.int32)
    return {"pixel_values": IMAGES[rows], "index": rows, "labels": rows % 4}


@pytest.mark.parametrize("word", OFF)
def test_strength_zero_is_the_identity(word):
    batch = batch_of()
    out = jax.jit(augmentation([word], PROCESSOR, 4))(KEY, batch)
    np.testing.assert_allclose(
        out["pixel_values"], PROCESSOR.normalize(batch["pixel_values"]), atol=3e-5
    )
    if out["labels"].ndim == 2:
        np.testing.assert_array_equal(out["labels"], jax.nn.one_hot(batch["labels"], 4))


def test_without_a_key_pictures_are_only_normalized():
    batch = batch_of()
    out = augmentation(ALL, PROCESSOR, 4)(None, batch)
    np.testing.assert_allclose(
        out["pixel_values"], PROCESSOR.normalize(batch["pixel_values"]), atol=1e-5
    )
    floats = {**batch, "pixel_values": PROCESSOR.normalize(batch["pixel_values"])}
    again = augmentation(ALL, PROCESSOR, 4)(None, floats)
    np.testing.assert_allclose(again["pixel_values"], out["pixel_values"], atol=1e-5)


@pytest.mark.parametrize("flip", [pixels.flip_left_right, pixels.flip_up_down])
def test_flipping_twice_is_the_identity(flip):
    once = flip(KEY, IMAGE, 1.0)
    assert not np.array_equal(once, IMAGE)
    np.testing.assert_array_equal(flip(KEY, once, 1.0), IMAGE)


def test_a_rows_fate_does_not_depend_on_its_neighbours():
    augment = jax.jit(
        augmentation(["crop", "flip", "rotate", "colour:0.4:0.1", "erase:1"], PROCESSOR)
    )
    whole = augment(KEY, batch_of())["pixel_values"]
    some = augment(KEY, batch_of([5, 2, 7, 0]))["pixel_values"]
    np.testing.assert_allclose(some, whole[np.array([5, 2, 7, 0])], atol=2e-6)
    other = augment(jax.random.key(8), batch_of())["pixel_values"]
    assert np.abs(other - whole).mean() > 0.05
    # Rows differ among themselves: one picture eight times becomes eight.
    same = {"pixel_values": np.repeat(IMAGES[:1], 8, 0), "index": np.arange(8)}
    assert len(np.unique(augment(KEY, same)["pixel_values"].round(4), axis=0)) == 8


@pytest.mark.parametrize("word", ["crop", "randaugment", "mixup:0.4"])
def test_jit_and_shards_give_the_same(word):
    augment = augmentation([word], PROCESSOR, 4)
    batch = batch_of()
    plain = jax.jit(augment)(KEY, batch)
    mesh = Mesh(np.array(jax.devices()[:4]), ("rows",))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    shared = jax.jit(augment)(KEY, jax.device_put(batch, rows))
    for name in ("pixel_values", "labels"):
        np.testing.assert_allclose(shared[name], plain[name], atol=2e-6)


def test_values_stay_between_black_and_white():
    augment = jax.jit(augmentation([*ALL[:5], "randaugment:1:10", "erase:1"], PROCESSOR))
    out = augment(KEY, batch_of())["pixel_values"]
    unit = np.asarray(out) * PROCESSOR.std + np.asarray(PROCESSOR.mean)
    assert unit.min() >= -1e-5
    assert unit.max() <= 1 + 1e-5


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_mixing_preserves_the_mass_of_labels(mix):
    keys = jax.random.split(KEY, 8)
    labels = jax.nn.one_hot(jnp.arange(8) % 4, 4)
    # Pictures that are their own label in every pixel: the mixed picture must be the mixed label.
    pictures = jnp.broadcast_to(labels[:, None, None, :], (8, 6, 5, 4))
    mixed, soft = mix(keys, pictures, labels, 1.0)
    np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed.mean((1, 2)), soft, atol=1e-6)
    assert np.unique(np.asarray(soft)).size > 4
    # The total of each class is kept by mixup with one share for all, and here class by class:
    np.testing.assert_allclose(mixed.sum(), pictures.sum(), rtol=1e-6)


def test_a_crop_shows_a_part_enlarged():
    ramp = jnp.broadcast_to(jnp.arange(40.0)[:, None, None] / 40, (40, 40, 1))
    out = jax.vmap(lambda key: pixels.random_resized_crop(key, ramp, 0.25, 1.0))(
        jax.random.split(KEY, 50)
    )
    seen = (out[:, -2, 20, 0] - out[:, 1, 20, 0]) * 40 / 37
    # Half to all of the height, as areas from 0.25 to 1 without a change of shape.
    assert seen.min() > 0.47
    assert seen.max() < 1.02
    assert seen.max() - seen.min() > 0.3


def test_a_quarter_turn_is_a_quarter_turn():
    square = IMAGE[:9, :9]
    out = pixels.warp(square, pixels.turned(jnp.float32(np.pi / 2)))
    np.testing.assert_allclose(out, np.rot90(square, -1), atol=1e-5)


def test_a_hue_turn_keeps_the_grey():
    out = pixels.hue_turned(IMAGE, jnp.float32(1.0))
    np.testing.assert_allclose(pixels.luma(out), pixels.luma(IMAGE), atol=1e-3)
    assert np.abs(out - IMAGE).mean() > 0.02


def test_erasing_takes_its_share():
    out = jax.vmap(lambda key: pixels.erase(key, IMAGE, 1.0, 0.2, 0.2))(jax.random.split(KEY, 200))
    share = (np.asarray(out) != np.asarray(IMAGE)).any(-1).mean((1, 2))
    assert abs(share.mean() - 0.2) < 0.03
    whether = jax.vmap(lambda key: pixels.erase(key, IMAGE, 0.5))(jax.random.split(KEY, 400))
    changed = (np.asarray(whether) != np.asarray(IMAGE)).any((1, 2, 3)).mean()
    assert abs(changed - 0.5) < 0.08


@pytest.mark.parametrize("word", ["blur", "flip:0.5:1", "crop:x", "rotate:-3"])
def test_words_that_say_nothing_are_refused(word):
    with pytest.raises(ValueError, match=f"augmentation '{word}'"):
        augmentation([word], PROCESSOR)
    with pytest.raises(ValueError, match="needs num_classes"):
        augmentation(["mixup"], PROCESSOR)


def test_a_step_trains_on_augmented_pictures_and_soft_labels():
    apply = lambda p, batch, key: batch["pixel_values"].reshape(8, -1) @ p["w"]  # noqa: E731
    objective = augmented(
        classification(apply), augmentation(["colour:0.1", "mixup"], PROCESSOR, 4)
    )
    params = {"w": jnp.zeros((360, 4))}
    tx = optax.sgd(1e-3)
    state, fixed = init(params, {"w": True}, tx, KEY)
    step = compile_step(make_step(objective, tx))
    losses = []
    for _ in range(30):
        state, metrics = step(state, fixed, batch_of())
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(4), abs=1e-5)
    assert np.mean(losses[-5:]) < 1.2
    assert partition(params, {"w": True})[1]["w"] is None


def test_soft_labels_are_means_over_their_distribution():
    logits = jax.random.normal(KEY, (6, 4))
    labels = jnp.arange(6) % 4
    options = {"label_smoothing": 0.1, "class_weights": jnp.array([1.0, 2.0, 0.5, 3.0])}
    valid = jnp.array([1.0, 1, 0, 1, 1, 1])
    hard = cross_entropy(logits, labels, valid, **options)
    soft = cross_entropy(logits, jax.nn.one_hot(labels, 4), valid, **options)
    np.testing.assert_allclose(np.array(hard), np.array(soft), rtol=1e-6)
    half = (jax.nn.one_hot(labels, 4) + jax.nn.one_hot((labels + 1) % 4, 4)) / 2
    pair = [cross_entropy(logits, (labels + k) % 4, valid) for k in (0, 1)]
    mean = cross_entropy(logits, half, valid)
    np.testing.assert_allclose(mean.sum, (pair[0].sum + pair[1].sum) / 2, rtol=1e-6)
