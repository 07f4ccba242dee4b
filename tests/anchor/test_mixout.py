"""Mixout against its closed forms: mean, excess loss, gradient; and its masks."""

import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor.decay import anchor_of
from sftjax.anchor.dose import mixout_rate_of, remaining
from sftjax.anchor.mixout import mixout
from sftjax.core import Fixed, combine
from sftjax.objectives.text import classification
from sftjax.train.step import compile_step, init, make_step

RNG = np.random.default_rng(0)
RATE, DRAWS = 0.7, 20000
W, ORIGIN = (jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32) for _ in range(2))
ROOT = RNG.normal(size=(12, 12))
HESSIAN = jnp.asarray(ROOT @ ROOT.T / 12, jnp.float32)
CENTER = jnp.asarray(RNG.normal(size=12), jnp.float32)


def view_of(w, per, key, rate=RATE, origin=ORIGIN):
    return mixout(rate, per=per)({"w": w}, Fixed({"w": None}, {}, {"w": origin}), key)["w"]


def draws(function, count=DRAWS):
    """Mean and standard error of `function(key)` over many keys."""
    values = jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(7), count))
    return np.asarray(values.mean(0)), np.asarray(values.std(0)) / np.sqrt(count)


def quadratic(w):
    away = w.ravel() - CENTER
    return 0.5 * away @ HESSIAN @ away


@pytest.mark.parametrize("per", ["column", "weight"])
def test_the_mean_is_the_weights(per):
    mean, error = draws(lambda key: view_of(W, per, key))
    assert np.all(np.abs(mean - W) < 5 * error)


@pytest.mark.parametrize("per", ["column", "weight"])
def test_the_mean_loss_grows_by_the_curvature_within_a_mask(per):
    """E[L] = L(w) + p / (2 (1 - p)) * sum over masks of delta_c' H_cc delta_c."""
    delta = np.asarray(W - ORIGIN, np.float64).ravel()
    groups = np.arange(12) // 3 if per == "column" else np.arange(12)
    excess = sum(
        delta[groups == c] @ np.asarray(HESSIAN)[np.ix_(groups == c, groups == c)]
        @ delta[groups == c]
        for c in set(groups.tolist())
    )  # fmt: skip
    expected = float(quadratic(W)) + RATE / (2 * (1 - RATE)) * excess
    mean, error = draws(lambda key: quadratic(view_of(W, per, key)))
    assert abs(mean - expected) < 5 * error
    assert excess * RATE / (2 * (1 - RATE)) > 20 * error  # the test could tell


@pytest.mark.parametrize("per", ["column", "weight"])
def test_the_gradient_is_the_mask_over_the_share_kept(per):
    key = jax.random.key(3)
    grad = jax.grad(lambda w: jnp.sum(view_of(w, per, key)))(W)
    kept = np.asarray(view_of(W, per, key) != ORIGIN)
    np.testing.assert_allclose(grad, kept / (1 - RATE), rtol=1e-6)
    assert 0 < kept.sum() < kept.size
    if per == "column":
        assert np.all(kept == kept[:, :1])  # one mask an input row, shared by the outputs


def test_every_axis_but_the_last_counts_inputs():
    w = jnp.ones((3, 3, 8, 5))
    mixed = np.asarray(view_of(w, "column", jax.random.key(0), 0.5, jnp.zeros_like(w)))
    assert np.all(mixed == mixed[..., :1])
    assert len(np.unique(mixed[..., 0].reshape(9, 8), axis=0)) == 9  # the taps differ


def test_where_nothing_can_change_nothing_changes():
    assert view_of(W, "column", jax.random.key(0), rate=0.0) is W
    assert view_of(W, "column", None) is W
    for per in ("column", "weight"):
        np.testing.assert_array_equal(view_of(W, per, jax.random.key(1), origin=W), W)


def test_vectors_and_fresh_leaves_pass_and_leaves_have_masks_of_their_own():
    w = {"a": W, "b": W, "bias": W[0], "head": W, "frozen": None}
    anchor = {"a": ORIGIN, "b": ORIGIN, "bias": ORIGIN[0], "head": None, "frozen": None}
    key = jax.random.key(5)
    mixed = mixout(0.5, per="weight")(w, Fixed({}, {}, anchor), key)
    assert mixed["bias"] is w["bias"]
    assert mixed["head"] is w["head"]
    assert mixed["frozen"] is None
    assert np.any(np.asarray(mixed["a"] != mixed["b"]))
    # By a checksum of the path, the same in every process, unlike Python's own hash.
    leaf_key = jax.random.fold_in(key, np.uint32(zlib.crc32(b"mixout/a")))
    kept = jax.random.bernoulli(leaf_key, 0.5, W.shape)
    np.testing.assert_array_equal(np.asarray(mixed["a"] != ORIGIN), kept)


@pytest.mark.parametrize("dose", [1.0, 4.0])
def test_the_dose_leaves_its_share_of_the_travel(dose):
    """On a diagonal quadratic the mean gradient vanishes at w0 + remaining(dose) (c - w0)."""
    curvature = jnp.asarray(RNG.uniform(0.5, 3.0, (4, 3)), jnp.float32)
    goal = ORIGIN + 1.5
    there = ORIGIN + remaining(dose) * (goal - ORIGIN)

    def grad(w, key):
        rate = mixout_rate_of(dose)
        return jax.grad(
            lambda w: 0.5 * jnp.sum(curvature * (view_of(w, "weight", key, rate) - goal) ** 2)
        )(w)

    mean, error = draws(lambda key: grad(there, key))
    assert np.all(np.abs(mean) < 5 * error + 1e-5)
    elsewhere, error = draws(lambda key: grad(ORIGIN + 0.5 * (there - ORIGIN), key))
    assert np.all(np.abs(elsewhere) > 5 * error)


def mlp(params, batch, key):
    del key
    x = jnp.tanh(batch["x"] @ params["trunk"]["kernel"] + params["trunk"]["bias"])
    return jnp.tanh(x @ params["below"]["kernel"]) @ params["head"]["kernel"]


def set_up(view):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "trunk": {"kernel": jax.random.normal(keys[0], (8, 8)), "bias": jnp.zeros(8)},
        "below": {"kernel": jax.random.normal(keys[1], (8, 8))},
        "head": {"kernel": jax.random.normal(keys[2], (8, 3))},
    }
    mask = {**jax.tree.map(lambda _: True, params), "below": {"kernel": False}}
    anchor = anchor_of(params, mask, new=["head/kernel"])
    tx = optax.sgd(0.1)
    state, fixed = init(params, mask, tx, jax.random.key(2), anchor=anchor)
    return params, state, fixed, compile_step(make_step(classification(mlp), tx, view=view))


def batch_at(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    return {"x": x, "labels": rng.integers(0, 3, 16).astype(np.int32)}


def test_the_step_trains_through_the_view():
    """A row put back has no gradient; the next update draws other rows; what is frozen stays."""
    params, state, fixed, step = set_up(mixout(0.5))
    before = np.asarray(params["below"]["kernel"]).tobytes()
    still = []
    for number in range(4):
        old = np.asarray(state.trainable["trunk"]["kernel"])
        head = np.asarray(state.trainable["head"]["kernel"])
        state, metrics = step(state, fixed, batch_at(number))
        new = np.asarray(state.trainable["trunk"]["kernel"])
        still.append(tuple(np.all(new == old, axis=1).tolist()))
        assert np.all(np.asarray(state.trainable["head"]["kernel"]) != head)
        assert np.isfinite(float(metrics["loss"]))
    assert len(set(still)) > 1
    assert any(any(rows) for rows in still)
    after = combine(state.trainable, fixed.frozen)
    assert np.asarray(after["below"]["kernel"]).tobytes() == before
    chex.assert_trees_all_equal(fixed.anchor["trunk"], params["trunk"])  # survives donation


def test_eight_devices_draw_the_masks_of_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data", None))  # weights cut by rows
    results = []
    for where in (None, "replicated", "cut"):
        _, state, fixed, step = set_up(mixout(0.5))
        for number in range(3):
            batch = batch_at(number)
            if where:
                state, fixed = jax.device_put((state, fixed), whole)
                batch = jax.device_put(batch, rows)
            if where == "cut":
                kernel = jax.device_put(state.trainable["trunk"]["kernel"], split)
                state.trainable["trunk"]["kernel"] = kernel
            state, _ = step(state, fixed, batch)
        results.append(jax.tree.map(np.asarray, state.trainable))
    chex.assert_trees_all_close(results[0], results[1], atol=1e-6)
    chex.assert_trees_all_close(results[0], results[2], atol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_that_cannot_be(rate):
    with pytest.raises(ValueError, match="share of the weights"):
        mixout(rate)


def test_what_cannot_be_mixed():
    with pytest.raises(ValueError, match="per 'row' is unknown"):
        mixout(0.5, per="row")  # type: ignore[arg-type]
    for anchor in (None, {"w": None}):
        with pytest.raises(ValueError, match="nothing to mix"):
            mixout(0.5)({"w": W}, Fixed({"w": None}, {}, anchor), jax.random.key(0))
