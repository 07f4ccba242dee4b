"""A prefix is keys and values before those of each layer: NumPy's attention over both."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.adapters import (
    adapter_bank,
    attach,
    lora,
    merge_adapter,
    plan_adapter,
    prefix_tuning,
    side_branch,
)
from sftjax.core import flatten
from sftjax.models import distilbert, encoder
from sftjax.models.attention import attention_bias

P, ROWS, TOKENS, HEADS, WIDTH = 3, 2, 5, 4, 32


class Net(nn.Module):
    attention: nn.Module

    @nn.compact
    def __call__(self, x_ND, bias):
        return self.attention(x_ND, x_ND, bias)


def fresh(params, kind=None):
    plan = plan_adapter(params, kind or prefix_tuning(P))
    return plan, attach(params, plan, jax.random.key(4))[0]


def numpy_attention(x_ND, w, names, bias, prefix):
    """Return what is gathered, row by row and head by head, in float64."""
    q, k, v = (
        (x_ND @ w[name]["kernel"] + w[name]["bias"]).reshape(ROWS, TOKENS, HEADS, -1)
        for name in names
    )
    keys, values = (prefix[f"prefix_{name}"].reshape(P, HEADS, -1) for name in ("keys", "values"))
    out = np.zeros((ROWS, TOKENS, HEADS, WIDTH // HEADS))
    for row in range(ROWS):
        for head in range(HEADS):
            k_all = np.concatenate([keys[:, head], k[row, :, head]])
            v_all = np.concatenate([values[:, head], v[row, :, head]])
            scores = q[row, :, head] @ k_all.T / np.sqrt(WIDTH // HEADS)
            scores += np.concatenate(
                [np.zeros((TOKENS, P)), np.broadcast_to(bias[row], (TOKENS, TOKENS))], 1
            )
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[row, :, head] = weights / weights.sum(1, keepdims=True) @ v_all
    return out.reshape(ROWS * TOKENS, WIDTH)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_layer_with_a_prefix_is_attention_over_both(small, family, packed):
    a = small(family, "token").model.architecture
    if family == "bert":
        module, names = encoder.SelfAttention(a, jnp.float32), ("query", "key", "value")
    else:
        module, names = distilbert.Attention(a, jnp.float32), ("q_lin", "k_lin", "v_lin")
    mask = jnp.ones((ROWS, TOKENS)).at[0, 3:].set(0)
    segments = jnp.array([[1, 1, 2, 2, 2]] * ROWS) if packed else None
    bias = attention_bias(mask, segments)
    x_ND = jax.random.normal(jax.random.key(0), (ROWS * TOKENS, WIDTH))
    net = Net(module)
    params = net.init(jax.random.key(1), x_ND, bias)["params"]
    plan, adapter = fresh(params)
    found = side_branch(lambda p, x: net.apply({"params": p}, x, bias), plan)(
        {"adapter": adapter, "base": params}, x_ND
    )
    w, prefix = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree["attention"])
        for tree in (params, adapter)
    )
    wanted = numpy_attention(np.asarray(x_ND, np.float64), w, names, np.asarray(bias), prefix)
    if family == "distilbert":
        wanted = wanted @ w["out_lin"]["kernel"] + w["out_lin"]["bias"]
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("kind", ["sequence", "token", "masked-lm"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_it_moves_every_family_and_head_and_at_scale_zero_is_the_base(small, family, kind):
    model, params, batch = small(family, kind)
    plan, adapter = fresh(params)
    base = jax.jit(model.apply)(params, batch)

    @jax.jit
    def run(scale):
        joined = {"adapter": adapter, "base": params}
        return side_branch(model.apply, plan, scale=scale)(joined, batch)

    np.testing.assert_allclose(run(0.0), base, atol=1e-5)
    assert float(jnp.abs(run(1.0) - base).max()) > 1e-2


def test_at_scale_two_it_is_the_prefix_twice(small):
    model, params, batch = small("bert", "hidden")
    plan, adapter = fresh(params)
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), adapter)
    np.testing.assert_allclose(
        side_branch(model.apply, plan, scale=2.0)({"adapter": adapter, "base": params}, batch),
        side_branch(model.apply, fresh(params, prefix_tuning(2 * P))[0])(
            {"adapter": twice, "base": params}, batch
        ),
        atol=2e-6,
    )


def test_a_head_of_first_tokens_sees_what_all_tokens_see(small):
    """The shortcut of the last block holds with a prefix."""
    (first, params, batch), hidden = small("roberta", "first"), small("roberta", "hidden").model
    plan, adapter = fresh(params)
    joined = {"adapter": adapter, "base": params}
    np.testing.assert_allclose(
        side_branch(first.apply, plan)(joined, batch),
        side_branch(hidden.apply, plan)(joined, batch)[:, 0],
        atol=2e-6,
    )


def test_it_takes_no_places_of_the_tokens(small):
    model, params, _ = small("bert", "sequence")
    plan, adapter = fresh(params, prefix_tuning(9))
    longest = {"input_ids": jnp.ones((2, model.max_length), int)}
    shape = jax.eval_shape(
        side_branch(model.apply, plan), {"adapter": adapter, "base": params}, longest
    ).shape
    assert shape == (2, 3)


def test_gradients_are_of_its_leaves_and_of_finite_differences(small, moved):
    model, params, batch = small("distilbert", "token")
    plan, adapter = fresh(params)
    run = side_branch(model.apply, plan)
    weights = jax.random.normal(jax.random.key(0), batch["input_ids"].shape)[..., None]

    @jax.jit
    def loss(adapter):
        return jnp.mean(weights * run({"adapter": adapter, "base": params}, batch))

    gradient = flatten(jax.grad(loss)(adapter))
    assert {path.rpartition("/")[2] for path in gradient} == {"prefix_keys", "prefix_values"}
    assert all(float(jnp.abs(leaf).max()) > 1e-5 for leaf in gradient.values())
    direction = moved(jax.tree.map(jnp.zeros_like, adapter), by=1.0)

    def at(h):
        return float(loss(jax.tree.map(lambda a, d: a + h * d, adapter, direction)))

    along = sum(float(jnp.vdot(gradient[path], d)) for path, d in flatten(direction).items())
    assert (at(0.01) - at(-0.01)) / 0.02 == pytest.approx(along, rel=0.02)


def test_it_goes_with_a_lora_of_the_same_layer(small):
    model, params, batch = small("bert", "sequence")
    plan = plan_adapter(params, prefix_tuning(P)) + plan_adapter(
        params, lora(r=2), target_modules=["query", "key"]
    )
    adapter = attach(params, plan, jax.random.key(0))[0]
    self = adapter["bert"]["encoder"]["layer"]["0"]["attention"]["self"]
    assert self.keys() == {"prefix_keys", "prefix_values", "query", "key"}
    self["key"]["lora_b"] += 0.1
    run = side_branch(model.apply, plan)
    after = run({"adapter": adapter, "base": params}, batch)
    self["prefix_keys"] += 0.1
    assert float(jnp.abs(run({"adapter": adapter, "base": params}, batch) - after).max()) > 1e-5


def test_zero_is_zero_and_random_has_deviation_one(small):
    params = small("bert", "sequence").params
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(
        fresh(params, prefix_tuning(P, init_weights="zero"))[1]
    ))  # fmt: skip
    drawn = jnp.stack(jax.tree.leaves(fresh(params, prefix_tuning(16))[1]))
    assert 0.9 < float(jnp.std(drawn)) < 1.1
    assert not (drawn[0] == drawn[1]).any()


class TestRefused:
    @pytest.mark.parametrize("p", [0, 1.5, True])
    def test_numbers_of_places_that_are_none(self, p):
        with pytest.raises(ValueError, match=r"num_virtual_tokens=.* an integer of 1 or more"):
            prefix_tuning(p)

    def test_an_unknown_start(self):
        with pytest.raises(ValueError, match="init_weights='text'; known: random, zero"):
            prefix_tuning(P, init_weights="text")

    def test_a_merge_and_a_bank(self, small):
        model, params, _ = small("bert", "sequence")
        plan, adapter = fresh(params)
        with pytest.raises(ValueError, match="a prefix adapter cannot be merged"):
            merge_adapter(params, adapter, plan)
        with pytest.raises(ValueError, match="a prefix adapter changes what a whole batch"):
            adapter_bank(model.apply, plan)

    def test_a_module_that_is_no_attention(self, small):
        with pytest.raises(ValueError, match=r"names .*query .* prefix sits beside a key/kernel"):
            plan_adapter(
                small("bert", "sequence").params, prefix_tuning(P), target_modules=["query"]
            )

    def test_an_attention_without_the_method(self):
        class Keys(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(2, name="key")(x)

        net, x = nn.Sequential([Keys()]), jnp.ones((1, 2))
        params = net.init(jax.random.key(0), x)["params"]
        plan, adapter = fresh(params)
        with pytest.raises(ValueError, match=r"not called, layers_0 first \(its attend\)"):
            side_branch(lambda p, x: net.apply({"params": p}, x), plan)(
                {"adapter": adapter, "base": params}, x
            )
