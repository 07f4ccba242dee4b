"""What encoder-decoders promise: packed equals solo, a step equals the whole, clear refusals."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import flatten, partition, unflatten
from sftjax.evaluate.generate import generate
from sftjax.evaluate.generate_settings import GenerationSettings
from sftjax.models import Head, build, shift_right
from sftjax.models.decoding import for_beams, take_beams
from sftjax.objectives import sequence_to_sequence
from sftjax.select import select
from sftjax.train import replicate, spread

T5 = {
    "model_type": "t5", "vocab_size": 50, "d_model": 64, "d_kv": 12, "d_ff": 96, "num_layers": 1,
    "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 50, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 64, "max_position_embeddings": 14, "decoder_start_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "t5": T5,
    "t5-gated": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    **{name: BART | {"model_type": name} for name in ("bart", "mbart", "pegasus", "marian")},
}
ROOM = 4


def model_of(name="t5", **fields):
    return build(CONFIGS[name] | fields, Head("seq2seq-lm"))


def rows(count, length, seed=0):
    return np.random.default_rng(seed).integers(5, 50, (count, length), dtype=np.int32)


@pytest.fixture(scope="module", params=["t5-gated", "bart", "marian"])
def made(request):
    model = model_of(request.param)
    rng = np.random.default_rng(0)
    # Norms lie around 1, and no bias is zero: that would hide a mistake.
    params = {
        path: (
            float("norm" in path and path.endswith("scale")) + 0.15 * rng.normal(size=leaf.shape)
        )
        for path, leaf in flatten(model.shapes()).items()
    }
    params = unflatten({path: jnp.asarray(leaf, jnp.float32) for path, leaf in params.items()})
    return model, params, jax.jit(model.apply)


def test_a_step_gives_what_the_whole_gives(made):
    model, params, apply = made
    targets = shift_right(jnp.asarray(rows(2, ROOM, 1)), model.decoder_start_token_id, 0)
    batch = {"input_ids": rows(2, 7), "attention_mask": np.ones((2, 7), np.int32)}
    batch["attention_mask"][1, 4:] = 0
    whole = apply(params, {**batch, "decoder_input_ids": targets})
    start, step = (jax.jit(model.decoder.start, static_argnums=2), jax.jit(model.decoder.step))
    logits, cache = start(params, batch, ROOM)
    for place in range(ROOM):
        np.testing.assert_allclose(logits, whole[:, place], atol=2e-5)
        if place + 1 < ROOM:
            logits, cache = step(params, targets[:, place + 1], cache)
    assert logits.dtype == whole.dtype == jnp.float32


def test_beams_share_what_was_read(made):
    model, params, _ = made
    batch = {"input_ids": rows(2, 7)}
    _, cache = jax.jit(model.decoder.start, static_argnums=2)(params, batch, ROOM)
    step = jax.jit(model.decoder.step)
    tokens = jnp.array([5, 6, 7, 8])
    many = for_beams(cache, 2)
    together, many = step(params, tokens, many)
    alone, one = step(params, tokens[::2], cache)
    np.testing.assert_allclose(together[::2], alone, atol=2e-5)
    held = sum(x.nbytes for x in jax.tree.leaves((many.own, many.source.blocks)))
    assert held == model.cache_bytes(rows=2, source_length=7, new_tokens=ROOM, beams=2)
    # The second beam now follows the first one's text, and the first the second's: their own keys
    # and values stay where they are.
    both = take_beams(many, jnp.array([1, 0, 3, 2]))
    assert all(map(np.array_equal, jax.tree.leaves(both.own), jax.tree.leaves(many.own)))
    for next_tokens in (jnp.array([9, 10, 11, 12]), jnp.array([3, 4, 5, 6])):
        together, both = step(params, next_tokens, both)
        alone, one = step(params, next_tokens[1::2], one)
        np.testing.assert_allclose(together[1::2], alone, atol=2e-5)


def test_packed_equals_solo(made):
    _, params, apply = made
    source, target = rows(2, 7), rows(2, 5, 1)
    packed = {
        "input_ids": np.concatenate([source[0], source[1, :4]])[None],
        "decoder_input_ids": np.concatenate([target[0, :3], target[1]])[None],
        "segment_ids": np.array([[1] * 7 + [2] * 4]),
        "decoder_segment_ids": np.array([[1] * 3 + [2] * 5]),
    }
    out = apply(params, packed)[0]
    for part, ids, targets in (
        (out[:3], source[:1], target[:1, :3]),
        (out[3:], source[1:, :4], target[1:]),
    ):
        alone = apply(params, {"input_ids": ids, "decoder_input_ids": targets})[0]
        np.testing.assert_allclose(part, alone, atol=2e-5)


def test_eight_devices_give_what_one_gives(made):
    model, params, _ = made
    ids, labels = rows(8, 6), rows(8, ROOM, 1)
    batch = {
        "input_ids": ids, "decoder_input_ids": shift_right(labels, model.decoder_start_token_id, 0),
        "labels": labels, "loss_weights": (labels < 40).astype(np.float32),
    }  # fmt: skip
    objective = sequence_to_sequence(model.apply, label_smoothing=0.1)
    run = jax.jit(jax.value_and_grad(lambda p, b: objective(p, {}, b, None)[0].mean))
    one, gradient = run(params, batch)
    assert jax.device_count() == 8
    eight, spread_gradient = run(replicate(params), spread(lambda step: batch)(0))
    assert float(eight) == pytest.approx(float(one), rel=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (gradient, spread_gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_hidden_states_and_words_make_the_logits(made):
    model, params, apply = made
    batch = {"input_ids": rows(2, 5), "decoder_input_ids": rows(2, 3, 1)}
    logits = jax.jit(model.hidden)(params, batch) @ model.words(params).T
    bias = model.final_bias(params)
    assert (bias is None) == model.family.startswith("t5")
    np.testing.assert_allclose(
        logits + (0 if bias is None else bias), apply(params, batch), atol=2e-5
    )


def test_dropout_needs_a_key(made):
    _, params, apply = made
    batch = {"input_ids": rows(2, 5), "decoder_input_ids": rows(2, 3, 1)}
    quiet, loud = apply(params, batch), apply(params, batch, jax.random.key(0))
    assert np.abs(quiet - loud).max() > 1e-3
    assert np.array_equal(quiet, apply(params, batch))


def test_the_last_blocks_of_both_stacks_move():
    shapes = model_of("t5-gated", num_layers=2).shapes()
    moving = [path for path, on in flatten(select(shapes, "last:1").trainable).items() if on]
    tops = {"/".join(path.split("/")[:3]) for path in moving}
    assert {"encoder/block/1", "decoder/block/1", "lm_head/kernel"} <= tops
    assert not any(top.startswith(("encoder/block/0", "shared")) for top in tops)


def test_what_is_trained_and_generated_lowers_for_accelerators():
    model = model_of()
    batch = {"input_ids": rows(2, 5), "decoder_input_ids": rows(2, 3, 1)}
    moving, still = partition(model.shapes(), select(model.shapes(), "last:1").trainable)
    tx = optax.adamw(1e-3)

    def loss(moving, still, batch):
        whole = jax.tree.map(
            lambda a, b: b if a is None else a, moving, still, is_leaf=lambda x: x is None
        )
        return jnp.square(model.apply(whole, batch)).mean()

    def step(moving, state, still, batch):
        updates, state = tx.update(jax.grad(loss)(moving, still, batch), state, moving)
        return optax.apply_updates(moving, updates), state

    state = jax.eval_shape(tx.init, moving)
    export = jax.export.export(jax.jit(step), platforms=("tpu", "cuda"))
    assert export(moving, state, still, batch).platforms == ("tpu", "cuda")

    for beams in (1, 3):
        settings = GenerationSettings(max_new_tokens=3, num_beams=beams, eos_token_id=(1,))
        write = jax.jit(partial(generate, model.decoder, settings=settings))
        export = jax.export.export(write, platforms=("tpu", "cuda"))
        out = export(model.shapes(), {"input_ids": batch["input_ids"]}).out_avals
        assert out[0].shape == (2, 3)


@pytest.mark.parametrize(("change", "message"), [
    ({"decoder_input_ids": None}, "has no decoder_input_ids"),
    ({"decoder_input_ids": rows(1, 3)}, "2 sources and 1 targets"),
    ({"segment_ids": np.ones((2, 5), np.int32)}, "segment_ids alone"),
    ({"attention_mask": np.ones((2, 3), np.int32)}, "attention_mask has shape"),
    ({"input_ids": np.ones((2, 5), np.float32)}, "input_ids must hold integers"),
    ({"decoder_input_ids": rows(2, 15)}, "15 tokens a row, .* at most 14"),
])  # fmt: skip
def test_a_batch_that_cannot_be_read_is_refused(change, message):
    model = model_of("bart")
    batch = {"input_ids": rows(2, 5), "decoder_input_ids": rows(2, 3)} | change
    with pytest.raises(ValueError, match=message):
        model.apply(model.shapes(), batch)


@pytest.mark.parametrize(("name", "change", "message"), [
    ("t5", {"feed_forward_proj": "gated-nonsense"}, "feed_forward_proj 'gated-nonsense'"),
    ("t5", {"d_kv": None}, "lacks d_kv"),
    ("t5", {"relative_attention_num_buckets": 7}, "7 relative_attention_num_buckets"),
    ("bart", {"decoder_attention_heads": 3}, "not a multiple of decoder_attention_heads 3"),
    ("bart", {"activation_function": "nonsense"}, "unknown activation 'nonsense'"),
    ("marian", {"share_encoder_decoder_embeddings": False}, "two vocabularies"),
])  # fmt: skip
def test_a_config_that_cannot_be_built_is_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        model_of(name, **change)


def test_other_heads_and_a_missing_start_token_are_refused():
    with pytest.raises(ValueError, match="head 'seq2seq-lm' and no other"):
        build(T5, Head("hidden"))
    model = model_of(decoder_start_token_id=None)
    with pytest.raises(ValueError, match="no decoder_start_token_id"):
        _ = model.decoder_start_token_id
