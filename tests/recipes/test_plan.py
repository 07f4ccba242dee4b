"""The memory planner says what the real run then takes, and reads no weight to know it."""

import json
import sys

import jax
import pytest

sys.path.insert(0, __file__.rpartition("/")[0])
from tiny_llama import write_rows, write_tiny_llama

import sftjax.recipes.chat as chatting
import sftjax.recipes.finetune as finetuning
from sftjax.core import nbytes
from sftjax.hub import TensorFile, load, outline
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.chat_rows import ChatRows
from sftjax.recipes.plan import Plan, plan
from sftjax.recipes.plan_table import parse_bytes
from sftjax.recipes.training import Training


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    return write_tiny_llama(root / "llama"), write_rows(root / "rows.jsonl"), root


def refuse(self, name):
    """Stand in for reading a tensor."""
    raise AssertionError(f"{name} was read")


class Stopped(Exception):
    """The run has come to its first update."""


def real_run(monkeypatch, places, **training):
    """Return what `fit` is given in a real run: step, state, fixed and the first batch."""
    model, data, root = places
    seen = []

    def stop(step, state, fixed, batch_at, *rest, **options):
        seen.append((step, state, fixed, batch_at(0)))
        raise Stopped

    monkeypatch.setattr(finetuning, "fit", stop)
    measures = {"loss": 0.0, "perplexity": 1.0, "token_accuracy": 0.0}
    monkeypatch.setattr(chatting, "Measured", lambda *given: lambda params: measures)
    job = TuneChat(
        root / f"run{len(list(root.iterdir()))}", str(model), str(data), ChatRows(max_length=256),
        Training(max_steps=2, per_device_train_batch_size=1, **training), remat="full",
        per_device_eval_batch_size=1, reference_rows=0, samples=0,
    )  # fmt: skip
    with pytest.raises(Stopped):
        chatting.chat(job, lambda text: None)
    return seen[0]


SETTINGS = {
    "few bits": {
        "adapter": ("lora:r=4",), "quantize": "nf4-double", "bf16": True,
        "gradient_accumulation_steps": 2,
    },
    "last": {"train": ("last:1",), "dose": 1.0, "average": "ema:0.9", "optim": "adamw-bf16"},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_the_real_run_takes_what_was_planned(monkeypatch, places, name):
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(TensorFile, "__getitem__", refuse)
        training = Training(max_steps=2, per_device_train_batch_size=1, **SETTINGS[name])
        planned = plan(Plan(str(places[0]), training, length=256, remat="full"), told.append)
    step, state, fixed, batch = real_run(monkeypatch, places, **SETTINGS[name])
    expected, memory = planned.memory, planned.memory._asdict()
    assert memory["trained"] == memory["gradients"] == nbytes(state.trainable)
    assert memory["frozen"] == nbytes(fixed.frozen)
    assert memory["moments"] == nbytes(state.opt_state)
    assert memory["anchor"] == nbytes(fixed.anchor)
    assert memory["batch"] == nbytes(dict(batch)) // jax.device_count()
    shapes = (planned.state, planned.fixed, dict(planned.batch))
    real = jax.tree.leaves((state, fixed, batch))
    for ours, theirs in zip(jax.tree.leaves(shapes), real, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    lowered = step.lower(state, fixed, batch)  # the very same program
    assert lowered.as_text() == planned.step.lower(*shapes).as_text()  # type: ignore[attr-defined]
    figures = lowered.compile().memory_analysis()
    assert expected.arguments == figures.argument_size_in_bytes
    assert expected.temporary == figures.temp_size_in_bytes
    assert expected.total > memory["frozen"] + memory["trained"]
    assert planned.fits
    assert "fits" in told[1]


def test_a_config_alone_is_enough_and_too_little_memory_is_said(places, tmp_path):
    config = json.loads((places[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    told = []
    small = Training(train=("all",), per_device_train_batch_size=1)
    planned = plan(Plan(str(tmp_path), small, length=16, memory="100kB"), told.append)
    assert not planned.fits
    assert "does not fit 100.0 kB (--memory)" in told[1]
    assert planned.memory.frozen == 0


@pytest.mark.parametrize("quantize", [None, "nf4", "int8-double"])
def test_an_outline_is_the_shape_of_what_is_loaded(monkeypatch, places, quantize):
    loaded = load(places[0], head="causal-lm", quantize=quantize)
    monkeypatch.setattr(TensorFile, "__getitem__", refuse)
    found = outline(places[0], head="causal-lm", quantize=quantize)
    assert jax.tree.structure(found.params) == jax.tree.structure(loaded.params)
    for ours, theirs in zip(*map(jax.tree.leaves, (found.params, loaded.params)), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert found.new == loaded.report.new
    assert found.model == loaded.model


@pytest.mark.parametrize("text", ["", "16 apples", "-3GB", "1.2.3GB"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="write a size such as 16GiB"):
        parse_bytes(text)


def test_settings_that_do_not_go_together_are_refused(places):
    for training, more, error in [
        ({"phases": ("lp", "ft")}, {}, "--phases"),
        ({"anchor": "child-d", "train": ("last:1",)}, {}, "only the data decide"),
        ({"quantize": "nf4"}, {}, "train an adapter beside them"),
        ({}, {"base_kl": 0.1}, "give one"),
    ]:
        with pytest.raises(ValueError, match=error):
            plan(Plan(str(places[0]), Training(**training), length=16, **more))
