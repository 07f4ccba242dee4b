"""A bottleneck is the base at first, and then its equation, at the places of its papers."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.adapters import (
    HOULSBY,
    PFEIFFER,
    adapter_bank,
    add_adapters,
    attach,
    bottleneck,
    describe_adapter,
    merge_adapter,
    plan_adapter,
    scale_adapter,
    side_branch,
    stack_adapters,
    tree_merge,
    unmerge_adapter,
)
from sftjax.core import flatten

FAMILIES = ["bert", "roberta", "distilbert"]
HEADS = ["sequence", "token", "masked-lm"]


class Net(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features, use_bias=False, name="dense")(x)


def dense(params, x):
    return Net(params["dense"]["kernel"].shape[-1]).apply({"params": params}, x)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_it_is_the_base_to_the_bit_and_then_moves_every_family_and_head(
    small, family, kind, moved
):
    model, params, batch = small(family, kind)
    plan = plan_adapter(params, bottleneck(r=3), target_modules=HOULSBY)
    adapter, base = attach(params, plan, jax.random.key(0))
    assert base is params
    run = side_branch(model.apply, plan)
    before = model.apply(params, batch)
    assert (run({"adapter": adapter, "base": base}, batch) == before).all()
    after = run({"adapter": moved(adapter, by=0.1), "base": base}, batch)
    assert float(jnp.abs(after - before).max()) > 1e-3


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("bert", ("attention/output/dense", "output/dense")),
        ("roberta", ("attention/output/dense", "output/dense")),
        ("distilbert", ("attention/out_lin", "ffn/lin2")),
    ],
)
def test_houlsby_is_after_both_halves_of_a_block_and_pfeiffer_after_the_second(small, family, ends):
    params = small(family, "masked-lm").params

    def places(targets):
        plan = plan_adapter(params, bottleneck(r=2), target_modules=targets)
        return [site.path.rpartition("layer/")[2] for site, _ in plan.sites]

    assert set(places(HOULSBY)) == {f"0/{end}" for end in ends}
    assert set(places(PFEIFFER)) == {f"0/{ends[1]}"}
    assert places(None) == places(PFEIFFER)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_it_is_its_equation(activation, moved):
    phi = {
        "relu": lambda x: np.maximum(x, 0),
        "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "tanh": np.tanh,
    }[activation]
    rng = np.random.default_rng(0)
    params = {"dense": {"kernel": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)}}
    plan = plan_adapter(
        params, bottleneck(r=2, activation=activation, scaling=0.5), target_modules=["dense"]
    )
    adapter = moved(attach(params, plan, jax.random.key(0))[0], by=1.0)
    x = rng.normal(size=(3, 4)).astype(np.float32)
    found = side_branch(dense, plan, scale=0.7)({"adapter": adapter, "base": params}, x)
    a = {name: np.asarray(leaf, np.float64) for name, leaf in adapter["dense"].items()}
    y = x @ np.asarray(params["dense"]["kernel"])
    wanted = y + 0.7 * 0.5 * (phi(y @ a["down"] + a["down_bias"]) @ a["up"] + a["up_bias"])
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


def test_gradients_reach_its_leaves_and_scale_zero_is_the_base(small, moved):
    model, params, batch = small("bert", "sequence")
    plan = plan_adapter(params, bottleneck(r=3))
    adapter = moved(attach(params, plan, jax.random.key(0))[0], by=0.1)

    def loss(adapter):
        run = side_branch(model.apply, plan)
        return jnp.square(run({"adapter": adapter, "base": params}, batch)).sum()

    gradient = flatten(jax.grad(loss)(adapter))
    assert gradient.keys() == flatten(adapter).keys()
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in gradient.values())
    at_zero = side_branch(model.apply, plan, scale=0.0)({"adapter": adapter, "base": params}, batch)
    assert (at_zero == model.apply(params, batch)).all()


def test_it_keeps_the_dtype_of_a_bfloat16_model(small):
    model, params, batch = small("bert", "hidden")
    narrow = type(model)(
        model.family, model.config, model.head, model.module.clone(dtype=jnp.bfloat16),
        model.architecture, model.max_length,
    )  # fmt: skip
    plan = plan_adapter(params, bottleneck(r=3))
    adapter = attach(params, plan, jax.random.key(0))[0]
    found = side_branch(narrow.apply, plan)({"adapter": adapter, "base": params}, batch)
    assert (found == narrow.apply(params, batch)).all()


class TestScaleAndAdd:
    def test_scaled_leaves_are_a_scaled_branch(self, small, moved):
        model, params, batch = small("bert", "sequence")
        plan = plan_adapter(params, bottleneck(r=3))
        adapter = moved(attach(params, plan, jax.random.key(0))[0], by=0.1)
        by_leaves = side_branch(model.apply, plan)(
            {"adapter": scale_adapter(adapter, plan, 0.3), "base": params}, batch
        )
        by_scale = side_branch(model.apply, plan, scale=0.3)(
            {"adapter": adapter, "base": params}, batch
        )
        np.testing.assert_allclose(by_leaves, by_scale, atol=1e-6)

    def test_a_sum_adds_the_branches(self, moved):
        params = {"dense": {"kernel": jnp.eye(4)}}
        plan = plan_adapter(params, bottleneck(r=2), target_modules=["dense"])
        both = [moved(attach(params, plan, jax.random.key(0))[0], seed, 0.1) for seed in (1, 2)]
        x = jax.random.normal(jax.random.key(4), (3, 4))

        def change(adapter):
            return side_branch(dense, plan)({"adapter": adapter, "base": params}, x) - x

        total = add_adapters(both, plan, [0.5, -2.0])
        assert total["dense"]["down"].shape == (4, 4)
        wanted = 0.5 * change(both[0]) - 2.0 * change(both[1])
        np.testing.assert_allclose(change(total), wanted, atol=1e-6)

    def test_a_bank_serves_each_row_by_its_own(self, small, moved):
        model, params, batch = small("bert", "sequence")
        plan = plan_adapter(params, bottleneck(r=3), target_modules=HOULSBY)
        fresh = attach(params, plan, jax.random.key(0))[0]
        adapters = [moved(fresh, seed, 0.1) for seed in (1, 2)]
        ids = jnp.array([1, 0, 1])
        found = adapter_bank(model.apply, plan)(
            {"adapter": stack_adapters(adapters), "base": params}, {**batch, "adapter_ids": ids}
        )
        run = side_branch(model.apply, plan)
        each = [run({"adapter": adapter, "base": params}, batch) for adapter in adapters]
        assert float(jnp.abs(each[0] - each[1]).max()) > 1e-3
        wanted = jnp.stack([each[number][row] for row, number in enumerate(ids)])
        np.testing.assert_allclose(found, wanted, atol=2e-6)


class TestRefused:
    def test_no_weights_do_what_it_does(self, small):
        model, params, batch = small("bert", "sequence")
        plan = plan_adapter(params, bottleneck(r=3))
        adapter = attach(params, plan, jax.random.key(0))[0]
        with pytest.raises(ValueError, match="a bottleneck adapter cannot be merged"):
            merge_adapter(params, adapter, plan)
        with pytest.raises(ValueError, match="a bottleneck adapter cannot be merged"):
            tree_merge(model.apply, plan)({"adapter": adapter, "base": params}, batch)
        with pytest.raises(ValueError, match="a bottleneck adapter cannot be taken out"):
            unmerge_adapter(params, adapter, plan)

    @pytest.mark.parametrize("r", [0, 1.0, True])
    def test_widths_that_are_none(self, r):
        with pytest.raises(ValueError, match="width of a bottleneck is an integer of 1 or more"):
            bottleneck(r=r)

    def test_an_unknown_activation(self):
        with pytest.raises(ValueError, match="activation='swish'; known: relu, gelu, silu, tanh"):
            bottleneck(activation="swish")


def test_the_description_counts_its_parameters_and_products(small):
    params = small("bert", "sequence").params
    report = describe_adapter(params, plan_adapter(params, bottleneck(r=4)))
    (row,) = report.rows
    assert (row.sites, row.parameters) == (1, 2 * 32 * 4 + 4 + 32)
    assert row.added == pytest.approx(4 * 4 * 32 / (2 * 48 * 32))
    assert "side-branch" in str(report)
