"""Torch's logits are ours for every family of decoders: on goldens without torch, and live."""

import json
import pathlib
import runpy
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sftjax.hub import load, save

HERE = pathlib.Path(__file__).parent
causal = SimpleNamespace(**runpy.run_path(str(HERE / "causal_reference.py")))
reference = causal.reference
TOLERANCE = 2e-4


def assert_same(ours, theirs, mask):
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    if ours.ndim == 3:
        ours, theirs = ours[mask.astype(bool)], theirs[mask.astype(bool)]
    assert np.abs(theirs).max() > 0.05  # a flat output would agree with anything
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.fixture(scope="module")
def goldens():
    with np.load(HERE / "causal_goldens.npz") as stored:
        return {name: stored[name] for name in stored.files}


def test_the_goldens_are_small_and_complete(goldens):
    assert (HERE / "causal_goldens.npz").stat().st_size < 300_000
    assert goldens.keys() == {"shapes", *causal.CASES}


@pytest.mark.parametrize("name", causal.CASES)
def test_goldens(tmp_path, goldens, name):
    case = causal.CASES[name]
    shapes = {k: tuple(v) for k, v in json.loads(str(goldens["shapes"]))[name].items()}
    model, params = reference.ours(case, reference.weights(shapes), tmp_path)
    batch = causal.inputs(case)
    assert_same(jax.jit(model.apply)(params, batch), goldens[name], batch["attention_mask"])


@pytest.mark.torch
@pytest.mark.parametrize("name", causal.CASES)
def test_live(tmp_path, goldens, name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    make = SimpleNamespace(**runpy.run_path(str(HERE / "make_causal_goldens.py")))
    case = causal.CASES[name]
    theirs, shapes = make.torch_model(case)
    tensors = {k: torch.from_numpy(v).long() for k, v in causal.inputs(case).items()}
    with torch.no_grad():
        output = theirs(**tensors)[0].numpy()
    np.testing.assert_allclose(goldens[name], output, atol=1e-5, rtol=0)  # goldens are not stale
    # What we save, torch opens, and its logits are the same.
    reference.ours(case, reference.weights(shapes), tmp_path)
    model, params, report = load(tmp_path, head=None if case.labels else case.kind)
    save(tmp_path / "again", model, params, report=report)
    opened = getattr(transformers, case.torch_class).from_pretrained(
        tmp_path / "again", attn_implementation="eager"
    )
    with torch.no_grad():
        np.testing.assert_allclose(opened.eval()(**tensors)[0].numpy(), output, atol=1e-6)
