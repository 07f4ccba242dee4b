"""Adapters beside decoders and encoder-decoders: what they cost, and on a base in few bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.adapters import (
    dequantize_tree,
    lora,
    plan_adapter,
    quantize_base,
    side_branch,
    tree_merge,
    with_adapter,
)
from sftjax.anchor import adamw
from sftjax.core import Aux, Loss, count, flatten, nbytes
from sftjax.models import Head, build
from sftjax.select import select
from sftjax.train import init, make_step

ROWS, TOKENS, WIDTH, INNER, RANK = 16, 128, 512, 1024, 8
LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": 1, "num_attention_heads": 8, "max_position_embeddings": TOKENS,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 64, "d_model": WIDTH, "d_kv": 64, "num_heads": 8,
    "d_ff": INNER, "num_layers": 1, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "model_type": "bart", "vocab_size": 64, "d_model": 64, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 32,
}  # fmt: skip
SMALL = {
    "llama": LLAMA | {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4},
    "t5": T5 | {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128},
    "bart": BART,
}  # fmt: skip


def model_of(config):
    return build(config, Head("causal-lm" if config["model_type"] == "llama" else "seq2seq-lm"))


def lowered(model, way):
    """Return a step that trains LoRA beside every linear layer, as it is given to the compiler."""
    plan = plan_adapter(model.shapes(), lora(r=RANK))
    params = jax.eval_shape(
        lambda p, key: with_adapter(p, plan, key), model.shapes(), jax.random.key(0)
    )
    chosen, tx = select(params, [("adapter", 1.0)]), adamw(1e-4)
    state, fixed = jax.eval_shape(
        lambda p, key: init(p, chosen.trainable, tx, key), params, jax.random.key(0)
    )
    ids = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
    batch = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.family == "t5" else {})
    apply = way(model.hidden, plan)

    def objective(params, model_state, batch, key):
        return Loss(jnp.square(apply(params, batch)).sum(), jnp.float32(1)), Aux({})

    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert all(path.startswith("adapter/") for path in flatten(state.trainable))
    assert nbytes(moments) == 2 * nbytes(state.trainable)
    return jax.jit(make_step(objective, tx)).lower(state, fixed, batch)


def closed_form(family):
    """FLOPs of the products: 2 a multiply-add; a frozen kernel has no gradient of its own."""
    tokens = ROWS * TOKENS
    square, feed = (WIDTH, WIDTH), [(WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)]
    attentions = 1 if family == "llama" else 3
    kernels = [square] * 4 * attentions + feed * (1 if family == "llama" else 2)
    base = sum(2 * inner * outer for inner, outer in kernels) * tokens
    low = sum(2 * RANK * (inner + outer) for inner, outer in kernels) * tokens
    attention = attentions * 2 * 2 * tokens * TOKENS * WIDTH
    # Queries, keys and values of the words themselves: nothing is asked for below them.
    lowest = 3 * (1 if family == "llama" else 2)
    return 2 * base + 3 * low + 3 * attention - lowest * (2 * WIDTH + 2 * RANK) * WIDTH * tokens


@pytest.mark.parametrize("config", [LLAMA, T5], ids=["llama", "t5"])
def test_beside_costs_the_closed_form_and_at_most_seven_tenths_of_merging(config):
    model = model_of(config)
    beside, merged = (
        lowered(model, way).cost_analysis()["flops"] for way in (side_branch, tree_merge)
    )
    assert 0.95 * closed_form(model.family) <= beside <= 1.05 * closed_form(model.family)
    assert beside <= 0.70 * merged


@pytest.mark.parametrize("family", SMALL)
def test_a_base_in_four_bits_and_the_gradients_beside_it(family):
    model = model_of(SMALL[family])
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.15 * draw.normal(size=leaf.shape) + (leaf.ndim == 1)).astype(np.float32),
        model.shapes(),
    )
    few = quantize_base(params, double=True)
    assert nbytes(few) <= 0.30 * 2 * count(params)
    plan = plan_adapter(params, lora(r=2))
    adapter = with_adapter(params, plan, jax.random.key(0))["adapter"]
    adapter = jax.tree.map(lambda leaf: leaf + 0.02, adapter)
    ids = draw.integers(2, 64, (2, 7)).astype(np.int32)
    batch = {"input_ids": ids} | ({} if family == "llama" else {"decoder_input_ids": ids[:, ::-1]})

    @jax.jit
    def gradients(adapter, base):
        def loss(adapter):
            logits = side_branch(model.apply, plan)({"adapter": adapter, "base": base}, batch)
            return -jax.nn.log_softmax(logits)[..., 3].mean(), logits

        return jax.grad(loss, has_aux=True)(adapter)

    (found, ours), (wanted, expected) = (
        gradients(adapter, base) for base in (few, dequantize_tree(few))
    )
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    for path, leaf in flatten(wanted).items():
        assert jnp.abs(leaf).max() > 0
        np.testing.assert_allclose(flatten(found)[path], leaf, atol=1e-5, err_msg=path)
