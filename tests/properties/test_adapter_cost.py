"""What a LoRA step of a real BERT costs, by the compiler's own count, is the closed form."""

import jax
import jax.numpy as jnp
import pytest

from sftjax.adapters import lora, plan_adapter, side_branch, tree_merge, with_adapter
from sftjax.anchor import adamw
from sftjax.core import count, flatten, nbytes
from sftjax.models import Head, build
from sftjax.objectives import token_classification
from sftjax.select import select
from sftjax.train import compile_step, init, make_step

ROWS, TOKENS, WIDTH, INNER, BLOCKS, RANK = 16, 128, 768, 3072, 2, 8
BERT = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="module")
def model():
    # Gives a vector for each token: what a head of first tokens saves is another test's.
    return build(BERT, Head("token", ("O", "X")))


def compiled(model, way):
    shapes = model.shapes()
    plan = plan_adapter(
        shapes, lora(r=RANK), target_modules=[
            "query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense",
        ],
    )  # fmt: skip
    params = jax.eval_shape(lambda p, key: with_adapter(p, plan, key), shapes, jax.random.key(0))
    chosen = select(params, [("adapter", 1.0)])
    tx = adamw(1e-4)
    state, fixed = jax.eval_shape(
        lambda p, key: init(p, chosen.trainable, tx, key), params, jax.random.key(0)
    )
    ids = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "labels": ids}
    objective = token_classification(way(model.apply, plan))
    return compile_step(make_step(objective, tx)).lower(state, fixed, batch).compile(), state


def closed_form():
    """FLOPs of the products: 2 a multiply-add; a frozen kernel has no gradient of its own."""
    tokens = ROWS * TOKENS
    kernels = [(WIDTH, WIDTH)] * 4 + [(WIDTH, INNER), (INNER, WIDTH)]
    base = sum(2 * inner * outer for inner, outer in kernels) * tokens
    low = sum(2 * RANK * (inner + outer) for inner, outer in kernels) * tokens
    attention = 2 * 2 * tokens * TOKENS * WIDTH
    # Forward; backward to the inputs; of factors, backward to themselves as well.
    whole = BLOCKS * (2 * base + 3 * low + 3 * attention)
    # Below the first block nothing is asked for: queries, keys and values stop at their factors.
    return whole - 3 * (2 * WIDTH * WIDTH + 2 * RANK * WIDTH) * tokens


@pytest.fixture(scope="module")
def steps(model):
    return {way.__name__: compiled(model, way) for way in (side_branch, tree_merge)}


def test_beside_costs_the_closed_form_and_at_most_seven_tenths_of_merging(steps):
    beside, merged = (
        steps[way][0].cost_analysis()["flops"] for way in ("side_branch", "tree_merge")
    )
    assert beside <= 1.05 * closed_form()
    assert beside >= 0.95 * closed_form()
    assert beside <= 0.70 * merged


def test_only_the_adapter_has_moments(steps):
    _, state = steps["side_branch"]
    assert all(path.startswith("adapter/") for path in flatten(state.trainable))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert nbytes(moments) == 2 * nbytes(state.trainable)
    assert count(state.trainable) == BLOCKS * RANK * (4 * 2 * WIDTH + 2 * (WIDTH + INNER))


def test_no_gradient_or_product_of_a_kernels_size_is_made(steps):
    kernels = (f"f32[{WIDTH},{INNER}]", f"f32[{INNER},{WIDTH}]")

    def made(way):
        text = steps[way][0].as_text()
        lines = [line for line in text.splitlines() if " = " in line and "parameter(" not in line]
        return [line for line in lines if line.split(" = ")[1].startswith(kernels)]

    assert made("tree_merge")
    assert not [line for line in made("side_branch") if " dot(" in line or "fusion(" in line]
