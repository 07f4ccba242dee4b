"""Torch's numbers are ours for images: on goldens without torch, live with it, and back again."""

import json
import pathlib
import runpy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import Aux, Loss, flatten
from sftjax.hub import WEIGHT_MAPS, TensorFile, save
from sftjax.hub.names import place
from sftjax.models import take_statistics
from sftjax.select import select
from sftjax.train.step import init, make_step

HERE = pathlib.Path(__file__).parent
reference = SimpleNamespace(**runpy.run_path(str(HERE / "image_reference.py")))
TOLERANCE = 1e-4


def assert_same(ours, theirs):
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    assert np.abs(theirs).max() > 0.05  # a flat output would agree with anything
    assert np.std(theirs, axis=0).max() > 1e-3  # and so would one that does not see the images
    assert np.abs(ours - theirs).max() <= TOLERANCE * max(1.0, np.abs(theirs).max())


@pytest.fixture(scope="module")
def goldens():
    with np.load(HERE / "image_goldens.npz") as stored:
        return {name: stored[name] for name in stored.files}


def test_the_goldens_are_small_and_complete(goldens):
    assert (HERE / "image_goldens.npz").stat().st_size < 300_000
    assert goldens.keys() == {"shapes", *reference.CASES}


@pytest.mark.parametrize("name", reference.CASES)
def test_goldens(tmp_path, goldens, name):
    case = reference.CASES[name]
    shapes = {k: tuple(v) for k, v in json.loads(str(goldens["shapes"]))[name].items()}
    model, params, _ = reference.ours(case, reference.weights(shapes), tmp_path)
    pixels = {"pixel_values": reference.images(case)}
    assert_same(jax.jit(model.apply)(params, pixels), goldens[name])


@pytest.mark.torch
@pytest.mark.parametrize("name", reference.CASES)
def test_torch_opens_what_we_save_and_computes_the_same(tmp_path, goldens, name):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    make = SimpleNamespace(**runpy.run_path(str(HERE / "make_image_goldens.py")))
    case = reference.CASES[name]
    shapes = {k: tuple(v) for k, v in json.loads(str(goldens["shapes"]))[name].items()}
    tensors = reference.weights(shapes)
    model, params, report = reference.ours(case, tensors, tmp_path)
    save(tmp_path / "ours", model, params, report=report)
    cls = getattr(transformers, case.torch_class)
    again, info = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    np.testing.assert_allclose(make.run(again.eval(), case), goldens[name], atol=1e-5, rtol=1e-5)
    file = TensorFile(tmp_path / "ours" / "model.safetensors")
    assert file.keys() == tensors.keys()
    assert all(np.array_equal(file[name], tensor) for name, tensor in tensors.items())


@pytest.mark.torch
def test_running_statistics_after_three_steps_are_torch_s(tmp_path, goldens):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    case = reference.CASES["resnet-basic"]
    shapes = {k: tuple(v) for k, v in json.loads(str(goldens["shapes"]))["resnet-basic"].items()}
    model, params, report = reference.ours(case, reference.weights(shapes), tmp_path)
    save(tmp_path / "ours", model, params, report=report)
    theirs = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "ours").train()
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.01)

    rest, statistics = take_statistics(params, model.statistics)
    tx = optax.sgd(0.01)

    def objective(params, statistics, batch, key):
        logits, moved = model.apply_moving(params, statistics, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return Loss(losses.sum(), jnp.float32(len(losses))), Aux({}, moved)

    trainable = select(rest, "all").trainable
    state, fixed = init(rest, trainable, tx, jax.random.key(0), model_state=statistics)
    step = jax.jit(make_step(objective, tx))
    labels = np.array([0, 2])
    for seed in range(3):
        pixels = reference.images(case, seed)
        state, metrics = step(state, fixed, {"pixel_values": pixels, "label": labels})
        sgd.zero_grad()
        loss = theirs(
            pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            labels=torch.from_numpy(labels),
        ).loss
        loss.backward()
        sgd.step()
        assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-4)
    expected = theirs.state_dict()
    table, ours = WEIGHT_MAPS["resnet"], flatten(state.model_state)
    assert len(ours) == len(model.statistics) > 10
    for path, leaf in ours.items():
        torch_s = expected[place(table, path).tensor].numpy()
        np.testing.assert_allclose(leaf, torch_s, atol=1e-4, rtol=1e-4)
        assert not np.allclose(leaf, flatten(params)[path], atol=1e-3)
