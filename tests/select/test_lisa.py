"""LISA: a few blocks at a time, the others to the bit as they were, each with its own clock."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor.adamw import adamw
from sftjax.core import flatten, nbytes
from sftjax.select.child import bernoulli_gradients
from sftjax.select.describe import describe
from sftjax.select.lisa import block_ids, drawn, lisa
from sftjax.select.rules import select

BLOCKS, EVERY, STEPS = 4, 3, 24
KEY = jax.random.key(5)


def params_of(seed=0):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layer = {str(i): {"kernel": array(3, 3), "bias": array(3)} for i in range(BLOCKS)}
    params = {"embeddings": array(5, 3), "layer": layer, "head": {"kernel": array(3, 2)}}
    params["layer"]["1"]["bias"] = params["layer"]["1"]["bias"].at[0].set(-0.0)
    return params


def gradient(params, number):
    """Depends on the leaf and the update, and not on the weights, so that runs can be compared."""
    del params
    return jax.tree.map(lambda leaf: jnp.sin(leaf * 3.0 + number) + 0.1 * number, params_of(seed=1))


def walk(tx, steps=STEPS):
    """Return the weights before each update and after the last, and the last state."""
    params = params_of()
    step = jax.jit(
        lambda params, state, number: (
            lambda made: (optax.apply_updates(params, made[0]), made[1])
        )(tx.update(gradient(params, number), state, params)),
        donate_argnums=1,
    )
    state, path = tx.init(params), [params]
    for number in range(steps):
        params, state = step(params, state, float(number))
        path.append(params)
    return [flatten(params) for params in path], state


def draws():
    return [np.asarray(drawn(KEY, update // EVERY, BLOCKS, 2)) for update in range(STEPS)]


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_inactive_blocks_keep_their_bits_and_the_others_move(moments):
    tx = lisa(
        adamw(1e-2, weight_decay=0.3), block_ids(params_of()), active=2, every=EVERY, key=KEY,
        moments=moments,
    )  # fmt: skip
    path, _ = walk(tx)
    blocks = flatten(block_ids(params_of()))
    for on, before, after in zip(draws(), path, path[1:], strict=False):
        for name, block in blocks.items():
            same = np.asarray(before[name]).tobytes() == np.asarray(after[name]).tobytes()
            assert same is (block >= 0 and not on[block])
    assert len({on.tobytes() for on in draws()}) > 1


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_each_block_is_the_optimizer_run_on_its_own_updates_alone(moments):
    """No clipping, so blocks are independent: each equals Adam over the updates it took part in."""
    tx = optax.adamw(1e-2, weight_decay=0.3)
    wrapped = lisa(tx, block_ids(params_of()), active=2, every=EVERY, key=KEY, moments=moments)
    path, _ = walk(wrapped)
    for name, block in flatten(block_ids(params_of())).items():
        weight = {"w": flatten(params_of())[name]}
        state = tx.init(weight)
        for number, on in enumerate(draws()):
            if block >= 0 and moments == "reset" and number % EVERY == 0:
                state = tx.init(weight)
            if block >= 0 and not on[block]:
                continue
            grad = {"w": flatten(gradient(None, float(number)))[name]}
            updates, state = tx.update(grad, state, weight)
            weight = optax.apply_updates(weight, updates)
        np.testing.assert_allclose(path[-1][name], weight["w"], rtol=2e-5, atol=2e-6)


def test_one_clock_for_all_would_not_pass():
    """The control: with the run's clock, a block that joins at update 1000 leaps 3.16 times."""
    adam = optax.scale_by_adam()
    grad = {"w": jnp.ones(1)}
    late = adam.init(grad)._replace(count=jnp.int32(100_000))
    assert float(adam.update(grad, late)[0]["w"][0]) == pytest.approx(3.162, rel=1e-3)


def test_a_clipped_norm_knows_active_blocks_only():
    tx = lisa(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)),
        {"layer": {"0": 0, "1": 1}}, active=1, every=1, key=KEY,
    )  # fmt: skip
    params = {"layer": {"0": jnp.zeros(4), "1": jnp.zeros(4)}}
    grads = jax.tree.map(lambda leaf: leaf + 10.0, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    norms = sorted(float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(updates))
    np.testing.assert_allclose(norms, [0.0, 1.0], atol=1e-6)


def test_a_schedule_keeps_the_time_of_the_run():
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    tx = lisa(optax.sgd(schedule), {"a": 0, "b": 1}, active=1, every=1, key=KEY)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    state, sizes = tx.init(params), []
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        sizes.append(-float(updates["a"][0] + updates["b"][0]))
    np.testing.assert_allclose(sizes, [1.0, 0.9, 0.8, 0.7, 0.6], rtol=1e-6)


def test_draws_are_a_function_of_key_and_draw_and_all_alike():
    counts = sum(np.asarray(drawn(KEY, draw, 6, 2)).astype(int) for draw in range(300))
    assert counts.sum() == 600
    assert np.all(np.abs(counts - 100) < 5 * np.sqrt(300 * (1 / 3) * (2 / 3)))
    again = jax.jit(lambda draw: drawn(KEY, draw, 6, 2))(jnp.int32(7))
    np.testing.assert_array_equal(drawn(KEY, 7, 6, 2), again)


def test_a_run_cut_in_two_is_the_same_run():
    tx = lisa(adamw(1e-2), block_ids(params_of()), active=1, every=EVERY, key=KEY)
    update = jax.jit(tx.update)

    def go(params, state, numbers):
        for number in numbers:
            updates, state = update(gradient(params, float(number)), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    whole = go(params_of(), tx.init(params_of()), range(10))
    part = go(params_of(), tx.init(params_of()), range(5))
    resumed = go(*jax.tree.map(jnp.copy, part), range(5, 10))
    chex.assert_trees_all_equal(whole[0], resumed[0])


def test_frozen_leaves_need_no_number_of_their_own():
    """The blocks of the whole tree serve a partition, if every numbered block has a leaf in it."""
    params = params_of()
    moving = {**params, "embeddings": None}
    tx = lisa(optax.adam(1e-2), block_ids(params), active=1, every=1, key=KEY)
    updates, _ = tx.update(moving, tx.init(moving), moving)
    assert updates["embeddings"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active": 0}, "active is 0; with 4 blocks"),
        ({"active": 5}, "between 1 and 4"),
        ({"every": 0}, "every is 0"),
        ({"moments": "drop"}, "'keep' or 'reset'"),
        ({"blocks": {"w": -1}}, "names no block"),
    ],
)
def test_numbers_that_cannot_be_meant(options, message):
    given = {"blocks": block_ids(params_of()), "active": 2, "every": 1, "key": KEY} | options
    with pytest.raises(ValueError, match=message):
        lisa(optax.sgd(0.1), **given)


def test_a_block_without_moving_leaves_is_refused():
    params = params_of()
    tx = lisa(optax.sgd(0.1), block_ids(params), active=1, every=1, key=KEY)
    with pytest.raises(ValueError, match="block 0 has no leaf that moves"):
        tx.init({**params, "layer": {**params["layer"], "0": {"kernel": None, "bias": None}}})
    with pytest.raises(ValueError, match="no number for extra"):
        tx.init({**params, "extra": jnp.ones(1)})


def test_eight_devices_equal_one():
    """Weights and moments dealt out over the devices; the clipped norm runs over all of them."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    layer = {str(i): {"w": jnp.arange(16.0) * (i + 1)} for i in range(3)}
    params = {"layer": layer, "head": jnp.ones(8)}
    tx = lisa(
        adamw(1e-1, max_grad_norm=0.5), block_ids(params), active=1, every=2, key=KEY,
        moments="reset",
    )  # fmt: skip

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        return optax.apply_updates(params, updates), state

    results = []
    for axes in ((), ("data",)):
        carry = jax.device_put(params, NamedSharding(mesh, PartitionSpec(*axes)))
        carry = carry, tx.init(carry)
        for _ in range(6):
            carry = step(*carry)
        results.append(jax.device_get(carry[0]))
    chex.assert_trees_all_close(*results, atol=1e-6)


def test_the_report_counts_the_moments_of_a_wrapped_optimizer():
    params = params_of()
    tx = optax.chain(
        bernoulli_gradients(0.5, KEY),
        lisa(optax.adam(1e-3), block_ids(params), active=1, every=2, key=KEY),
    )
    report = describe(params, select(params, "all"), tx=tx)
    assert report.total.optimizer_bytes == 2 * nbytes(params)
