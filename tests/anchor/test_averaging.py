"""Averages of the weights: what stays on the start, plain means, new leaves, donation, resume."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor.averaging import AverageState, averaged, ema_of_weights, swa
from sftjax.core import Aux, Loss, flatten
from sftjax.train import Saved, compile_step, init, make_step, open_checkpoints


def follow(tx, path, anchor=None, start=0.0):
    """Drive a leaf along a path of weights; return the average after each update."""
    w = {"w": jnp.asarray([start])}
    state = tx.init(w)
    update = jax.jit(tx.update)
    averages = []
    for value in path:
        updates = {"w": jnp.asarray([value]) - w["w"]}
        same, state = update(updates, state, w, anchor=anchor)
        chex.assert_trees_all_equal(same, updates)
        w = optax.apply_updates(w, updates)
        averages.append(float(averaged(state, w)["w"][0]))
    return averages


@pytest.mark.parametrize(("decay", "steps"), [(0.9, 30), (0.99, 200), (0.0, 3)])
def test_the_weight_on_the_start_is_the_decay_to_the_power_of_the_updates(decay, steps):
    """O14: start at 1, jump to 0 and stay there."""
    with jax.enable_x64(True):
        found = follow(ema_of_weights(decay), [0.0] * steps, start=1.0)
        np.testing.assert_allclose(found, decay ** np.arange(1, steps + 1), rtol=1e-12)


def test_without_updates_the_average_is_the_start_to_the_last_bit():
    """O14; the debiased form, which divides by 1 - d^t, would be ten times too large at first."""
    w = {"w": jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.float32)}
    tx = ema_of_weights(0.9)
    state = tx.init(w)
    for _ in range(20):
        _, state = tx.update(jax.tree.map(jnp.zeros_like, w), state, w)
    chex.assert_trees_all_equal(averaged(state, w), w)


@pytest.mark.parametrize("options", [{"new": ["w"]}, {}])
def test_a_new_leaf_keeps_nothing_of_its_random_start(options):
    anchor = {"w": None} if not options else None
    path = np.random.default_rng(0).normal(size=40)
    near, far = (
        follow(ema_of_weights(0.9, **options), path, anchor, start) for start in (0.0, 1e6)
    )
    np.testing.assert_allclose(near, far, atol=0.3)  # 1e6 - 1e6 in float32 leaves rounding
    with jax.enable_x64(True):
        near, far = (
            follow(ema_of_weights(0.9, **options), path, anchor, start) for start in (0.0, 1e6)
        )
    np.testing.assert_allclose(near, far, atol=1e-9)
    np.testing.assert_allclose(near[:9], np.cumsum(path)[:9] / np.arange(1, 10), atol=1e-9)


@pytest.mark.parametrize(("start", "every"), [(1, 1), (4, 1), (5, 3), (20, 7)])
def test_swa_is_the_plain_mean_of_what_it_takes(start, every):
    with jax.enable_x64(True):
        path = np.random.default_rng(0).normal(size=30)
        found = follow(swa(start, every), path, start=9.0)
    for count, average in enumerate(found, start=1):
        taken = path[start - 1 : count : every] if count >= start else path[count - 1 : count]
        assert average == pytest.approx(taken.mean(), abs=1e-12)


def objective(params, model_state, batch, key):
    error = batch["x"] @ params["trunk"] @ params["head"]
    return Loss(jnp.sum((error - 1.0) ** 2), jnp.float32(len(batch["x"]))), Aux({})


def set_up(tx):
    rng = np.random.default_rng(0)
    params = {
        "trunk": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) / 2,
        "head": jnp.asarray(rng.normal(size=(4, 1)), jnp.float32),
        "unused": jnp.ones(3),
    }
    moves = {"trunk": True, "head": True, "unused": False}
    anchor = {"trunk": params["trunk"], "head": None, "unused": None}
    state, fixed = init(params, moves, tx, jax.random.key(0), anchor=anchor)
    batch = {"x": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)}
    return params, state, fixed, batch


CHAINS = {
    "ema": lambda: optax.chain(optax.adam(1e-2), ema_of_weights(0.9)),
    "ema-nested": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.chain(optax.sgd(0.1), optax.chain(ema_of_weights(0.9))),
    ),
    "ema-swept": lambda: optax.chain(
        optax.adam(1e-2), optax.inject_hyperparams(ema_of_weights)(decay=0.9)
    ),
    "swa-early": lambda: optax.chain(optax.adam(1e-2), swa(start=3, every=2)),
    "swa-not-yet": lambda: optax.chain(optax.adam(1e-2), swa(start=100)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_in_the_donated_step_the_average_is_that_of_the_iterates(name):
    tx = CHAINS[name]()
    params, state, fixed, batch = set_up(tx)
    step = compile_step(make_step(objective, tx))
    iterates = []
    for _ in range(8):
        state, _ = step(state, fixed, batch)
        iterates.append(jax.tree.map(np.asarray, state.trainable))
    found = averaged(state.opt_state, state.trainable)
    assert set(flatten(found)) == {"trunk", "head"}
    if name.startswith("ema"):
        trunk, head = np.asarray(params["trunk"]), 0.0
        for count, w in enumerate(iterates, start=1):
            trunk = 0.9 * trunk + 0.1 * w["trunk"]
            head = head + max(0.1, 1 / count) * (w["head"] - head)
    else:
        taken = iterates[2::2] if name == "swa-early" else iterates[-1:]
        trunk, head = (np.mean([w[path] for w in taken], axis=0) for path in ("trunk", "head"))
    np.testing.assert_allclose(found["trunk"], trunk, atol=1e-6)
    np.testing.assert_allclose(found["head"], head, atol=1e-6)
    # The training itself is that of the chain without the average, and the params survive.
    assert float(params["trunk"].sum()) == float(fixed.anchor["trunk"].sum())


def test_the_average_does_not_change_the_run():
    trained = []
    for tx in (optax.adam(1e-2), optax.chain(optax.adam(1e-2), ema_of_weights(0.5))):
        _, state, fixed, batch = set_up(tx)
        step = compile_step(make_step(objective, tx))
        for _ in range(5):
            state, _ = step(state, fixed, batch)
        trained.append(state.trainable)
    chex.assert_trees_all_equal(*trained)


def test_masked_leaves_are_taken_from_the_weights():
    tx = optax.chain(optax.sgd(0.1), optax.masked(swa(start=1), {"a": True, "b": False}))
    w = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates, state = tx.update(w, tx.init(w), w)
    w = {**optax.apply_updates(w, updates), "b": jnp.full(2, 7.0)}
    found = averaged(state, w)
    np.testing.assert_allclose(found["a"], 0.9)
    np.testing.assert_array_equal(found["b"], w["b"])


def test_the_state_holds_trainable_leaves_only_and_a_checkpoint_resumes_it(tmp_path):
    tx = CHAINS["ema"]()
    _, state, fixed, batch = set_up(tx)
    step = compile_step(make_step(objective, tx))
    for _ in range(4):
        state, _ = step(state, fixed, batch)
    nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, AverageState))
    (average,) = (node for node in nodes if isinstance(node, AverageState))
    assert set(flatten(average.average)) == {"trunk", "head"}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Saved(state, None, {}))
    for _ in range(4):
        state, _ = step(state, fixed, batch)
    with open_checkpoints(tmp_path) as checkpoints:
        found = checkpoints.latest(set_up(tx)[1])
    resumed = found.state
    for _ in range(4):
        resumed, _ = step(resumed, fixed, batch)
    chex.assert_trees_all_equal(
        averaged(state.opt_state, state.trainable), averaged(resumed.opt_state, resumed.trainable)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: ema_of_weights(1.0), "decay is 1.0"),
        (lambda w: ema_of_weights(-0.1), "decay is -0.1"),
        (lambda w: ema_of_weights(new=["heads"]).init(w), "'heads' matches no trainable leaf"),
        (lambda w: swa(start=0), "start is 0"),
        (lambda w: swa(start=1, every=0), "every is 0"),
        (lambda w: averaged(optax.adam(1.0).init(w), w), "holds 0 averages"),
        (
            lambda w: averaged(optax.chain(swa(1), ema_of_weights()).init(w), w),
            "holds 2 averages",
        ),
        (lambda w: swa(1).update(w, swa(1).init(w)), "swa needs the params"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call({"head": jnp.ones(2)})
