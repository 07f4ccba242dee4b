"""What every family and head promises, and how bad configs, heads and batches are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.core import flatten
from sftjax.models import Head, build
from sftjax.models.head import ENCODER_KINDS
from sftjax.models.text_encoder import ENCODERS

WIDTH, TOKENS, VOCABULARY = 64, 10, 50
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 1,
    "num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 14,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 1, "n_heads": 4, "hidden_dim": 96,
    "max_position_embeddings": 14,
}  # fmt: skip
LABELS = ("a", "b", "c")


def config(family, **fields):
    return {"model_type": family, **(DISTILBERT if family == "distilbert" else SIZES), **fields}


def model_of(family="bert", kind="hidden", dtype=jnp.float32, **fields):
    labels = LABELS if kind in ("sequence", "token") else ()
    return build(config(family, **fields), Head(kind, labels), dtype=dtype)


def batch(rows=2, **more):
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (rows, TOKENS), dtype=np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **more}


@pytest.mark.parametrize("kind", ENCODER_KINDS)
@pytest.mark.parametrize("family", ENCODERS)
def test_shapes(family, kind):
    if family == "distilbert" and kind == "pooled":
        with pytest.raises(ValueError, match="distilbert has no pooler"):
            model_of(family, kind)
        return
    expected = {
        "sequence": (2, 3), "token": (2, TOKENS, 3), "masked-lm": (2, TOKENS, VOCABULARY),
        "pooled": (2, WIDTH), "first": (2, WIDTH), "mean": (2, WIDTH),
        "hidden": (2, TOKENS, WIDTH),
    }[kind]  # fmt: skip
    for dtype in (jnp.float32, jnp.bfloat16):
        model = model_of(family, kind, dtype)
        out = jax.eval_shape(model.apply, model.shapes(), batch())
        assert (out.shape, out.dtype) == (expected, jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(model.shapes())} == {jnp.dtype("float32")}
        trunks = {path.split("/")[0] for path in flatten(model.shapes())}
        assert ("roberta" if "roberta" in family else family) in trunks


@pytest.fixture(scope="module", params=ENCODERS)
def hidden(request):
    model = model_of(request.param)
    return model, model.init(jax.random.key(0)), jax.jit(model.apply)


def test_init_has_the_promised_shapes(hidden):
    model, params, _ = hidden
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), model.shapes()
    )


def test_packed_equals_solo(hidden):
    _, params, apply = hidden
    solo = batch(2)
    first, second = solo["input_ids"][0][:6], solo["input_ids"][1][:4]
    packed = {
        "input_ids": np.concatenate([first, second])[None],
        "attention_mask": np.ones((1, TOKENS), np.int32),
        "segment_ids": np.array([[1] * 6 + [2] * 4], np.int32),
    }
    out = np.asarray(apply(params, packed))[0]
    for part, expected in ((out[:6], first), (out[6:], second)):
        alone = np.asarray(apply(params, {"input_ids": expected[None]}))[0]
        np.testing.assert_allclose(part, alone, atol=2e-6)
    mixed = np.asarray(apply(params, {k: v for k, v in packed.items() if k != "segment_ids"}))[0]
    assert np.abs(mixed - out).max() > 1e-3


def test_padding_changes_nothing(hidden):
    model, params, apply = hidden
    whole = batch()
    padding = model.config.get("pad_token_id", 1 if "roberta" in model.family else 0)
    mask = whole["attention_mask"].copy()
    mask[:, 6:] = 0
    short = {name: array[:, :6] for name, array in whole.items()}
    ids = np.where(mask, whole["input_ids"], padding).astype(np.int32)
    out = np.asarray(apply(params, {"input_ids": ids, "attention_mask": mask}))
    np.testing.assert_allclose(out[:, :6], np.asarray(apply(params, short)), atol=2e-6)


def test_explicit_positions_are_taken(hidden):
    model, params, apply = hidden
    first = 2 if "roberta" in model.family else 0
    places = np.broadcast_to(np.arange(TOKENS, dtype=np.int32) + first, (2, TOKENS))
    usual = np.asarray(apply(params, batch()))
    np.testing.assert_allclose(apply(params, batch(position_ids=places)), usual, atol=1e-6)
    turned = apply(params, batch(position_ids=places[:, ::-1]))
    assert np.abs(np.asarray(turned) - usual).max() > 1e-3


def test_dropout_needs_a_key_and_each_place_has_its_own():
    model = model_of(num_hidden_layers=2, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    params = model.init(jax.random.key(0))
    quiet = model.apply(params, batch())
    assert np.array_equal(quiet, model.apply(params, batch()))
    one = model.apply(params, batch(), jax.random.key(1))
    assert np.array_equal(one, model.apply(params, batch(), jax.random.key(1)))
    assert not np.allclose(one, model.apply(params, batch(), jax.random.key(2)))
    assert not np.allclose(one, quiet)
    # Two layers that are equal but for their place: equal masks would leave the states tied.
    for a, b in zip(
        *(jax.tree.leaves(params["bert"]["encoder"]["layer"][i]) for i in "01"), strict=True
    ):
        assert a.shape == b.shape
    seen = []

    def spy(next_call, args, kwargs, context):
        y = next_call(*args, **kwargs)
        if type(context.module).__name__ == "Dropout" and y.ndim == 2:
            seen.append(np.asarray(y == 0))
        return y

    with nn.intercept_methods(spy):
        model.apply(params, batch(), jax.random.key(1))
    masks = [mask for mask in seen if mask.shape == seen[0].shape]
    assert len(masks) == 5  # embeddings and two places in each layer
    assert all(not np.array_equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def test_computation_in_bfloat16_is_near():
    exact, coarse = model_of(kind="sequence"), model_of(kind="sequence", dtype=jnp.bfloat16)
    params = exact.init(jax.random.key(0))
    a, b = exact.apply(params, batch()), coarse.apply(params, batch())
    assert 0 < np.abs(np.asarray(a) - np.asarray(b)).max() < 0.02


def test_types_absent_are_zeros_and_none_are_needed():
    model = model_of()
    params = model.init(jax.random.key(0))
    zeros = batch(token_type_ids=np.zeros((2, TOKENS), np.int32))
    assert np.array_equal(model.apply(params, batch()), model.apply(params, zeros))
    bare = model_of(type_vocab_size=0)
    assert not [path for path in flatten(bare.shapes()) if "token_type" in path]


def test_sinusoidal_positions_start_as_such():
    model = model_of("distilbert", sinusoidal_pos_embds=True)
    table = model.init(jax.random.key(0))["distilbert"]["embeddings"]["position_embeddings"]
    np.testing.assert_allclose((np.asarray(table["embedding"]) ** 2).sum(1), WIDTH / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "longest"), [("bert", 14), ("roberta", 12), ("xlm-roberta", 12), ("distilbert", 14)]
)
def test_a_row_too_long_is_refused_with_both_numbers(family, longest):
    model = model_of(family)
    assert model.max_length == longest
    long = {"input_ids": np.ones((1, longest + 1), np.int32)}
    with pytest.raises(ValueError, match=rf"{longest + 1} tokens .* at most {longest}"):
        jax.eval_shape(model.apply, model.shapes(), long)
    fits = {"input_ids": np.full((1, longest), 5, np.int32)}
    assert np.isfinite(model.apply(model.init(jax.random.key(0)), fits)).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "t6"}, "model_type 't6' is not .* bert, roberta, xlm-roberta, distilbert"),
    ({"model_type": None}, "model_type None"),
    ({"hidden_size": None, "vocab_size": None}, "lacks vocab_size, hidden_size"),
    ({"hidden_size": 30}, "30 is not a multiple of the 4 attention heads"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
    ({"hidden_act": "prelu"}, "unknown activation 'prelu'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ({"is_decoder": True}, "is_decoder=True is not supported"),
    ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"hidden_dropout_prob": 1.0}, "hidden_dropout must be in"),
    ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob must be a number, not '0.1'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
    ({"pad_token_id": 50}, "pad_token_id 50 lies outside the vocabulary of 50"),
    ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
    ({"type_vocab_size": -1}, "type_vocab_size must not be negative"),
])  # fmt: skip
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build(config("bert") | change, Head("hidden"))


def test_what_does_not_change_the_maths_is_ignored():
    odd = {"chunk_size_feed_forward": 4, "use_cache": False, "field_of_the_future": [1]}
    model, plain = model_of(**odd), model_of()
    params = plain.init(jax.random.key(0))
    assert model.config["field_of_the_future"] == [1]
    assert np.array_equal(model.apply(params, batch()), plain.apply(params, batch()))


def test_distilbert_may_use_the_usual_names():
    usual = {
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
    }
    renamed = {usual.get(name, name): value for name, value in config("distilbert").items()}
    assert build(renamed, Head("hidden")).shapes() == model_of("distilbert").shapes()


@pytest.mark.parametrize(("head", "message"), [
    (Head("nonsense"), "unknown head 'nonsense'"),
    (Head("sequence"), "needs labels"),
    (Head("sequence", ("a",)), "nothing to tell apart"),
    (Head("sequence", ("a", "a")), "stand twice"),
    (Head("sequence", ("a", "b"), "regression"), "one label, not 2"),
    (Head("token", ("a", "b"), "multi_label_classification"), "for whole rows"),
    (Head("sequence", ("a", "b"), "nonsense"), "unknown problem_type"),
    (Head("hidden", ("a", "b")), "has no classes"),
])  # fmt: skip
def test_a_head_that_contradicts_itself_is_refused(head, message):
    with pytest.raises(ValueError, match=message):
        build(config("bert"), head)


@pytest.mark.parametrize(("change", "message"), [
    ({"input_ids": None}, "no input_ids"),
    ({"input_ids": np.ones(4, np.int32)}, r"shape \(4,\); a batch is \(rows, tokens\)"),
    ({"attention_mask": np.ones((2, 3), np.int32)}, r"attention_mask has shape \(2, 3\)"),
    ({"token_type_ids": np.ones((2, TOKENS), np.float32)}, "token_type_ids must hold integers"),
])  # fmt: skip
def test_a_batch_that_cannot_be_read_is_refused(change, message):
    model = model_of()
    with pytest.raises(ValueError, match=message):
        model.apply(model.shapes(), batch() | change)


@pytest.mark.parametrize("kind", ["sequence", "pooled", "first", "mean"])
def test_packed_rows_need_a_head_for_each_token(kind):
    model = model_of(kind=kind)
    with pytest.raises(ValueError, match="several examples"):
        model.apply(model.shapes(), batch(segment_ids=np.ones((2, TOKENS), np.int32)))
