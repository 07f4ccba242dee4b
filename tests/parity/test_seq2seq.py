"""Torch's logits, losses, gradients and generated tokens are ours, for every encoder-decoder.

On goldens without torch, and live.
"""

import functools
import json
import pathlib
import runpy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.core import flatten
from sftjax.evaluate.generate import compile_generate
from sftjax.evaluate.generate_settings import settings_of
from sftjax.hub import load, save
from sftjax.hub.names import place
from sftjax.hub.seq2seq_names import SEQ2SEQ
from sftjax.models import shift_right
from sftjax.objectives import sequence_cross_entropy, sequence_to_sequence

HERE = pathlib.Path(__file__).parent
seq2seq = SimpleNamespace(**runpy.run_path(str(HERE / "seq2seq_reference.py")))
reference = seq2seq.reference
TOLERANCE = {"atol": 2e-4, "rtol": 0}
smoothed = jax.jit(functools.partial(sequence_cross_entropy, label_smoothing=0.1))


@pytest.fixture(scope="module")
def goldens():
    with np.load(HERE / "seq2seq_goldens.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    return arrays | {name: json.loads(str(arrays[name])) for name in ("shapes", "settings")}


@pytest.fixture(scope="module")
def make():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return SimpleNamespace(**runpy.run_path(str(HERE / "make_seq2seq_goldens.py")))


def ours(name, goldens, folder):
    shapes = {tensor: tuple(shape) for tensor, shape in goldens["shapes"][name].items()}
    return reference.ours(seq2seq.CASES[name], reference.weights(shapes), folder)


def said(case):
    """Return which logits count."""
    return seq2seq.inputs(case)["decoder_attention_mask"] > 0


def shifted(case, model):
    """Return a batch that teaches the labels."""
    labels = seq2seq.labels(case)
    return {
        **seq2seq.inputs(case),
        "decoder_input_ids": shift_right(labels, model.decoder_start_token_id, model.pad_token_id),
        "labels": labels,
        "loss_weights": (labels >= 0).astype(np.float32),
    }


def test_the_goldens_are_small_and_complete(goldens):
    assert (HERE / "seq2seq_goldens.npz").stat().st_size < 100_000
    kinds = [*seq2seq.CASES, *(f"{name}/loss" for name in seq2seq.CASES)]
    assert goldens.keys() == {
        "shapes", "settings", *kinds, *(f"written/{name}" for name in seq2seq.WRITTEN)
    }  # fmt: skip


@pytest.mark.parametrize("name", seq2seq.CASES)
def test_logits_and_loss(tmp_path, goldens, name):
    case = seq2seq.CASES[name]
    model, params = ours(name, goldens, tmp_path)
    apply = jax.jit(model.apply)
    logits = np.asarray(apply(params, seq2seq.inputs(case)))
    count, expected = said(case), goldens[name]
    assert np.abs(expected).max() > 0.4  # a flat output would agree with anything
    np.testing.assert_allclose(logits[count], expected[count], **TOLERANCE)
    taught = shifted(case, model)
    labels, weights = taught.pop("labels"), taught.pop("loss_weights")
    loss = smoothed(apply(params, taught), labels, weights)
    assert float(loss.mean) == pytest.approx(float(goldens[f"{name}/loss"]), abs=2e-5)


@pytest.mark.parametrize("name", seq2seq.WRITTEN)
def test_generated_tokens(tmp_path, goldens, name):
    about, asked = seq2seq.WRITTEN[name]
    model, params = ours(about, goldens, tmp_path)
    settings = settings_of(goldens["settings"][name] | asked, max_new_tokens=seq2seq.ROOM)
    out = compile_generate(model.decoder, settings)(params, seq2seq.sources(seq2seq.CASES[about]))
    written = goldens[f"written/{name}"].tolist()
    for row, length, expected in zip(out.tokens, out.lengths, written, strict=True):
        ends = [i for i, token in enumerate(expected) if token in settings.eos_token_id]
        expected = expected[: ends[0] + 1] if ends else expected
        assert row[: int(length)].tolist() == expected


@pytest.mark.torch
@pytest.mark.parametrize("name", seq2seq.CASES)
def test_live_and_there_and_back_again(tmp_path, goldens, make, name):
    case = seq2seq.CASES[name]
    _, logits, loss = make.torch_results(case)
    np.testing.assert_allclose(goldens[name], logits, atol=1e-5, rtol=0)  # goldens are not stale
    np.testing.assert_allclose(goldens[f"{name}/loss"], loss, rtol=1e-5)
    theirs, _ = make.torch_model(case)
    theirs.save_pretrained(tmp_path / "torch")
    model, params, report = load(tmp_path / "torch")
    apply, batch, count = jax.jit(model.apply), seq2seq.inputs(case), said(case)
    changed = jax.tree.map(lambda leaf: leaf * 1.01, params)
    for saved, weights in (("same", params), ("changed", changed)):
        folder = save(tmp_path / saved, model, weights, report=report)
        again, info = type(theirs).from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        found = make.logits_of(again.eval(), batch)
        np.testing.assert_allclose(np.asarray(apply(weights, batch))[count], found[count],
                                   **TOLERANCE)  # fmt: skip
    assert np.abs(found[count] - logits[count]).max() > 1e-3
    assert (tmp_path / "same" / "generation_config.json").is_file()


@pytest.mark.torch
@pytest.mark.parametrize("name", seq2seq.WRITTEN)
def test_what_torch_writes_is_what_the_goldens_say(goldens, make, name):
    np.testing.assert_array_equal(make.written(name)[0], goldens[f"written/{name}"])


@pytest.mark.torch
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_gradients_of_a_ragged_batch(tmp_path, goldens, make, name):
    torch = pytest.importorskip("torch")
    case = seq2seq.CASES[name]
    theirs, _ = make.torch_model(case)
    model, params = ours(name, goldens, tmp_path)
    batch, labels = shifted(case, model), torch.from_numpy(seq2seq.labels(case)).long()
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = theirs(**make.tensors(source), labels=labels).logits
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1
    ).backward()
    objective = sequence_to_sequence(model.apply, label_smoothing=0.1)
    gradients = jax.jit(jax.grad(lambda p: objective(p, {}, batch, None)[0].mean))(params)
    named = dict(theirs.named_parameters())
    for path, gradient in flatten(gradients).items():
        spot = place(SEQ2SEQ[model.family], path)
        if spot.tensor in named:  # torch does not train final_logits_bias
            there = named[spot.tensor].grad.numpy()
            np.testing.assert_allclose(spot.theirs(np.asarray(gradient)), there, atol=2e-4)
        else:
            assert path == "final_logits_bias"
            assert jnp.abs(gradient).max() > 0
