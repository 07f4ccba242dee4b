"""Torch's numbers are ours for images: on goldens without torch, live with it, and back again."""

import json
import pathlib
import runpy
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sftjax.hub import TensorFile, save

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
