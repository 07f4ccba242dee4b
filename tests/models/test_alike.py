"""Blocks that are alike are traced once, and every number is what it was."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, __file__.rpartition("/")[0])
from family_steps import CONFIGS, KINDS

from sftjax.adapters import ia3, lora, plan_adapter, quantize_base, side_branch, with_adapter
from sftjax.core import flatten
from sftjax.core.beside import Outside, beside
from sftjax.models import Alike, Head, build, encoder_apart
from sftjax.models.dropout import Dropout
from sftjax.models.shapes import fresh

DEPTH = {
    "bert": {"num_hidden_layers": 3},
    "distilbert": {"n_layers": 3},
    "llama": {"num_hidden_layers": 3, "attention_dropout": 0.1},
    "gemma2": {"num_hidden_layers": 4},
    "gpt2": {"n_layer": 3},
    "t5": {"num_layers": 3},
    "bart": {"encoder_layers": 2, "decoder_layers": 3},
    "convnext": {"depths": [3], "drop_path_rate": 0.0},
    "vit": {"num_hidden_layers": 3, "hidden_dropout_prob": 0.1},
    "dinov2": {"num_hidden_layers": 3, "drop_path_rate": 0.1},
}
TRACED = {"bert": 2, "gemma2": 2, "t5": 4, "bart": 2, "distilbert": 2}
"""How many kinds of block there are: the last one of an encoder whose first token is read looks
from there alone, every other layer of Gemma 2 has a window, the first ones of T5 hold positions."""


def model_of(family):
    kind = KINDS.get(family, "image")
    labels = ("a", "b") if kind in ("sequence", "image") else ()
    return build({"model_type": family, **CONFIGS[family], **DEPTH[family]}, Head(kind, labels))


def batch_of(model):
    draw = np.random.default_rng(0)
    if model.head.kind == "image":
        return {"pixel_values": draw.normal(size=(2, 16, 16, 3)).astype(np.float32)}
    ids = draw.integers(3, 60, (2, 8), dtype=np.int32)
    more = {"decoder_input_ids": ids[:, :5]} if model.head.kind == "seq2seq-lm" else {}
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **more}


def one_by_one(function):
    """The same function while somebody looks on, who would miss blocks that are not called."""

    def run(*args):
        with nn.intercept_methods(lambda run, args, kwargs, context: run(*args, **kwargs)):
            return function(*args)

    return run


def calls(program, found):
    """The functions of a program that are blocks, by their names."""
    for equation in program.eqns:
        inner = equation.params.get("jaxpr")
        if inner is None or equation.primitive.name not in ("jit", "pjit"):
            continue
        if equation.params["name"] in ("Layer", "Block", "ScaledLayer"):
            found.append(inner)
        calls(inner.jaxpr, found)
    return found


def agree(one, other):
    """Every leaf to the rounding of sums that another order adds up."""
    for path, leaf in flatten(one).items():
        scale = max(float(jnp.abs(leaf).max()), 1e-3)
        np.testing.assert_allclose(leaf, flatten(other)[path], atol=2e-6 * scale, err_msg=path)


@pytest.mark.parametrize("family", DEPTH)
def test_the_output_and_its_gradient_are_those_of_blocks_traced_one_by_one(family):
    model = model_of(family)
    params, batch = jax.jit(model.init)(jax.random.key(0)), batch_of(model)

    def loss(params, key):
        return jnp.square(model.apply(params, batch, key)).mean()

    both = jax.value_and_grad(loss)
    key = jax.random.key(1)
    found = calls(jax.make_jaxpr(loss)(params, key).jaxpr, [])
    blocks = sum(value if isinstance(value, int) else 0 for value in DEPTH[family].values())
    assert len(found) == {"t5": 6, "convnext": 3}.get(family, blocks)
    assert len({id(one) for one in found}) == TRACED.get(family, 1)
    assert not calls(jax.make_jaxpr(one_by_one(loss))(params, key).jaxpr, [])
    value, gradient = jax.jit(both)(params, key)
    expected, other = jax.jit(one_by_one(both))(params, key)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    agree(gradient, other)


def test_a_place_in_a_model_draws_what_it_drew():
    model = model_of("bert")
    params, batch = jax.jit(model.init)(jax.random.key(0)), batch_of(model)
    once, alone = jax.jit(model.apply), jax.jit(one_by_one(model.apply))
    drawn = [once(params, batch, jax.random.key(seed)) for seed in (1, 2)]
    for seed, output in zip((1, 2), drawn, strict=True):
        np.testing.assert_allclose(alone(params, batch, jax.random.key(seed)), output, atol=1e-6)
    assert not np.allclose(*drawn, atol=1e-4)


def test_adapters_of_several_kinds_find_their_blocks():
    model = model_of("bert")
    params, batch = jax.jit(model.init)(jax.random.key(0)), batch_of(model)
    query = {"target_modules": ["query"]}
    plan = (
        plan_adapter(params, lora(r=2, lora_dropout=0.5), **query, layers_to_transform=[0, 1])
        + plan_adapter(params, lora(r=2, lora_alpha=8), **query, layers_to_transform=[2])
        + plan_adapter(params, ia3(), target_modules=["key"], layers_to_transform=[1])
    )
    joined = with_adapter(params, plan, jax.random.key(2))
    joined["adapter"] = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        joined["adapter"],
    )
    apply = side_branch(model.apply, plan)
    for key in (None, jax.random.key(3)):
        np.testing.assert_allclose(
            jax.jit(apply)(joined, batch, key),
            jax.jit(one_by_one(apply))(joined, batch, key),
            rtol=1e-5, atol=1e-6,
        )  # fmt: skip


def test_quantized_blocks_are_alike_too():
    model = model_of("llama")
    params, batch = jax.jit(model.init)(jax.random.key(0)), batch_of(model)
    plan = plan_adapter(params, lora(r=2))
    joined = with_adapter(quantize_base(params, "int8"), plan, jax.random.key(2))
    apply = side_branch(model.apply, plan)
    found = calls(jax.make_jaxpr(apply)(joined, batch).jaxpr, [])
    assert (len(found), len({id(one) for one in found})) == (3, 1)
    np.testing.assert_allclose(
        jax.jit(apply)(joined, batch), jax.jit(one_by_one(apply))(joined, batch), rtol=1e-5,
        atol=1e-6,
    )  # fmt: skip


def test_an_adapted_module_that_is_not_called_is_named():
    model = model_of("bert")
    plan = plan_adapter(model.shapes(), lora(r=2), target_modules=["query"])
    key = jax.random.key(0)
    joined = jax.eval_shape(lambda p, key: with_adapter(p, plan, key), model.shapes(), key)

    def half(params, batch, key=None):
        return build(
            {"model_type": "bert", **CONFIGS["bert"], "num_hidden_layers": 2}, model.head
        ).apply(params, batch, key)

    with pytest.raises(ValueError, match=r"1 of 3 adapted modules were not called, .*layer/2/"):
        jax.eval_shape(side_branch(half, plan), joined, batch_of(model))


@pytest.mark.parametrize("family", DEPTH)
def test_shapes_are_those_of_every_block(family):
    model = model_of(family)
    assert model.shapes() == jax.eval_shape(model.init, jax.random.key(0))


def test_a_fresh_leaf_of_any_block_is_the_one_that_init_draws():
    model, key = model_of("bert"), jax.random.key(5)
    drawn = flatten(jax.jit(model.init)(key))
    for path in ("classifier/kernel", "bert/encoder/layer/1/attention/self/query/kernel"):
        (leaf,) = jax.jit(lambda key, path=path: fresh(model.init, key, [path]))(key).values()
        np.testing.assert_array_equal(leaf, drawn[path])


def test_modules_of_others_draw_apart_in_each_block():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + jax.random.normal(self.make_rng("noise"), x.shape)

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            call = Alike()
            seen = [call(nn.Dropout(0.5, deterministic=False, name=f"d{i}"), x) for i in range(2)]
            return [*seen, *(call(Noisy(name=f"n{i}"), x) for i in range(2))]

    rngs = {"dropout": jax.random.key(0), "noise": jax.random.key(1)}
    drops, again, noise, more = jax.jit(Stack().apply)({}, jnp.ones(64), rngs=rngs)
    assert (drops != again).any()
    assert (noise != more).all()


@pytest.mark.parametrize("nested", [False, True])
def test_two_modules_that_draw_in_one_place_draw_apart(nested):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            drop = Dropout(0.5)
            return drop(x), drop(x)

    class Stack(nn.Module):
        nested: bool

        @nn.compact
        def __call__(self, x):
            call = Alike()
            return [
                call(Stack(False, name=f"{i}") if self.nested else Block(name=f"{i}"), x)
                for i in range(2)
            ]

    def run(key):
        return Stack(nested).apply({}, jnp.ones(64), rngs={"dropout": key})

    found, expected = jax.jit(run)(jax.random.key(0)), one_by_one(run)(jax.random.key(0))
    masks = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
    for mask, other in zip(masks, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(mask, other)
    assert len({mask.tobytes() for mask in masks}) == len(masks) == (8 if nested else 4)


@pytest.mark.parametrize("nested", [False, True])
def test_a_block_may_be_what_is_adapted(nested):
    class Stack(nn.Module):
        nested: bool

        @nn.compact
        def __call__(self, x):
            call = Alike()
            for i in range(3):
                block = Stack(False, name=f"s{i}") if self.nested else nn.Dense(8, name=f"{i}")
                x = call(Dropout(0.0, name=f"none{i}"), call(block, x))  # a block without leaves
            return x

    stack, x = Stack(nested), jax.random.normal(jax.random.key(0), (4, 8))
    params = stack.init(jax.random.key(1), x)["params"]
    plan = plan_adapter(params, lora(r=2, lora_dropout=0.5))
    params = with_adapter(params, plan, jax.random.key(2))
    params["adapter"] = jax.tree.map(lambda leaf: leaf + 0.3, params["adapter"])
    apply = side_branch(lambda params, x, key=None: stack.apply({"params": params}, x), plan)
    for key in (None, jax.random.key(3)):
        expected = one_by_one(apply)(params, x, key)
        np.testing.assert_allclose(jax.jit(apply)(params, x, key), expected, rtol=1e-5)


def test_what_stands_outside_blocks_leaves_them_alike():
    model = model_of("llama")
    params, batch = model.init(jax.random.key(0)), batch_of(model)

    def louder(run, args, kwargs, context):
        out, called = run(*args, **kwargs), context.method_name == "__call__"
        named = context.module.name in ("embed_tokens", "q_proj")  # q_proj lies in a block
        return 2.0 * out if called and named else out

    def told(params, batch):
        with beside(Outside(louder)):
            return model.hidden(params, batch)

    plain = jax.jit(model.hidden)(params, batch)
    words = {**params["model"]["embed_tokens"]}
    words["embedding"] = 2.0 * words["embedding"]
    doubled = {**params, "model": {**params["model"], "embed_tokens": words}}
    agree({"hidden": jax.jit(told)(params, batch)}, {"hidden": model.hidden(doubled, batch)})
    assert float(jnp.abs(plain - jax.jit(told)(params, batch)).max()) > 1e-3
    found = calls(jax.make_jaxpr(told)(params, batch).jaxpr, [])
    assert len(found) == 3
    assert len({id(inner) for inner in found}) == 1


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_parts_of_an_encoder_decoder_call_their_blocks_alike(family):
    model = model_of(family)
    params, batch = model.init(jax.random.key(0)), batch_of(model)
    lower, upper = encoder_apart(model)
    batch = {**batch, "hidden": lower(params, batch)}
    logits = jax.jit(lambda params, batch: upper(params, batch, None))
    agree({"all": logits(params, batch)}, {"all": model.apply(params, batch)})
    found = calls(jax.make_jaxpr(logits)(params, batch).jaxpr, [])
    assert len(found) == 3
    assert len({id(inner) for inner in found}) == {"t5": 2, "bart": 1}[family]
