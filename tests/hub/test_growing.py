"""New words: they change nothing old, train beside an adapter, and are saved as PEFT has them."""

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

from sftjax.adapters import lora, plan_adapter, quantize_base, side_branch, with_adapter
from sftjax.core import Aux, combine, flatten
from sftjax.hub import grow_words, load_adapter, save_adapter
from sftjax.models import Head, build
from sftjax.objectives import sequence_cross_entropy
from sftjax.select import select
from sftjax.train import init, make_step

PARITY = pathlib.Path(__file__).parents[1] / "parity"
causal = SimpleNamespace(**runpy.run_path(str(PARITY / "causal_reference.py")))
MORE = 3
TABLES = ("model/embed_tokens/embedding", "lm_head/kernel")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    case = causal.llama(num_hidden_layers=1)
    shapes = {
        path: tuple(leaf.shape)
        for path, leaf in flatten(build(case.config, Head("causal-lm")).shapes()).items()
    }
    tensors = {
        path.replace("/kernel", ".weight").replace("/scale", ".weight")
        .replace("/embedding", ".weight").replace("/", "."):
        shape[::-1] if path.endswith("kernel") else shape
        for path, shape in shapes.items()
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    return *causal.reference.ours(case, causal.reference.weights(tensors), folder), folder


@pytest.fixture(scope="module")
def trained(base):
    """A LoRA and the grown tables after three steps on rows of new words."""
    model, params, _ = base
    grown = grow_words(model, params, MORE)
    plan = plan_adapter(grown.params, lora(r=2), target_modules=["q_proj", "down_proj"])
    joined = with_adapter(grown.params, plan, jax.random.key(0))
    apply = side_branch(grown.model.apply, plan)
    rules = [("adapter", 1.0), *((f"base/{path}", 1.0) for path in grown.changed)]
    ids = np.array([[5, 50, 51, 7, 52], [52, 8, 50, 9, 51]], np.int32)

    def objective(params, state, batch, key):
        logits = apply(params, batch)[:, :-1]
        return sequence_cross_entropy(logits, ids[:, 1:], jnp.ones((2, 4))), Aux({})

    tx = optax.sgd(0.3)
    state, fixed = init(joined, select(joined, rules).trainable, tx, jax.random.key(0))
    step = jax.jit(make_step(objective, tx))
    losses = []
    for _ in range(3):
        state, metrics = step(state, fixed, {"input_ids": ids})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    after = combine(state.trainable, fixed.frozen)
    batch = {"input_ids": ids}
    return grown, plan, after, batch, np.asarray(jax.jit(apply)(after, batch))


def test_what_it_knew_it_says_as_before(base):
    model, params, _ = base
    grown = grow_words(model, params, MORE)
    assert set(grown.changed) == set(TABLES)
    batch = {"input_ids": np.arange(10, dtype=np.int32)[None]}
    before, after = (
        jax.jit(one.apply)(weights, batch) for one, weights in ((model, params), grown[:2])
    )
    np.testing.assert_allclose(after[..., :50], before, atol=1e-6)
    mean = np.broadcast_to(before.mean(-1, keepdims=True), (1, 10, MORE))
    np.testing.assert_allclose(after[..., 50:], mean, atol=1e-5)
    old, new = (one["model"]["embed_tokens"]["embedding"] for one in (params, grown.params))
    np.testing.assert_array_equal(new[:50], old)
    np.testing.assert_allclose(new[50:], np.broadcast_to(old.mean(0), (MORE, 64)), atol=1e-6)
    with pytest.raises(ValueError, match="0 new words; at least 1"):
        grow_words(model, params, 0)
    with pytest.raises(ValueError, match="a quantized base cannot grow"):
        grow_words(model, quantize_base(params), 2)


def test_saved_whole_beside_the_adapter_and_opened_beside_a_base_as_large(base, trained, tmp_path):
    model, params, _ = base
    grown, plan, after, batch, logits = trained
    folder = save_adapter(tmp_path / "a", grown.model, after, plan, trained=grown.changed)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert set(config["modules_to_save"]) == {"model.embed_tokens", "lm_head"}
    again = load_adapter(folder, *grow_words(model, params, MORE)[:2])
    assert set(again.trained) == set(TABLES)
    found = jax.jit(side_branch(grown.model.apply, again.plan))(again.params, batch)
    np.testing.assert_allclose(found, logits, atol=1e-6)
    with pytest.raises(ValueError, match=r"grown by as many words \(grow_words\)"):
        load_adapter(folder, model, params)


@pytest.mark.torch
def test_peft_opens_it(base, trained, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    grown, plan, after, batch, logits = trained
    save_adapter(tmp_path / "a", grown.model, after, plan, trained=grown.changed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.LlamaForCausalLM.from_pretrained(base[2])
        theirs.resize_token_embeddings(50 + MORE)
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval()
    with torch.no_grad():
        found = theirs(torch.from_numpy(batch["input_ids"]).long()).logits.numpy()
    np.testing.assert_allclose(found, logits, atol=2e-4)
