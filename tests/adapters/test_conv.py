"""Adapters of convolutions, on a small net of one's own: beside it and merged they are the same."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.adapters import (
    attach,
    bottleneck,
    dora,
    ia3,
    lora,
    merge_adapter,
    plan_adapter,
    side_branch,
    tree_merge,
    unmerge_adapter,
)
from sftjax.core import flatten
from sftjax.models.convolution import Depthwise, conv

RANK = 2
WINDOWS: dict[str, dict[str, Any]] = {
    "same": {"kernel_size": (3, 3)},
    "strides": {"kernel_size": (3, 3), "strides": (2, 2)},
    "one-stride": {"kernel_size": (2, 3), "strides": 2, "padding": "VALID"},
    "padding": {"kernel_size": (3, 2), "padding": ((2, 0), (1, 3))},
    "circular": {"kernel_size": (3, 3), "padding": "CIRCULAR"},
    "dilation": {"kernel_size": (3, 3), "kernel_dilation": (2, 1), "padding": "VALID"},
    "transposed": {"kernel_size": (3, 3), "input_dilation": (2, 2), "padding": 2},
    "pointwise": {"kernel_size": (1, 1), "use_bias": False},
}
KINDS = {
    "lora": lora(r=RANK, lora_alpha=4),
    "gaussian": lora(r=RANK, init_lora_weights="gaussian"),
    "pissa": lora(r=RANK, init_lora_weights="pissa"),
    "olora": lora(r=RANK, init_lora_weights="olora"),
    "dora": dora(r=RANK),
    "ia3": ia3(),
    "ia3-input": ia3(feedforward=True),
}


class Stem(nn.Module):
    window: Any

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(5, **self.window, name="conv")(x))


class Net(nn.Module):
    """Two convolutions and a head."""

    window: Any

    @nn.compact
    def __call__(self, x):
        x = Stem(self.window, name="stem")(x)
        x = nn.relu(nn.Conv(4, (2, 2), name="conv")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def case(window, kind):
    net, x = Net(WINDOWS[window]), jax.random.normal(jax.random.key(0), (2, 8, 7, 4))
    params = net.init(jax.random.key(1), x)["params"]
    plan = plan_adapter(params, kind, target_modules=["conv"])
    assert [site.path for site, _ in plan.sites] == ["conv", "stem/conv"]

    def apply(params, x, key=None):
        return net.apply({"params": params}, x)

    adapter, base = attach(params, plan, jax.random.key(2))
    return apply, params, plan, {"adapter": adapter, "base": base}, x


@pytest.mark.parametrize(
    ("window", "name"),
    [(window, "lora") for window in WINDOWS]
    + [("strides", name) for name in KINDS if name != "lora"] + [("circular", "dora")],
)  # fmt: skip
def test_beside_and_merged_agree(moved, window, name):
    apply, params, plan, fresh, x = case(window, KINDS[name])
    joined = {**fresh, "adapter": moved(fresh["adapter"], by=0.3)}

    @jax.jit
    def three_ways(joined, params, x):
        ways = (side_branch(apply, plan), tree_merge(apply, plan))
        return *(way(joined, x) for way in ways), apply(params, x)

    beside, merged, before = three_ways(joined, params, x)
    np.testing.assert_allclose(beside, merged, atol=1e-5)
    assert float(jnp.abs(beside - before).max()) > 1e-3


@pytest.mark.parametrize("name", ["lora", "gaussian", "dora", "ia3", "ia3-input"])
def test_fresh_they_are_the_base_to_the_bit(name):
    apply, params, plan, fresh, x = case("strides", KINDS[name])
    assert (side_branch(apply, plan)(fresh, x) == apply(params, x)).all()
    assert (tree_merge(apply, plan)(fresh, x) == apply(params, x)).all()


@pytest.mark.parametrize("name", ["lora", "pissa", "olora"])
def test_the_change_is_of_at_most_the_rank_over_the_whole_window(moved, name):
    *_, plan, fresh, _ = case("same", KINDS[name])
    merged = merge_adapter(fresh["base"], moved(fresh["adapter"], by=0.3), plan)
    for site, _ in plan.sites:
        path = f"{site.path}/kernel"
        change = np.asarray(flatten(merged)[path] - flatten(fresh["base"])[path], np.float64)
        values = np.linalg.svd(change.reshape(-1, change.shape[-1]), compute_uv=False)
        assert (values > 1e-5 * values[0]).sum() == RANK
        assert flatten(fresh["adapter"])[f"{site.path}/lora_a"].shape == (*site.shape[:-1], RANK)


@pytest.mark.parametrize("name", ["lora", "pissa", "dora", "ia3-input"])
def test_merge_then_unmerge_restores_the_base(moved, name):
    *_, plan, fresh, _ = case("same", KINDS[name])
    adapter = moved(fresh["adapter"], by=0.05)
    restored = unmerge_adapter(merge_adapter(fresh["base"], adapter, plan), adapter, plan)
    for path, leaf in flatten(fresh["base"]).items():
        np.testing.assert_allclose(flatten(restored)[path], leaf, atol=2e-6)


def test_gradients_agree(moved):
    apply, _, plan, fresh, x = case("dilation", KINDS["lora"])
    adapter = moved(fresh["adapter"], by=0.3)

    def gradient(way):
        run = way(apply, plan)

        def loss(adapter):
            return jnp.square(run({**fresh, "adapter": adapter}, x)).sum()

        return jax.jit(jax.grad(loss))(adapter)

    beside, merged = flatten(gradient(side_branch)), flatten(gradient(tree_merge))
    for path, leaf in merged.items():
        assert float(jnp.abs(leaf).max()) > 1e-4
        np.testing.assert_allclose(beside[path], leaf, rtol=1e-3, atol=1e-5)


def test_a_bottleneck_after_a_convolution_is_of_its_channels(moved):
    apply, params, plan, fresh, x = case("strides", bottleneck(r=RANK))
    assert (side_branch(apply, plan)(fresh, x) == apply(params, x)).all()
    assert fresh["adapter"]["stem"]["conv"]["down"].shape == (5, RANK)
    joined = {**fresh, "adapter": moved(fresh["adapter"], by=0.3)}
    assert float(jnp.abs(side_branch(apply, plan)(joined, x) - apply(params, x)).max()) > 1e-3


class Grouped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(4, (3, 3), feature_group_count=2, name="conv")(x)


def test_groups_are_refused_beside_and_can_be_merged(moved):
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 4))
    params = Grouped().init(jax.random.key(1), x)["params"]
    plan = plan_adapter(params, lora(r=RANK), target_modules=["conv"])
    joined = {"adapter": attach(params, plan, jax.random.key(2))[0], "base": params}

    def apply(params, x):
        return Grouped().apply({"params": params}, x)

    with pytest.raises(ValueError, match=r"conv is a convolution in groups .*; use tree_merge"):
        side_branch(apply, plan)(joined, x)
    assert (tree_merge(apply, plan)(joined, x) == apply(params, x)).all()


def test_a_rank_above_the_channels_is_refused():
    with pytest.raises(ValueError, match=r"rank r=5 .* product of 16 x 4 has at most rank 4"):
        plan_adapter(
            {"conv": {"kernel": jnp.zeros((2, 2, 4, 4))}}, lora(r=5), target_modules=["conv"]
        )


class Inverted(nn.Module):
    """What an EfficientNet repeats: a convolution of one pixel, read by each shift of a window."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(conv(96, 1, 1, "SAME", jnp.float32, "expand")(x))
        return Depthwise(3, 1, ((1, 1), (1, 1)), jnp.float32, name="depthwise")(x)


def test_the_gradient_of_a_branch_is_computed_once_where_a_window_reads_it_nine_times():
    module, x = Inverted(), jnp.ones((2, 12, 12, 16))
    params = module.init(jax.random.key(0), x)["params"]
    plan = plan_adapter(params, lora(r=8), target_modules=["expand"])
    adapter, base = attach(params, plan, jax.random.key(1))
    beside = side_branch(lambda params, x: module.apply({"params": params}, x), plan)

    def of_base(x):
        return jnp.square(module.apply({"params": params}, x)).sum()

    def of_adapter(adapter):
        return jnp.square(beside({"adapter": adapter, "base": base}, x)).sum()

    def flops(gradient, *args):
        return jax.jit(gradient).lower(*args).compile().cost_analysis()["flops"]

    # 1.2 times; XLA on CPU computed what reaches B in each of its sums anew, 2.8 times in all.
    assert flops(jax.grad(of_adapter), adapter) < 1.5 * flops(jax.grad(of_base), x)
