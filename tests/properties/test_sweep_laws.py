"""Laws of the sweep: each run is its separate twin, the shared trunk is computed once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor import add_decayed_difference, add_decayed_unanchored, anchor_of
from sftjax.core import flatten, holes
from sftjax.objectives import classification
from sftjax.train import init, linear_schedule, make_step
from sftjax.train.grid import grid, name_of, stack_settings
from sftjax.train.sweep import (
    compile_sweep_step,
    make_sweep_step,
    spread_runs,
    stack_states,
    take_run,
)

WIDTH, TRUNK, ROWS, STEPS = 16, 3, 24, 6


def params_of(seed, width=WIDTH, trunk=TRUNK):
    """Pretrained trunk and top, the same for every seed, and a head drawn by the seed."""
    keys = jax.random.split(jax.random.key(99), trunk + 1)
    size = (width, width)
    return {
        "trunk": {str(i): jax.random.normal(keys[i], size) / width**0.5 for i in range(trunk)},
        "top": jax.random.normal(keys[-1], size) / width**0.5,
        "head": jax.random.normal(jax.random.fold_in(jax.random.key(7), seed), (width, 3)) / 4,
    }


def model(params, batch, key):
    """An MLP with dropout above the trunk."""
    x = batch["x"]
    for name in sorted(params["trunk"]):
        x = jnp.tanh(x @ params["trunk"][name])
    x = jnp.tanh(x @ params["top"])
    if key is not None:
        x = x * jax.random.bernoulli(key, 0.9, x.shape) / 0.9
    return x @ params["head"]


def linear(params, batch, key):
    """Nothing but matrix products, so that they can be counted."""
    x = batch["x"]
    for name in sorted(params["trunk"]):
        x = x @ params["trunk"][name]
    return x @ params["top"] @ params["head"]


def chain_of(setting):
    unit = linear_schedule(1.0, STEPS)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        add_decayed_difference(setting["strength"]),
        add_decayed_unanchored(0.1),
        optax.scale_by_learning_rate(lambda count: setting["learning_rate"] * unit(count)),
    )


def step_of(setting):
    """A run of a setting: an ordinary step, its importance between uniform (0) and Fisher (1)."""
    inner = make_step(classification(model, dropout=True), chain_of(setting))

    def step(state, fixed, batch):
        weight = setting["importance_weight"]
        blended = jax.tree.map(lambda fisher: 1.0 - weight + weight * fisher, fixed.importance)
        return inner(state, fixed._replace(importance=blended), batch)

    return step


def start(run):
    params = params_of(run["seed"])
    mask = jax.tree.map(lambda _: False, params) | {"top": True, "head": True}
    anchor = anchor_of(params, mask, new=["head"])
    fisher = jnp.linspace(0.0, 2.0, WIDTH * WIDTH).reshape(WIDTH, WIDTH)
    importance = jax.tree.map(lambda w: None if w is None else fisher, anchor, is_leaf=holes)
    key = jax.random.key(run["seed"])
    return init(params, mask, chain_of(run), key, anchor=anchor, importance=importance)


def batch_at(number):
    rng = np.random.default_rng([3, number])
    x = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return {"x": x, "labels": rng.integers(0, 3, ROWS).astype(np.int32)}


RUNS = grid(2, strength=(0, 3, 15), learning_rate=(1e-2, 3e-2), importance_weight=(0, 1))


@functools.cache
def compiled(own_batches=False):
    return compile_sweep_step(make_sweep_step(step_of, own_batches=own_batches))


def sweep(runs, batches=batch_at, own_batches=False, spread=False):
    states, fixed = stack_states(start(run)[0] for run in runs), start(runs[0])[1]
    settings, metrics = stack_settings(runs), {}
    if spread:
        states, fixed, settings = spread_runs(states, fixed, settings)
    for number in range(STEPS):
        states, metrics = compiled(own_batches)(states, fixed, settings, batches(number))
    return states, metrics


@functools.cache
def compiled_twin(number):
    return jax.jit(step_of(RUNS[number]), donate_argnums=0)


def twin(number, batches=batch_at):
    """The same run by itself, its setting plain Python numbers."""
    (state, fixed), metrics = start(RUNS[number]), {}
    for update in range(STEPS):
        state, metrics = compiled_twin(number)(state, fixed, batches(update))
    return state, metrics


@pytest.fixture(scope="module")
def swept():
    return sweep(RUNS)


@pytest.mark.parametrize("number", [0, 3, 10, 23], ids=lambda n: name_of(RUNS[n]))
def test_each_run_equals_its_separate_twin(swept, number):
    states, metrics = swept
    state, alone = twin(number)
    ours = take_run(states, number)
    chex.assert_trees_all_close(ours.trainable, state.trainable, atol=1e-5)
    chex.assert_trees_all_close(ours.opt_state, state.opt_state, atol=1e-5)
    chex.assert_trees_all_close(take_run(metrics, number), alone, atol=1e-5, rtol=1e-5)
    assert int(ours.step) == STEPS
    assert ours.key == state.key


def test_runs_differ_in_whatever_their_settings_differ(swept):
    """The negative control of the law above: swapped runs would be noticed."""
    tops = np.asarray(swept[0].trainable["top"])
    for a in range(len(RUNS)):
        for b in range(a):
            same = {k for k in RUNS[a] if RUNS[a][k] == RUNS[b][k]}
            free = RUNS[a]["strength"] == RUNS[b]["strength"] == 0
            if free and same >= {"seed", "learning_rate"}:
                continue  # without a pull, its importance changes nothing
            assert np.abs(tops[a] - tops[b]).max() > 1e-4, (RUNS[a], RUNS[b])


def test_a_stronger_pull_stays_nearer(swept):
    away = np.linalg.norm(np.asarray(swept[0].trainable["top"]) - params_of(0)["top"], axis=(1, 2))
    for a, b in zip(RUNS[:8], RUNS[16:], strict=True):  # strength 0 and 20, else alike
        assert a == b | {"strength": 0.0}
        assert away[RUNS.index(b)] < away[RUNS.index(a)]


def test_the_order_of_the_runs_does_not_matter(swept):
    order = np.random.default_rng(0).permutation(len(RUNS))
    states, _ = sweep([RUNS[number] for number in order])
    shuffled = jax.tree.map(lambda leaf: leaf[order], swept[0].trainable)
    chex.assert_trees_all_close(states.trainable, shuffled, atol=1e-6)


@pytest.mark.parametrize("runs", [1, 8])
def test_the_trunk_is_computed_once_for_all_runs(runs):
    """T + R (2 block + 3 head): the compiler counts T blocks of trunk, whatever R is."""
    width, trunk, rows = 64, 12, 1024  # enough rows that elementwise work is below the tolerance
    params = params_of(0, width, trunk)
    mask = jax.tree.map(lambda _: False, params) | {"top": True, "head": True}
    step = make_sweep_step(
        lambda s: make_step(classification(linear), optax.sgd(s["learning_rate"]))
    )
    state, fixed = init(params, mask, optax.sgd(0.1), jax.random.key(0))
    settings = stack_settings(grid(runs, learning_rate=0.1))
    batch = {"x": np.zeros((rows, width), np.float32), "labels": np.zeros(rows, np.int32)}
    args = stack_states([state] * runs), fixed, settings, batch
    flops = compile_sweep_step(step).lower(*args).compile().cost_analysis()["flops"]
    block, head = 2 * rows * width**2, 2 * rows * width * 3
    expected = trunk * block + runs * (2 * block + 3 * head)
    print(f"R={runs}: {flops:.0f} flops, {flops / expected:.4f} of the closed form")
    assert flops == pytest.approx(expected, rel=0.1)
    if runs == 8:
        separate = runs * (trunk * block + 2 * block + 3 * head)
        assert flops < 0.4 * separate


def test_eight_devices_equal_one():
    runs = grid(4, strength=1.0, learning_rate=(1e-3, 2e-2), importance_weight=1)
    one, metrics = sweep(runs)
    eight, sharded = sweep(runs, spread=True)
    chex.assert_trees_all_close(one.trainable, eight.trainable, atol=1e-6)
    chex.assert_trees_all_close(one.opt_state, eight.opt_state, atol=1e-6)
    chex.assert_trees_all_close(metrics, sharded, atol=1e-6, rtol=1e-6)
    for leaf in jax.tree.leaves(eight.trainable):
        assert leaf.sharding.spec[0] == "runs"
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {1}


def test_runs_may_have_batches_of_their_own():
    numbers = 10, 23

    def own(number):
        one, other = batch_at(number), batch_at(1000 + number)
        return {name: np.stack([one[name], other[name]]) for name in one}

    states, _ = sweep([RUNS[number] for number in numbers], own, own_batches=True)
    for place, offset in enumerate((0, 1000)):
        alone, _ = twin(numbers[place], lambda step, offset=offset: batch_at(offset + step))
        chex.assert_trees_all_close(take_run(states, place).trainable, alone.trainable, atol=1e-5)


def test_other_values_of_a_grid_compile_nothing_anew_and_frozen_leaves_stay():
    traces = []

    def counted(setting):
        traces.append(setting)
        return make_step(classification(linear), optax.sgd(setting["learning_rate"]))

    step = compile_sweep_step(make_sweep_step(counted))
    mask = jax.tree.map(lambda _: False, params_of(0)) | {"top": True, "head": True}
    state, fixed = init(params_of(0), mask, optax.sgd(0.1), jax.random.key(0))
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(fixed.frozen)]
    for rate in (0.1, 0.01):
        states = stack_states([state] * 3)
        for number in range(2):
            settings = stack_settings(grid(3, learning_rate=rate))
            states, _ = step(states, fixed, settings, batch_at(number))
        assert set(flatten(states.trainable)) == {"top", "head"}
    assert len(traces) == 1
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(fixed.frozen)] == before


def test_a_run_that_fails_touches_no_other(swept):
    """Bitwise, in one program: the others are what they are beside a run that goes well."""
    bad = [*RUNS]
    bad[5] = RUNS[5] | {"learning_rate": 3e38}
    ill, metrics = sweep(bad)
    assert np.flatnonzero(~np.isfinite(np.asarray(metrics["loss"]))).tolist() == [5]
    well, ill = (
        jax.tree.map(lambda leaf: np.delete(leaf, 5, axis=0), states.trainable)
        for states in (swept[0], ill)
    )
    chex.assert_trees_all_equal(well, ill)
