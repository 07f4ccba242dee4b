"""Adapters need no model of ours: one's own linen modules, nnx after split, plain functions."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sftjax.adapters import attach, bottleneck, dora, ia3, lora, plan_adapter, side_branch
from sftjax.adapters import tree_merge as merged_tree
from sftjax.core import flatten

KINDS = {"lora": lora(r=2), "dora": dora(r=2), "ia3": ia3(), "embedding": lora(r=2)}
IDS = jnp.array([[1, 2, 3], [4, 5, 6]])


class Half(nn.Module):
    """Submodules made in `setup`, one of them called twice."""

    def setup(self):
        self.wide = nn.Dense(12)
        self.turn = nn.Dense(6)

    def __call__(self, x):
        y = self.turn(nn.gelu(self.wide(x)))
        return x + self.turn(nn.gelu(self.wide(y)))


class Net(nn.Module):
    """Nested modules made where they are called, one of them rematerialised."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(10, 6, name="words")(ids)
        x = Half(name="first")(x)
        x = nn.remat(Half)(name="second")(x)
        x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)], name="head")(x)
        return x.mean(1)


def run(params, ids, key=None) -> jax.Array:
    return jnp.asarray(Net().apply({"params": params}, ids))


@pytest.fixture(scope="module")
def params():
    return Net().init(jax.random.key(0), IDS)["params"]


@pytest.mark.parametrize("name", KINDS)
def test_side_branch_of_linen_modules_is_their_merge(params, moved, name):
    targets = ["words", "turn"] if name == "embedding" else "all-linear"
    plan = plan_adapter(params, KINDS[name], target_modules=targets)
    assert len(plan.sites) == (3 if name == "embedding" else 6)
    adapter, base = attach(params, plan, jax.random.key(1))
    fresh = {"adapter": adapter, "base": base}
    beside, merged = side_branch(run, plan), merged_tree(run, plan)
    np.testing.assert_array_equal(beside(fresh, IDS), run(params, IDS))
    joined = {**fresh, "adapter": moved(adapter, by=0.2)}

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(way, adapter):
        def loss(adapter):
            y = way({"adapter": adapter, "base": base}, IDS)
            return jnp.square(y).sum(), y

        gradient, y = jax.grad(loss, has_aux=True)(adapter)
        return flatten(gradient), y

    (found, y), (wanted, of_merged) = (gradient(way, joined["adapter"]) for way in (beside, merged))
    np.testing.assert_allclose(y, of_merged, atol=2e-6)
    assert float(jnp.abs(y - run(params, IDS)).max()) > 1e-2
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, atol=2e-4, rtol=1e-3)


def test_an_adapter_learns_what_the_base_does_not_know(params):
    plan = plan_adapter(params, bottleneck(r=4), target_modules=["turn"])
    adapter, base = attach(params, plan, jax.random.key(1))
    wanted = run(params, IDS) + 0.5
    tx = optax.adam(0.03)

    def loss(adapter):
        return jnp.square(
            side_branch(run, plan)({"adapter": adapter, "base": base}, IDS) - wanted
        ).mean()

    @jax.jit
    def step(_, state):
        adapter, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss)(adapter), opt_state)
        return optax.apply_updates(adapter, updates), opt_state

    after, _ = jax.lax.fori_loop(0, 100, step, (adapter, tx.init(adapter)))
    assert float(loss(adapter)) == pytest.approx(0.25)
    assert float(loss(after)) < 0.01


class Odd(nn.Module):
    """A linear module that is none of flax's, and one called by name."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (6, 4))
        return x @ kernel


class Named(nn.Module):
    inner: Callable[[], nn.Module] = Odd
    by_name: bool = False

    @nn.compact
    def __call__(self, x):
        layer = self.inner(name="layer")  # type: ignore[call-arg]
        return layer(x=x) if self.by_name else layer(x)


@pytest.mark.parametrize("by_name", [False, True])
def test_modules_of_another_kind(by_name):
    net, x = Named(by_name=by_name), jnp.ones((2, 6))
    own = net.init(jax.random.key(0), x)["params"]

    def apply(params, x):
        return net.apply({"params": params}, x)

    def joined(kind):
        plan = plan_adapter(own, kind)
        return plan, {"adapter": attach(own, plan, jax.random.key(1))[0], "base": own}

    plan, fresh = joined(lora(r=2))
    words = "layer is called with named arguments alone" if by_name else "layer is a Odd; .* Use tr"
    with pytest.raises(ValueError, match=words):
        side_branch(apply, plan)(fresh, x)
    assert (merged_tree(apply, plan)(fresh, x) == apply(own, x)).all()
    if not by_name:  # what reads only the output needs no product
        plan, fresh = joined(ia3())
        assert (side_branch(apply, plan)(fresh, x) == apply(own, x)).all()


class TestTreeMerge:
    def test_of_nnx_after_split(self, moved):
        class Mlp(nnx.Module):
            def __init__(self, rngs):
                self.inner = nnx.Linear(4, 8, rngs=rngs)
                self.outer = nnx.Linear(8, 2, rngs=rngs)

            def __call__(self, x):
                return self.outer(nnx.relu(self.inner(x)))

        x = jax.random.normal(jax.random.key(0), (3, 4))
        graph, state = nnx.split(Mlp(nnx.Rngs(0)), nnx.Param)
        params = nnx.to_pure_dict(state)

        def apply(params, x):
            filled = nnx.State(state)
            nnx.replace_by_pure_dict(filled, params)
            return nnx.merge(graph, filled)(x)

        plan = plan_adapter(params, lora(r=2))
        assert [site.path for site, _ in plan.sites] == ["inner", "outer"]
        adapter = attach(params, plan, jax.random.key(1))[0]
        f = jax.jit(merged_tree(apply, plan))
        np.testing.assert_allclose(
            f({"adapter": adapter, "base": params}, x), apply(params, x), atol=1e-6
        )
        leaves = moved(adapter, by=0.3)
        w = {
            name: params[name]["kernel"] + leaves[name]["lora_a"] @ leaves[name]["lora_b"]
            for name in ("inner", "outer")
        }
        wanted = jax.nn.relu(x @ w["inner"]) @ w["outer"]  # nnx's biases start at zero
        np.testing.assert_allclose(
            f({"adapter": leaves, "base": params}, x), wanted, rtol=1e-4, atol=1e-5
        )
        with pytest.raises(ValueError, match="2 of 2 adapted modules were not called"):
            side_branch(apply, plan)({"adapter": adapter, "base": params}, x)

    def test_of_a_plain_function(self, moved):
        params = {"w": {"kernel": jnp.eye(3)}, "gain": jnp.ones(3)}

        def apply(params, x):
            return params["gain"] * jnp.tanh(x @ params["w"]["kernel"])

        plan = plan_adapter(params, lora(r=1))
        adapter = moved(attach(params, plan, jax.random.key(0))[0], by=0.3)
        x = jnp.arange(6.0).reshape(2, 3)
        found = merged_tree(apply, plan)({"adapter": adapter, "base": params}, x)
        w = jnp.eye(3) + adapter["w"]["lora_a"] @ adapter["w"]["lora_b"]
        np.testing.assert_allclose(found, jnp.tanh(x @ w), rtol=1e-6)
