"""LoRA beside a decoder: PEFT's logits and its losses over five steps of SGD are ours."""

import json
import pathlib
import runpy
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.adapters import side_branch
from sftjax.core import Aux, Loss
from sftjax.hub import load_adapter, save_adapter
from sftjax.select import select
from sftjax.train import compile_step, init, make_step

HERE = pathlib.Path(__file__).parent
causal = SimpleNamespace(**runpy.run_path(str(HERE / "causal_reference.py")))
reference = causal.reference
NAMES = ["llama-untied-biases", "gpt2"]
STEPS, RATE = 5, 0.05


def batch_of(case):
    batch = causal.inputs(case)
    # A row's first token is said by nobody: what padding on its left says means nothing.
    said = batch["attention_mask"] * np.pad(batch["attention_mask"][:, :-1], ((0, 0), (1, 0)))
    return {**batch, "labels": np.where(said, batch["input_ids"], -100)}


def objective_of(apply):
    def objective(params, state, batch, key):
        logits, labels = apply(params, batch)[:, :-1], batch["labels"][:, 1:]
        real = labels >= 0
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return Loss((each * real).sum(), real.sum().astype(jnp.float32)), Aux({})

    return objective


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_five_steps_of_sgd(tmp_path, name):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    make = SimpleNamespace(**runpy.run_path(str(HERE / "make_causal_goldens.py")))
    case = causal.CASES[name]
    base, shapes = make.torch_model(case)
    batch = batch_of(case)
    (tmp_path / "base").mkdir()
    model, params = reference.ours(case, reference.weights(shapes), tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"
        )
        theirs = peft.get_peft_model(base, settings).eval()
        with torch.no_grad():
            for i, parameter in enumerate(p for p in theirs.parameters() if p.requires_grad):
                parameter.add_(0.03 * (-1) ** i)
        theirs.save_pretrained(tmp_path / "peft")
    loaded = load_adapter(tmp_path / "peft", model, params)
    assert len(loaded.plan.sites) == (14 if name != "gpt2" else 8)
    tensors = {k: torch.from_numpy(np.asarray(v)).long() for k, v in batch.items()}
    apply = side_branch(model.apply, loaded.plan)
    with torch.no_grad():
        logits = theirs(**tensors).logits.numpy()
    real = batch["attention_mask"] == 1
    ours = np.asarray(jax.jit(apply)(loaded.params, batch))
    np.testing.assert_allclose(ours[real], logits[real], atol=2e-4)
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=RATE)
    expected = []
    for step in range(STEPS + 1):
        loss = theirs(**tensors).loss
        expected.append(float(loss.detach()))
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    tx = optax.sgd(RATE)
    trainable = select(loaded.params, [("adapter", 1.0)]).trainable
    state, fixed = init(loaded.params, trainable, tx, jax.random.key(0))
    step_of = compile_step(make_step(objective_of(apply), tx))
    losses = []
    for _ in range(STEPS + 1):
        state, metrics = step_of(state, fixed, batch)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-1] < losses[0]
    save_adapter(tmp_path / "ours", model, loaded.params, loaded.plan, trained=loaded.trained)
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert written["task_type"] == "CAUSAL_LM"
