"""What every decoder promises: causality, segments, padding, a cache that changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.adapters import (
    lora,
    on_quantized,
    plan_adapter,
    quantize_base,
    side_branch,
    with_adapter,
)
from sftjax.core import Aux, Loss, flatten
from sftjax.models import Head, build
from sftjax.models.causal_model import DECODERS
from sftjax.select import select
from sftjax.train import init, make_step

SIZES = {
    "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128,
    "head_dim": 16,
}  # fmt: skip
CONFIGS = {
    "llama": {},
    "gemma2": {"sliding_window": 4, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 16},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
TOKENS = 12


def config(family="llama", **more):
    return {**SIZES, "model_type": family, **CONFIGS.get(family, {}), **more}


def model_of(family="llama", kind="causal-lm", dtype=jnp.float32, **more):
    labels = ("a", "b", "c") if kind == "sequence" else ()
    return build(config(family, **more), Head(kind, labels), dtype=dtype)


def drawn(model):
    """Fresh params, by one compiled program instead of one for each operation."""
    return jax.jit(model.init)(jax.random.key(0))


def ids_of(rows=2, length=TOKENS):
    return np.random.default_rng(0).integers(3, 50, (rows, length), dtype=np.int32)


@pytest.fixture(scope="module", params=CONFIGS)
def decoder(request):
    model = model_of(request.param)
    return model, drawn(model), jax.jit(model.apply)


@pytest.mark.parametrize("family", DECODERS)
def test_shapes(family):
    for kind, expected in (("causal-lm", 50), ("sequence", 3), ("hidden", 64)):
        model = model_of(family, kind, jnp.bfloat16)
        out = jax.eval_shape(model.apply, model.shapes(), {"input_ids": ids_of()})
        assert out.shape == ((2, 3) if kind == "sequence" else (2, TOKENS, expected))
        assert out.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(model.shapes())} == {jnp.dtype("float32")}


def test_rows_of_segments_equal_rows_of_their_own(decoder):
    _, params, apply = decoder
    ids = ids_of()
    row = np.concatenate([ids[0, :5], ids[1, :4], [0, 0, 0]])[None]
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3], np.int32)
    packed = np.asarray(apply(params, {"input_ids": row, "segment_ids": segments}))[0]
    # The same lengths, so that one compilation serves both: what follows is not looked at.
    alone = np.asarray(apply(params, {"input_ids": ids}))
    np.testing.assert_allclose(packed[:5], alone[0, :5], atol=1e-5)
    np.testing.assert_allclose(packed[5:9], alone[1, :4], atol=1e-5)


def test_nothing_looks_ahead_and_padding_changes_nothing(decoder):
    _, params, apply = decoder
    ids = ids_of()
    whole = np.asarray(apply(params, {"input_ids": ids}))
    other = ids.copy()
    other[:, 7:] = 9
    np.testing.assert_array_equal(np.asarray(apply(params, {"input_ids": other}))[:, :7],
                                  whole[:, :7])  # fmt: skip
    left = np.pad(ids[:, :7], ((0, 0), (5, 0)))
    mask = np.pad(np.ones((2, 7), np.int32), ((0, 0), (5, 0)))
    padded = np.asarray(apply(params, {"input_ids": left, "attention_mask": mask}))
    np.testing.assert_allclose(padded[:, 5:], whole[:, :7], atol=1e-5)


@pytest.fixture(scope="module")
def speaking(decoder):
    start, step, *_ = decoder[0].decoder
    return jax.jit(start, static_argnums=2), jax.jit(step)


@pytest.mark.parametrize("side", ["left", "right"])
def test_token_by_token_equals_all_at_once(decoder, speaking, side):
    _, params, apply = decoder
    start, step = speaking
    ids = ids_of()
    whole = np.asarray(apply(params, {"input_ids": ids}))
    prompt, mask = ids[:, :6].copy(), np.ones((2, 6), np.int32)
    shift = np.array([0, 2])
    if side == "left":
        prompt[1], mask[1, :2] = np.concatenate([[0, 0], ids[1, :4]]), 0
    else:
        prompt[1, 4:], mask[1, 4:] = 0, 0
    scores, cache = start(params, {"input_ids": prompt, "attention_mask": mask}, 5)
    assert all(len(leaf) == 2 for leaf in jax.tree.leaves(cache))
    for at in range(5, 10):
        expected = np.stack([whole[row, at - shift[row]] for row in range(2)])
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        tokens = np.array([ids[row, at + 1 - shift[row]] for row in range(2)])
        scores, cache = step(params, tokens, cache)


def test_logits_are_hidden_times_words(decoder):
    model, params, apply = decoder
    batch = {"input_ids": ids_of()}
    hidden = np.asarray(jax.jit(model.hidden)(params, batch))
    logits = hidden @ np.asarray(model.words(params)).T * model.logit_scale
    if model.logit_softcap is not None:
        logits = model.logit_softcap * np.tanh(logits / model.logit_softcap)
    np.testing.assert_allclose(logits, apply(params, batch), atol=1e-5)


def test_a_sequence_head_reads_the_last_token():
    model = model_of(kind="sequence", pad_token_id=0)
    params, ids = drawn(model), ids_of()
    ids[1, 8:] = 0
    mask, apply = (ids != 0).astype(np.int32), jax.jit(model.apply)
    masked = apply(params, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(apply(params, {"input_ids": ids}), masked, atol=1e-6)
    changed = np.where(mask, ids, 7)
    same = apply(params, {"input_ids": changed, "attention_mask": mask})
    np.testing.assert_allclose(same, masked, atol=1e-6)
    with pytest.raises(ValueError, match="several examples"):
        model.apply(params, {"input_ids": ids, "segment_ids": mask})


def next_token(apply):
    def objective(params, state, batch, key):
        logits, labels = apply(params, batch)[:, :-1], batch["input_ids"][:, 1:]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return Loss(each.sum(), jnp.float32(each.size)), Aux({})

    return objective


def adapted(model, base, how="none"):
    """A step of an adapter beside a base, and its gradients."""
    model = dataclasses.replace(model, remat=how)
    plan = plan_adapter(base, lora(r=2))
    params = jax.jit(lambda base, key: with_adapter(base, plan, key))(base, jax.random.key(1))
    params["adapter"] = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.02, params["adapter"])
    return plan, params, next_token(side_branch(model.apply, plan))


def test_rematerialisation_changes_no_gradient():
    model = model_of(num_hidden_layers=1)
    base, batch = drawn(model), {"input_ids": ids_of()}
    found = {}
    for how in ("none", "full", "dots"):
        _, params, objective = adapted(model, base, how)

        def total(adapter, base, objective=objective):
            return objective({"adapter": adapter, "base": base}, {}, batch, None)[0].sum

        run = jax.jit(jax.grad(total))
        found[how] = run(params["adapter"], base)
    for how in ("full", "dots"):
        for one, other in zip(
            jax.tree.leaves(found[how]), jax.tree.leaves(found["none"]), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-5)
            assert np.abs(other).max() > 1e-4


@pytest.mark.parametrize(("platform", "attention"), [("tpu", "splash"), ("cuda", "xla")])
def test_a_step_of_training_lowers_for_accelerators(platform, attention):
    model = dataclasses.replace(model_of(dtype=jnp.bfloat16), attention=attention, remat="dots")
    shapes = model.shapes()
    plan = plan_adapter(shapes, lora(r=2))
    params = jax.eval_shape(lambda p, key: with_adapter(p, plan, key), shapes, jax.random.key(0))
    tx = optax.adamw(1e-3)
    chosen = select(params, [("adapter", 1.0)]).trainable
    state, fixed = jax.eval_shape(lambda p, key: init(p, chosen, tx, key), params,
                                  jax.random.key(0))  # fmt: skip
    batch = {
        "input_ids": jax.ShapeDtypeStruct((2, 128), jnp.int32),
        "segment_ids": jax.ShapeDtypeStruct((2, 128), jnp.int32),
    }
    step = jax.jit(make_step(next_token(side_branch(model.apply, plan)), tx))
    text = jax.export.export(step, platforms=[platform])(state, fixed, batch).mlir_module()
    assert ("tpu_custom_call" in text) == (attention == "splash")


def test_adapters_leave_the_output_words_alone():
    model = model_of()
    plan = plan_adapter(model.shapes(), lora(r=2))
    assert len(plan.sites) == 2 * 7
    assert "lm_head/kernel" in flatten(model.shapes())
    assert not [site for site, _ in plan.sites if site.path == "lm_head"]


def test_the_last_block_and_what_is_above_it_can_be_chosen():
    for family in CONFIGS:
        chosen = flatten(select(model_of(family).shapes(), [("last:1", 1.0)]).trainable)
        moving = {path for path, moves in chosen.items() if moves}
        top = {"gpt2": "transformer/ln_f/scale"}.get(family, "model/norm/scale")
        assert top in moving
        assert not [path for path in moving if "embed" in path or "/0/" in path]
        assert ("lm_head/kernel" in moving) == (family == "llama")


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_base_in_few_bits_is_near_and_trains(how):
    model = model_of(tie_word_embeddings=True, num_hidden_layers=1)
    base, batch = drawn(model), {"input_ids": ids_of()}
    few = quantize_base(base, how)
    exact = jax.jit(model.apply)(base, batch)
    coarse = jax.jit(on_quantized(model.apply))(few, batch)
    error = float(jnp.abs(exact - coarse).max() / jnp.abs(exact).max())
    assert 0 < error < (0.5 if how == "nf4" else 0.05)
    plan = plan_adapter(few, lora(r=2))
    params = jax.jit(lambda base, key: with_adapter(base, plan, key))(few, jax.random.key(1))
    tx = optax.sgd(0.5)
    trainable = select(params, [("adapter", 1.0)]).trainable
    state, fixed = init(params, trainable, tx, jax.random.key(0))
    step = jax.jit(make_step(next_token(side_branch(model.apply, plan)), tx))
    losses = []
    for _ in range(3):
        state, metrics = step(state, fixed, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("change", "message"), [
    ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type 'longrope'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "needs low_freq_factor"),
    ({"rope_scaling": {"type": "linear"}}, "needs a factor"),
    ({"hidden_act": "xielu"}, "unknown activation 'xielu'"),
    ({"head_dim": 15}, "turn pairs, and the head's width is 15"),
    ({"vocab_size": None}, "lacks vocab_size"),
    ({"pad_token_id": 50}, "outside the vocabulary"),
    ({"model_type": "qwen3", "layer_types": ["chunked_attention"] * 2}, "chunked_attention"),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, "tokens to come"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "1 entries for 2 layers"),
])  # fmt: skip
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build(config() | change, Head("causal-lm"))


def test_words_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="no 'pooled' head"):
        model_of(kind="pooled")
    with pytest.raises(ValueError, match="no 'causal-lm' head"):
        build({"model_type": "bert", **SIZES, "num_attention_heads": 4}, Head("causal-lm"))
    with pytest.raises(ValueError, match="remat='half' is unknown"):
        dataclasses.replace(model_of(), remat="half")
    with pytest.raises(ValueError, match="attention='flash' is unknown"):
        dataclasses.replace(model_of(), attention="flash")
    long = {"input_ids": np.ones((1, 129), np.int32)}
    with pytest.raises(ValueError, match=r"129 tokens .* at most 128"):
        jax.eval_shape(model_of("gpt2").apply, model_of("gpt2").shapes(), long)
    jax.eval_shape(model_of().apply, model_of().shapes(), long)  # rotary positions go on
