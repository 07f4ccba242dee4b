"""Every kind of model's step is compiled by the TPU's own compiler, which needs no TPU.

It is a package of 200 MB (`libtpu`, of the version that jax names), which CI installs for this file
alone; without it nothing here is tested.
"""

import dataclasses
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

sys.path.insert(0, __file__.rpartition("/")[0])
from family_steps import CONFIGS, run_of

from sftjax.adapters import lora, plan_adapter, shapes_of, side_branch
from sftjax.core import compiling_for, map_with_path
from sftjax.models import TENSOR_RULES, Head, build
from sftjax.objectives import next_token
from sftjax.recipes.plan import Plan, plan
from sftjax.recipes.training import Training
from sftjax.train import (
    abstract_batch,
    abstract_state,
    compile_step,
    init,
    make_mesh,
    make_step,
    on_topology,
)

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
LLAMA = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256,
    "max_position_embeddings": 256,
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("family", CONFIGS)
def test_a_step_of_every_family_compiles_for_eight_chips(family):
    step, state, fixed, batch = run_of(family)
    with on_topology("v5e:2x4"):
        mesh = make_mesh("data=2,fsdp=2,tensor=2")
        compiled = compile_step(step, mesh, TENSOR_RULES)
        state, fixed = abstract_state(state, fixed, mesh, TENSOR_RULES)
        found = compiled.lower(state, fixed, abstract_batch(batch, mesh)).compile()
    assert found.memory_analysis().argument_size_in_bytes > 0
    assert "all-reduce" in found.as_text()


@needs_compiler
@pytest.mark.parametrize("window", [None, 64])
def test_one_chip_trains_a_packed_lora_with_splash(window):
    config = LLAMA if window is None else LLAMA | {"model_type": "mistral", "sliding_window": 64}
    model = build(config, Head("causal-lm"), dtype=jnp.bfloat16)
    base = model.shapes()
    worn = plan_adapter(base, lora(r=8))
    params = {"adapter": shapes_of(worn, base), "base": base}
    moves = map_with_path(lambda path, _: path.startswith("adapter/"), params)
    hidden = side_branch(model.hidden, worn)
    objective = next_token(hidden, lambda params: model.words(params["base"]))
    tx, key = optax.adamw(1e-4), jax.random.key(0)
    state, fixed = jax.eval_shape(lambda p, k: init(p, moves, tx, k), params, key)
    words = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    batch = {
        "input_ids": words, "attention_mask": words, "segment_ids": words, "position_ids": words,
        "loss_weights": jax.ShapeDtypeStruct((2, 256), jnp.float32),
    }  # fmt: skip
    with on_topology("v5e:1x1"):
        mesh = make_mesh("data=1")
        state, fixed = abstract_state(state, fixed, mesh)
        lowered = compile_step(make_step(objective, tx), mesh).lower(
            state, fixed, abstract_batch(batch, mesh)
        )
        text = lowered.compile().as_text()
    assert "custom-call" in text
    assert "splash" in text


@needs_compiler
def test_a_plan_for_a_slice_says_what_its_compiler_says(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    training = Training(
        train=("all",), anchor="none", mesh="fsdp=8", per_device_train_batch_size=1, bf16=True,
        max_steps=10,
    )  # fmt: skip
    job = Plan(str(tmp_path), training, length=256, remat="full", topology="v5e:2x4")
    found = plan(job)
    told = capsys.readouterr().out
    assert "compiled for tpu" in told
    assert "(a TPU v5 lite)" in told
    assert found.fits
    assert found.batch["input_ids"].shape == (8, 256)
    memory = found.memory
    counted = memory.frozen + memory.trained + memory.moments + memory.anchor + memory.batch
    assert counted == pytest.approx(memory.arguments, rel=0.05)
    with pytest.raises(ValueError, match=r"does not fit: it takes .* of 15\.75G, by the compiler"):
        plan(dataclasses.replace(job, length=2**16, remat="none"))


@needs_compiler
def test_a_slice_that_is_none_is_refused():
    words = r"knows no 'v5e:3x5': .*; write a generation and a shape"
    with pytest.raises(ValueError, match=words), on_topology("v5e:3x5"):
        pass


def test_without_the_compiler_the_command_that_brings_it_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "jax\[tpu\]=='), on_topology("v5e:2x4"):
        pass


def test_what_is_compiled_for_is_this_process_unless_it_is_said():
    with compiling_for(jax.devices()[:2]):
        assert make_mesh().shape == {"data": 2}
    assert make_mesh().shape == {"data": jax.device_count()}
