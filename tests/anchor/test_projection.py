"""Projections: norms inside the ball, no-ops inside it, free leaves, zero gradients, devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor.projection import (
    displacement_norms,
    project,
    project_displacement,
    selective_projection_decay,
)
from sftjax.core import Aux, Loss, flatten
from sftjax.train import compile_step, init, make_step

NORMS = ("l2", "mars", "max")


def tree_of(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "conv": jnp.asarray(scale * rng.normal(size=(3, 3, 8, 16))),
        "kernel": jnp.asarray(scale * rng.normal(size=(16, 8))),
        "bias": jnp.asarray(scale * rng.normal(size=8)),
    }


def apart(tree, other):
    return {path: np.asarray(tree[path]) - np.asarray(other[path]) for path in tree}


def norm_by_hand(away, norm):
    if norm == "l2":
        return np.sqrt((away**2).sum())
    if norm == "mars":  # outputs on the last axis
        return np.abs(away).reshape(-1, away.shape[-1]).sum(0).max()
    return np.abs(away).max()


@pytest.mark.parametrize("norm", NORMS)
def test_norms_end_inside_the_ball_and_projecting_again_changes_nothing(norm):
    with jax.enable_x64(True):
        w, origin = tree_of(0), tree_of(1)
        radius = 0.3
        held = project(w, origin, radius, norm)
        again = project(held, origin, radius, norm)
        for path, away in apart(held, origin).items():
            assert norm_by_hand(away, norm) == pytest.approx(radius, rel=1e-12)
            np.testing.assert_allclose(again[path], held[path], rtol=0, atol=1e-14)
        for path, length in displacement_norms(w, origin, norm).items():
            assert float(length) == pytest.approx(norm_by_hand(apart(w, origin)[path], norm))


@pytest.mark.parametrize("norm", NORMS)
def test_inside_the_ball_nothing_changes_to_the_last_bit(norm):
    w, origin = tree_of(0), tree_of(1)
    chex.assert_trees_all_equal(project(w, origin, 1e4, norm), w)
    tx = project_displacement(1e4, norm)
    update = tree_of(2, 1e-3)
    chex.assert_trees_all_equal(tx.update(update, tx.init(w), w, anchor=origin)[0], update)


def test_mars_rows_are_outputs():
    """The sum runs over the inputs of each output: the axis is the opposite of torch's."""
    origin = {"kernel": jnp.zeros((3, 2))}
    w = {"kernel": jnp.array([[1.0, 0.1], [1.0, 0.1], [1.0, 0.1]])}
    held = project(w, origin, 1.5, "mars")["kernel"]
    np.testing.assert_allclose(held, [[0.5, 0.1]] * 3, rtol=1e-6)
    np.testing.assert_array_equal(held[:, 1], w["kernel"][:, 1])  # a short row is left alone
    # An (out, in) reading would have found every row (1.1) inside the ball.


def test_l2_and_max_are_the_nearest_points():
    """Optimality: no point of the ball is closer, along 200 random directions."""
    rng = np.random.default_rng(0)
    w, origin = {"w": jnp.asarray(rng.normal(size=5) * 3)}, {"w": jnp.zeros(5)}
    for norm in ("l2", "max"):
        found = np.asarray(project(w, origin, 1.0, norm)["w"], np.float64)
        for _ in range(200):
            other = rng.normal(size=5)
            other *= rng.uniform() / norm_by_hand(other, norm)
            # The obtuse angle that characterizes a projection onto a convex set.
            assert (np.asarray(w["w"]) - found) @ (other - found) < 1e-5


def test_radii_can_be_a_tree_and_leaves_without_one_are_free():
    w, origin = tree_of(0), tree_of(1)
    origin["bias"] = None  # a new leaf
    held = project(w, origin, {"kernel": 0.0, "conv": None})
    np.testing.assert_array_equal(held["kernel"], origin["kernel"])
    np.testing.assert_array_equal(held["conv"], w["conv"])
    np.testing.assert_array_equal(held["bias"], w["bias"])


def test_the_box_is_never_left():
    origin = {"w": jnp.zeros(3)}
    tx = optax.chain(optax.sgd(0.5), project_displacement(0.1, "max"))
    w, state = origin, tx.init(origin)
    for _ in range(5):
        grads = {"w": w["w"] - jnp.array([1.0, -1.0, 0.05])}
        updates, state = tx.update(grads, state, w, anchor=origin)
        w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(w["w"], [0.1, -0.1, 0.0484375], atol=1e-6)


def test_selective_projection_keeps_the_previous_radius_at_strength_one():
    """O15, over a run of Adam with momentum: fired steps keep the radius, others are Adam's."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        hessian = np.diag([1.0, 30.0, 5.0, 0.3])
        origin, center = rng.normal(size=(2, 4))
        adam = optax.chain(optax.scale_by_adam(b1=0.9), optax.scale(-0.3))
        tx = selective_projection_decay(1.0)
        anchor = {"w": jnp.asarray(origin)}
        w, state = anchor, adam.init(anchor)
        fired = 0
        for _ in range(60):
            grads = {"w": hessian @ (w["w"] - center)}
            plain, state = adam.update(grads, state, w)
            update, _ = tx.update(plain, tx.init(w), w, anchor=anchor, grad=grads)
            start = np.linalg.norm(w["w"] - origin)
            loose = np.linalg.norm(w["w"] + plain["w"] - origin)
            asks = float(jnp.vdot(grads["w"], w["w"] - origin)) > 0
            w = optax.apply_updates(w, update)
            if asks and loose > start:
                fired += 1
                assert np.linalg.norm(w["w"] - origin) == pytest.approx(start, rel=1e-12)
            else:
                np.testing.assert_array_equal(update["w"], plain["w"])
        assert 5 < fired < 55


@pytest.mark.parametrize(("strength", "radius"), [(0.0, 2.0), (0.5, 1.5), (1.0, 1.0), (9.0, 0.0)])
def test_selective_projection_by_strength(strength, radius):
    """From radius 1 to 2 along one axis the growth is 1/2; strengths stop at the anchor."""
    origin, w = {"w": jnp.zeros(2)}, {"w": jnp.array([1.0, 0.0])}
    tx = selective_projection_decay(strength)
    update, _ = tx.update({"w": jnp.array([1.0, 0.0])}, tx.init(w), w, anchor=origin, grad=w)
    np.testing.assert_allclose(w["w"] + update["w"], [radius, 0.0], atol=1e-7)


def test_selective_projection_is_finite_at_the_start_and_without_gradient():
    """O15: 0/0 in the reference code; where no tensor has moved and none has a gradient."""
    origin = {"w": jnp.zeros(3)}
    tx = selective_projection_decay(1.0)
    with jax.debug_nans(True):  # not even on a path that is not taken
        for update in (jnp.zeros(3), jnp.ones(3)):
            for g in (jnp.zeros(3), jnp.ones(3)):
                out, _ = tx.update(
                    {"w": update}, tx.init(origin), origin, anchor=origin, grad={"w": g}
                )
                np.testing.assert_array_equal(out["w"], update)


def test_each_tensor_decides_for_itself():
    origin = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    w = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([1.0, 0.0])}
    grad = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([-1.0, 0.0])}
    tx = selective_projection_decay(1.0)
    update, _ = tx.update(w, tx.init(w), w, anchor=origin, grad=grad)
    np.testing.assert_allclose(update["a"], 0.0, atol=1e-7)
    np.testing.assert_array_equal(update["b"], w["b"])


def objective(params, model_state, batch, key):
    x = jnp.tanh(batch["x"] @ params["trunk"]["kernel"] + params["trunk"]["bias"])
    error = x @ params["head"]["kernel"] - batch["y"]
    return Loss(jnp.sum(error**2), jnp.float32(len(batch["x"]))), Aux({})


def run(tx, steps=6, shard=False):
    rng = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "trunk": {"kernel": draw(16, 8) / 4, "bias": draw(8) / 4, "frozen": draw(2)},
        "head": {"kernel": draw(8, 2)},
    }
    moves = {"trunk": {"kernel": True, "bias": True, "frozen": False}, "head": {"kernel": True}}
    held = {"trunk": {**params["trunk"], "frozen": None}, "head": {"kernel": None}}
    state, fixed = init(params, moves, tx, jax.random.key(0), anchor=held)
    batch = {"x": draw(16, 16), "y": draw(16, 2)}
    if shard:
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

        def place(leaf):
            rows = leaf.ndim > 0 and leaf.shape[0] % 8 == 0
            spec = PartitionSpec("data") if rows else PartitionSpec()
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        state, fixed, batch = jax.tree.map(place, (state, fixed, batch))
    step = compile_step(make_step(objective, tx))
    for _ in range(steps):
        state, _ = step(state, fixed, batch)
    return state.trainable, held


def adam_then(transform):
    return optax.with_extra_args_support(optax.chain(optax.adam(3e-2), transform))


TRANSFORMS = {
    "spd": selective_projection_decay(1.0),
    "l2": project_displacement(0.2),
    "mars": project_displacement(0.2, "mars"),
    "box": project_displacement(0.05, "max"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_in_the_step_with_donation_and_on_eight_devices(name):
    """The law of each, through `make_step`; sharded params and rows give the same weights."""
    tx = adam_then(TRANSFORMS[name])
    one, anchor = run(tx)
    eight, _ = run(tx, shard=True)
    chex.assert_trees_all_close(one, eight, atol=1e-6)
    free, _ = run(optax.adam(3e-2))
    norm = {"mars": "mars", "box": "max"}.get(name, "l2")
    held_norms = flatten(displacement_norms(one, anchor, norm))
    free_norms = flatten(displacement_norms(free, anchor, norm))
    assert set(held_norms) == {"trunk/kernel", "trunk/bias"}
    assert float(free_norms["trunk/kernel"]) > float(held_norms["trunk/kernel"])
    if name != "spd":
        radius = 0.05 if name == "box" else 0.2
        assert all(float(length) <= radius * (1 + 1e-5) for length in held_norms.values())
    assert np.all(np.isfinite(np.asarray(one["head"]["kernel"])))


def test_the_new_head_gets_the_updates_of_the_plain_optimizer():
    params = {"trunk": jnp.ones(3), "head": jnp.ones(3)}
    anchor = {"trunk": jnp.zeros(3), "head": None}
    update = {"trunk": jnp.ones(3), "head": jnp.ones(3)}
    for transform in TRANSFORMS.values():
        out, _ = transform.update(
            update, transform.init(params), params, anchor=anchor, grad=params
        )
        np.testing.assert_array_equal(out["head"], update["head"])
        assert float(jnp.abs(out["trunk"] - update["trunk"]).max()) > 0.1


def test_radii_can_differ_between_the_runs_of_a_sweep():
    origin, w = {"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}
    held = jax.vmap(lambda radius: project(w, origin, radius)["w"])(jnp.array([1.0, 10.0]))
    np.testing.assert_allclose(held, [[0.6, 0.8], [3.0, 4.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selective_projection_decay(-1.0), "strength is -1"),
        (lambda: selective_projection_decay(float("nan")), "strength is nan"),
        (lambda: project_displacement(-0.5), "radius is -0.5"),
        (lambda: project_displacement({"a": {"b": -0.5}}), "radius of 'a/b' is -0.5"),
        (lambda: project_displacement(1.0, "linf"), "'linf'; the norms are l2, mars, max"),
        (lambda: project({"a": 1}, {"a": jnp.ones(1)}, {"b": 1.0}), "'b' names no anchored leaf"),
        (lambda: project({"a": 1}, {"a": jnp.ones(1)}, {"a": jnp.ones(2)}), "one number"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("transform", [selective_projection_decay(), project_displacement(1.0)])
def test_without_an_anchor_there_is_nothing_to_project_to(transform):
    w = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="the anchor"):
        transform.update(w, transform.init(w), w, anchor=None, grad=w)
