"""What a step of a real BERT costs, by the compiler's own count: a closed form, and little more."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from sftjax.anchor import adamw, anchor_of
from sftjax.core import count, flatten, nbytes
from sftjax.models import Head, build
from sftjax.objectives import classification
from sftjax.select import select
from sftjax.train import compile_step, init, make_step

ROWS, TOKENS, WIDTH, INNER, BLOCKS = 16, 128, 384, 1536, 6
MINILM = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}
NEW = ("classifier/kernel", "classifier/bias")


@pytest.fixture(scope="module")
def model():
    return build(MINILM, Head("sequence", ("negative", "positive")))


def compiled(model, rules, anchored=True):
    """The compiled step of a selection, with clipping, norm metric, decay and anchor."""
    shapes = model.shapes()
    chosen = select(shapes, rules, new=NEW)
    # Without an anchor nothing decays: the plain decay that it replaces would hide what it costs.
    tx = adamw(1e-4, strength=1.0, weight_decay=0.01 if anchored else 0.0)

    def start(params, key):
        anchor = None
        if anchored:
            anchor = anchor_of(params, chosen.trainable, new=NEW)
        return init(params, chosen.trainable, tx, key, anchor=anchor)

    state, fixed = jax.eval_shape(start, shapes, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
    labels = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "labels": labels}
    step = compile_step(make_step(classification(model.apply), tx))
    return step.lower(state, fixed, batch).compile(), state


def closed_form(moving):
    """FLOPs of the matrix products, 2 a multiply-add, when the top `moving` blocks move."""
    tokens = ROWS * TOKENS

    def block(looking):
        """Of a block that gives `looking` of the tokens: keys and values are of all tokens."""
        inputs = 2 * WIDTH**2 * (looking + 2 * tokens)
        rest = 2 * looking * (WIDTH**2 + 2 * WIDTH * INNER)
        return inputs, inputs + rest + 2 * 2 * looking * TOKENS * WIDTH

    # The classifier reads first tokens alone, so the last block gives no others.
    blocks = [block(tokens)] * (BLOCKS - 1) + [block(ROWS)]
    forward = sum(whole for _, whole in blocks)
    if not moving:
        return forward
    # Backward is twice the forward, but nothing flows below the lowest moving block's input.
    return forward + 2 * sum(whole for _, whole in blocks[-moving:]) - blocks[-moving][0]


@pytest.mark.parametrize(("rules", "moving"), [("head", 0), ("last:1", 1), ("last:2", 2)])
def test_compiled_flops_are_the_closed_form(model, rules, moving):
    program, _ = compiled(model, rules)
    flops = program.cost_analysis()["flops"]
    assert flops == pytest.approx(closed_form(moving), rel=0.05)


def test_optimizer_memory_is_two_moments_of_what_moves(model):
    _, state = compiled(model, "last:2")
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert nbytes(moments) == 2 * nbytes(state.trainable)
    assert isinstance(optax.tree.get(state.opt_state, "mu"), dict)


@pytest.fixture(scope="module")
def held_and_free(model):
    """Programs with and without the anchor, and the state of both; each compiled once."""

    @functools.cache
    def programs(rules):
        (held, state), (free, _) = (compiled(model, rules, anchored) for anchored in (True, False))
        return held, free, state

    return programs


@pytest.mark.parametrize("rules", ["last:2", "all"])
def test_l2_sp_adds_at_most_three_percent_of_flops(held_and_free, rules):
    """A few operations for each weight that moves, beside a thousand for the rows of a batch."""
    held, free, state = held_and_free(rules)
    before, after = free.cost_analysis()["flops"], held.cost_analysis()["flops"]
    assert after - before >= count(state.trainable), "what is counted does hold the pull"
    assert after <= 1.03 * before


@pytest.mark.parametrize("rules", ["head", "last:2"])
def test_the_anchor_is_an_argument_for_pretrained_leaves_that_move_and_no_others(
    held_and_free, rules
):
    """No byte for a frozen leaf or a fresh head: of the arguments that the program is given."""
    held, free, state = held_and_free(rules)
    extra = argument_bytes(held) - argument_bytes(free)
    moving = flatten(state.trainable)
    assert extra == nbytes({path: leaf for path, leaf in moving.items() if path not in NEW})
    assert 0 < extra < nbytes(state.trainable)


def argument_bytes(program):
    return program.memory_analysis().argument_size_in_bytes
