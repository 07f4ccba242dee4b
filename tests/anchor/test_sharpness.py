"""Sharpness-aware steps against their closed form on a quadratic, and against optax's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor import adamw
from sftjax.anchor.averaging import averaged, swa
from sftjax.anchor.projection import selective_projection_decay
from sftjax.anchor.sharpness import sharpness_aware
from sftjax.core import Aux, Loss
from sftjax.train import compile_step, init, make_step

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(5, 5))
HESSIAN = ROOT @ ROOT.T + np.eye(5)
CENTER = RNG.normal(size=5)


def quadratic(w, _=0):
    return {"w": jnp.asarray(HESSIAN) @ (w["w"] - jnp.asarray(CENTER))}


@pytest.mark.parametrize("rho", [0.5, 0.05, 1e-3])
def test_the_gradient_is_the_closed_form(rho):
    """O24: H (w + rho g / |g| - c)."""
    with jax.enable_x64(True):
        w = {"w": jnp.asarray(RNG.normal(size=5))}
        g = quadratic(w)
        tx = sharpness_aware(optax.scale(-1.0), rho)
        updates, _ = jax.jit(lambda: tx.update(g, tx.init(w), w, grad_fn=quadratic))()
        unit = np.asarray(g["w"]) / np.linalg.norm(g["w"])
        expected = HESSIAN @ (np.asarray(w["w"]) + rho * unit - CENTER)
        np.testing.assert_allclose(-updates["w"], expected, rtol=1e-12)


def test_as_the_radius_goes_to_zero_it_is_the_optimizer_itself():
    with jax.enable_x64(True):
        w = {"w": jnp.asarray(RNG.normal(size=5))}
        gaps = []
        for rho in (0.1, 1e-3, 1e-5, 0.0):
            tx = sharpness_aware(optax.scale(-1.0), rho)
            updates, _ = tx.update(quadratic(w), tx.init(w), w, grad_fn=quadratic)
            gaps.append(float(jnp.abs(updates["w"] + quadratic(w)["w"]).max()))
        assert gaps[0] > 90 * gaps[1] > 8000 * gaps[2] > 0  # linear in the radius
        assert gaps[3] == 0.0


def test_a_zero_gradient_stays_finite():
    """O24; the optimum itself, where optax's normalize divides 0 by 0."""
    w = {"w": jnp.zeros(3)}
    tx = sharpness_aware(optax.adam(0.1))
    updates, _ = tx.update(w, tx.init(w), w, grad_fn=lambda w, i: w)
    np.testing.assert_array_equal(updates["w"], 0.0)


def test_equal_to_optax_where_both_apply():
    w = {"w": jnp.asarray(RNG.normal(size=5), jnp.float32)}
    ours = sharpness_aware(optax.adam(1e-2), 0.1)
    theirs = optax.contrib.sam(
        optax.adam(1e-2),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
        opaque_mode=True,
    )
    ends = []
    for tx in (ours, theirs):
        now, state = w, tx.init(w)
        for _ in range(10):
            updates, state = tx.update(quadratic(now), state, now, grad_fn=quadratic)
            now = optax.apply_updates(now, updates)
        ends.append(now)
    chex.assert_trees_all_close(*ends, atol=1e-6)


def test_what_optax_cannot_take():
    """The reason for a transform of our own; when this fails, optax's may do."""
    theirs = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True)
    w = {"w": jnp.ones(1)}
    with pytest.raises(TypeError, match="anchor"):
        theirs.update(w, theirs.init(w), w, grad_fn=lambda w, i: w, anchor=w)


def objective(params, model_state, batch, key):
    x = jnp.tanh(batch["x"] @ params["trunk"])
    loss = Loss(jnp.sum((x @ params["head"] - batch["y"]) ** 2), jnp.sum(jnp.ones(len(x))))
    count = model_state["passes"] + 1 if model_state else None
    return loss, Aux({}, None if count is None else {"passes": count})


def run(tx, *, accumulate=1, shard=False, steps=3):
    rng = np.random.default_rng(1)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {"trunk": draw(16, 8) / 4, "head": draw(8, 1), "frozen": draw(3)}
    moves = {"trunk": True, "head": True, "frozen": False}
    anchor = {"trunk": params["trunk"], "head": None, "frozen": None}
    state, fixed = init(
        params,
        moves,
        tx,
        jax.random.key(0),
        anchor=anchor,
        model_state={"passes": jnp.float32(0)},
        held_state={"passes": None},
    )
    batch = {"x": draw(16, 16), "y": draw(16, 1)}
    if shard:
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

        def place(leaf):
            rows = leaf.ndim > 0 and leaf.shape[0] % 8 == 0
            spec = PartitionSpec("data") if rows else PartitionSpec()
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        state, fixed, batch = jax.tree.map(place, (state, fixed, batch))
    step = compile_step(make_step(objective, tx, accumulate=accumulate))
    for _ in range(steps):
        state, _ = step(state, fixed, batch)
    return state


def test_in_the_step_the_anchor_reaches_the_optimizer_inside():
    """Through `make_step`, donated, with anchored AdamW, a projection and an average inside."""
    inside = optax.with_extra_args_support(
        optax.chain(
            adamw(1e-2, strength=5.0, weight_decay=0.0), selective_projection_decay(), swa(start=1)
        )
    )
    sharp, plain = run(sharpness_aware(inside, 0.5)), run(inside)
    loose = run(sharpness_aware(adamw(1e-2, strength=0.0, weight_decay=0.0), 0.5), steps=3)
    gap = float(jnp.abs(sharp.trainable["trunk"] - plain.trainable["trunk"]).max())
    assert gap > 1e-4
    assert float(jnp.abs(sharp.trainable["trunk"] - loose.trainable["trunk"]).max()) > 1e-4
    assert set(averaged(sharp.opt_state, sharp.trainable)) == {"trunk", "head", "frozen"}
    # Statistics move by the first pass alone, once an update.
    assert float(sharp.model_state["passes"]) == 3.0


def test_micro_batches_and_eight_devices_equal_the_whole():
    tx = sharpness_aware(adamw(1e-2, strength=1.0), 0.3)
    whole = run(tx).trainable
    chex.assert_trees_all_close(whole, run(tx, accumulate=4).trainable, atol=1e-6)
    chex.assert_trees_all_close(whole, run(tx, shard=True).trainable, atol=1e-6)


def test_the_optimizer_inside_is_told_the_gradient_it_gets():
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra, updates=updates)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    w = {"w": jnp.ones(5)}
    tx = sharpness_aware(inner, 0.5)
    g = quadratic(w)
    tx.update(g, tx.init(w), w, grad=g, grad_fn=quadratic, anchor="a", importance="f")
    assert seen["grad"] is seen["updates"]
    assert float(jnp.abs(seen["grad"]["w"] - g["w"]).max()) > 0.1
    assert (seen["anchor"], seen["importance"], seen["grad_fn"]) == ("a", "f", quadratic)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="rho is -1"):
        sharpness_aware(optax.sgd(0.1), -1.0)
    w = {"w": jnp.ones(1)}
    tx = sharpness_aware(optax.sgd(0.1))
    with pytest.raises(ValueError, match="needs the params and grad_fn"):
        tx.update(w, tx.init(w), w)
