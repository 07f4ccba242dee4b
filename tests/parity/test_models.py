"""Torch's numbers are ours: on goldens without torch, live with it, and for the real MiniLM."""

import json
import pathlib
import runpy
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sftjax.hub import load

HERE = pathlib.Path(__file__).parent
reference = SimpleNamespace(**runpy.run_path(str(HERE / "reference.py")))
TOLERANCE = 2e-5


def assert_same(ours, theirs, mask=None):
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    if mask is not None and ours.ndim == 3:
        ours, theirs = ours[mask.astype(bool)], theirs[mask.astype(bool)]
    assert np.abs(theirs).max() > 0.05  # a flat output would agree with anything
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.fixture(scope="module")
def goldens():
    with np.load(HERE / "goldens.npz") as stored:
        return {name: stored[name] for name in stored.files}


def test_the_goldens_are_small_and_complete(goldens):
    assert (HERE / "goldens.npz").stat().st_size < 300_000
    assert goldens.keys() == {"shapes", *reference.CASES}


@pytest.mark.parametrize("name", reference.CASES)
def test_goldens(tmp_path, goldens, name):
    case = reference.CASES[name]
    shapes = {k: tuple(v) for k, v in json.loads(str(goldens["shapes"]))[name].items()}
    model, params = reference.ours(case, reference.weights(shapes), tmp_path)
    batch = reference.inputs(case)
    assert_same(jax.jit(model.apply)(params, batch), goldens[name], batch["attention_mask"])


@pytest.mark.torch
@pytest.mark.parametrize("name", reference.CASES)
def test_live(tmp_path, goldens, name):
    pytest.importorskip("torch")
    make = SimpleNamespace(**runpy.run_path(str(HERE / "make_goldens.py")))
    case = reference.CASES[name]
    shapes, theirs = make.torch_output(case)
    np.testing.assert_allclose(goldens[name], theirs, atol=1e-5, rtol=0)  # goldens are not stale
    model, params = reference.ours(case, reference.weights(shapes), tmp_path)
    batch = reference.inputs(case)
    assert_same(jax.jit(model.apply)(params, batch), theirs, batch["attention_mask"])


@pytest.mark.assets
@pytest.mark.torch
@pytest.mark.parametrize("kind", ["hidden", "pooled", "mean", "sequence"])
def test_minilm(minilm, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    mask = (np.arange(64) < np.array([[64], [40], [9]])).astype(np.int32)
    ids = np.where(mask, rng.integers(1000, 30000, mask.shape), 0).astype(np.int32)
    types = ((np.arange(64) > 5)[None] & (mask > 0)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    tensors = {name: torch.from_numpy(array).long() for name, array in batch.items()}
    if kind == "sequence":
        model, params, _ = load(minilm, head=kind, labels=("bad", "good"), key=jax.random.key(1))
        # A fresh head's logits are near 0; larger ones put the tolerance to the test.
        params["classifier"]["kernel"] = 20 * params["classifier"]["kernel"]
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(minilm)
        kernel = np.asarray(params["classifier"]["kernel"]).T.copy()
        theirs.classifier.weight.data = torch.from_numpy(kernel)
        theirs.classifier.bias.data.zero_()
    else:
        model, params, _ = load(minilm, head=kind)
        theirs = transformers.AutoModel.from_pretrained(minilm)
    with torch.no_grad():
        result = theirs.eval()(**tensors)
    if kind == "mean":
        weight = tensors["attention_mask"][..., None]
        expected = (result[0] * weight).sum(1) / weight.sum(1)
    else:
        expected = result.pooler_output if kind == "pooled" else result[0]
    assert_same(jax.jit(model.apply)(params, batch), expected.numpy(), mask)
