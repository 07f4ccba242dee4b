"""Packing changes what a batch holds and nothing else: logits, gradients, updates, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.data import Audit, Chat, ChatBatches
from sftjax.models import Head, build
from sftjax.objectives import next_token
from sftjax.train import compile_step, init, make_step, replicate, spread

CONFIG = {
    "model_type": "llama", "vocab_size": 61, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "initializer_range": 0.3, "tie_word_embeddings": True,
}  # fmt: skip
MODEL = build(CONFIG, Head("causal-lm"))
OBJECTIVE = next_token(MODEL.hidden, MODEL.words, chunk=32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def chat():
    rng = np.random.default_rng(0)
    lengths = [3, 9, 17, 5, 12, 7, 22, 4, 11, 6, 8, 15, 2, 10, 13, 19]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(1, 61, offsets[-1]).astype(np.int32)
    weights = rng.integers(0, 2, offsets[-1]).astype(np.float32)
    weights[offsets[:-1] + 1] = 1.0
    return Chat(ids, weights, offsets, np.arange(len(lengths)), 0, 32, Audit(), None)


def test_packed_logits_are_those_of_each_conversation_alone(params, chat):
    batches = ChatBatches(chat, 8, length=32, shuffle=False)
    batch = batches.at(0)
    assert batch["segment_ids"].max() > 1
    logits = jax.jit(MODEL.apply)(params, batch)
    alone = {}
    padded = jax.jit(MODEL.apply)
    for row in range(len(chat)):
        ids, _ = chat[row]
        solo = padded(params, {"input_ids": np.pad(ids, (0, 32 - len(ids)))[None]})
        alone[tuple(ids.tolist())] = np.asarray(solo)[0, : len(ids)]
    met = 0
    for i in np.flatnonzero(batch["valid"]):
        for number in range(1, batch["segment_ids"][i].max() + 1):
            (at,) = np.nonzero(batch["segment_ids"][i] == number)
            wanted = alone[tuple(batch["input_ids"][i, at].tolist())]
            np.testing.assert_allclose(logits[i, at], wanted, atol=1e-5)
            met += 1
    assert met == len(chat)


def updated(params, batches, accumulate=1, place=lambda x: x, at=lambda f: f):
    tx, every = optax.sgd(0.1), jax.tree.map(lambda _: True, params)
    state, fixed = place(init(params, every, tx, jax.random.key(0)))
    step = compile_step(make_step(OBJECTIVE, tx, accumulate=accumulate))
    return step(state, fixed, at(batches.at)(0))


def test_the_update_of_packed_rows_is_that_of_padded_ones(params, chat):
    """However rows are packed, cut into micro-batches, and dealt out over devices."""
    padded, metrics = updated(params, ChatBatches(chat, 16, packing=False))
    ways = {
        "packed": updated(params, ChatBatches(chat, 8, length=32)),
        "accumulated": updated(params, ChatBatches(chat, 8, length=32), 4),
        "sharded": updated(params, ChatBatches(chat, 8, length=32), 1, replicate, spread),
    }
    for name, (state, found) in ways.items():
        np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-5, err_msg=name)
        assert float(found["weight"]) == float(metrics["weight"])
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name),
            state.trainable,
            padded.trainable,
        )


def test_padding_changes_neither_loss_nor_gradient(params, chat):  # oracle O28
    def grads(length):
        batch = ChatBatches(chat, 8, length=length, shuffle=False).at(0)

        def mean(params):
            loss, _ = OBJECTIVE(params, {}, batch, None)
            return loss.sum / loss.weight

        return jax.jit(jax.value_and_grad(mean))(params)

    short, long = grads(32), grads(45)
    np.testing.assert_allclose(short[0], long[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), short[1], long[1])


def test_no_token_looks_across_a_border(params, chat):
    batch = ChatBatches(chat, 8, length=32, shuffle=False).at(0)
    row = int(np.argmax(batch["segment_ids"].max(1)))
    ids = jnp.asarray(batch["input_ids"][row : row + 1])
    one = {name: value[row : row + 1] for name, value in batch.items()}
    second = batch["segment_ids"][row] == 2

    @jax.jit
    def run(ids):
        return MODEL.apply(params, {**one, "input_ids": ids})[0]

    changed = run(jnp.where(second, (ids + 7) % 61, ids))
    moved = np.abs(np.asarray(changed - run(ids))).max(-1) > 0
    np.testing.assert_array_equal(moved & ~second, False)
    assert moved[second].any()
