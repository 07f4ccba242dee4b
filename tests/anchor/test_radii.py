"""Learned radii against their closed form on a quadratic, and in a run."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor.projection import displacement_norms
from sftjax.anchor.radii import init_radii, learn_radii, radii_step
from sftjax.core import Aux, Fixed, Loss
from sftjax.train import compile_step, init, make_step


def loss(params, batch):
    return 0.5 * sum(jnp.sum((params[name] - batch[name]) ** 2) for name in batch)


def problem():
    rng = np.random.default_rng(0)
    w = {name: jnp.asarray(rng.normal(size=(8, 4))) for name in ("a", "b", "c")}
    anchor = {name: jnp.asarray(rng.normal(size=(8, 4)) * 0.1) for name in ("a", "b", "c")}
    share = {"a": 0.3, "b": 2.0, "c": -1.0}  # of the displacement that validation asks for
    noise = rng.normal(size=(8, 4)) * 0.1
    center = {name: anchor[name] + share[name] * (w[name] - anchor[name]) + noise for name in w}
    return w, anchor, center


def test_radii_reach_the_validation_optimum():
    """Along a displacement d a quadratic is least at <c - w0, d> / |d|, if that is in 0..|d|."""
    with jax.enable_x64(True):
        w, anchor, center = problem()
        fixed = Fixed(jax.tree.map(lambda _: None, w), {}, anchor=anchor)
        held, radii = learn_radii(loss, w, fixed, [center] * 1500, learning_rate=5e-3)
        for name in w:
            away = np.asarray(w[name] - anchor[name])
            length = np.linalg.norm(away)
            wanted = np.sum(np.asarray(center[name] - anchor[name]) * away) / length
            assert float(radii[name]) == pytest.approx(np.clip(wanted, 0, length), abs=2e-3)
            np.testing.assert_allclose(
                held[name], anchor[name] + away * float(radii[name]) / length, atol=1e-9
            )
        assert float(loss(held, center)) < float(loss(w, center))


def test_a_radius_at_the_whole_displacement_can_come_back():
    """Where the projection is the identity its derivative must not be lost."""
    w, anchor, center = problem()
    fixed = Fixed(jax.tree.map(lambda _: None, w), {}, anchor=anchor)
    _, radii = learn_radii(loss, w, fixed, [center] * 50, fraction=1.0)
    assert float(radii["a"]) < float(displacement_norms(w, anchor)["a"]) - 0.2


def test_at_the_anchor_itself_everything_is_finite():
    w = {"a": jnp.ones((2, 2))}
    fixed = Fixed({"a": None}, {}, anchor=w)
    held, radii = learn_radii(loss, w, fixed, [{"a": jnp.zeros((2, 2))}] * 3)
    chex.assert_trees_all_equal(held, w)
    assert float(radii["a"]) == 0.0


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_eight_devices_equal_one(norm):
    w, anchor, center = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), problem())
    fixed = Fixed(jax.tree.map(lambda _: None, w), {}, anchor=anchor)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    one = learn_radii(loss, w, fixed, [center] * 20, norm=norm)
    w, fixed, center = jax.device_put((w, fixed, center), rows)
    eight = learn_radii(loss, w, fixed, [center] * 20, norm=norm)
    chex.assert_trees_all_close(one, eight, atol=1e-6)


def test_after_every_update_of_a_run():
    """Training pulls to 3, validation to 1: the leaf stays near 1, and the new head goes."""

    def objective(params, model_state, batch, key):
        total = jnp.sum((params["w"] - 3.0) ** 2 + (params["head"] - 3.0) ** 2)
        return Loss(total, 1.0), Aux({})

    params = {"w": jnp.zeros(4), "head": jnp.zeros(4), "frozen": jnp.ones(1)}
    anchor = {"w": params["w"], "head": None, "frozen": None}
    tx = optax.sgd(0.05)
    state, fixed = init(
        params, {"w": True, "head": True, "frozen": False}, tx, jax.random.key(0), anchor=anchor
    )
    step = compile_step(make_step(objective, tx))
    validation = jax.jit(
        radii_step(lambda params, batch: jnp.sum((params["w"] - 1.0) ** 2) * params["frozen"][0],
                   learning_rate=5e-2)
    )  # fmt: skip
    radii = init_radii(state.trainable, anchor)
    assert float(radii.radii["w"]) == 0.0
    for _ in range(150):
        state, _ = step(state, fixed, {})
        projected, radii = validation(radii, state.trainable, fixed, {})
        state = state._replace(trainable=projected)
    np.testing.assert_allclose(state.trainable["w"], 1.0, atol=0.1)
    np.testing.assert_allclose(state.trainable["head"], 3.0, atol=1e-3)
    assert float(radii.radii["w"]) == pytest.approx(2.0, abs=0.2)  # |(1, 1, 1, 1)|


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, fixed: learn_radii(loss, w, fixed, []), "no validation batch"),
        (lambda w, fixed: learn_radii(loss, w, fixed._replace(anchor=None), [w]), "there is none"),
        (lambda w, fixed: learn_radii(loss, w, fixed, [w], fraction=2.0), "fraction is 2"),
        (lambda w, fixed: learn_radii(loss, w, fixed, [w], learning_rate=0.0), "rate is 0"),
        (lambda w, fixed: learn_radii(loss, w, fixed, [w], norm="l1"), "the norms are"),
    ],
)
def test_what_cannot_be(call, message):
    w = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match=message):
        call(w, Fixed({"a": None}, {}, anchor=w))
