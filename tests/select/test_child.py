"""Child-Tuning: masks keep expectations, counts and bits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.select.child import bernoulli_gradients, fisher_mask, only_elements

KEY = jax.random.key(0)


def bits(leaf):
    return np.asarray(leaf).view(np.uint32)


def test_each_gradient_element_is_kept_with_its_probability_and_scaled():
    keep, updates, size = 0.3, 200, 500
    tx = bernoulli_gradients(keep, KEY)
    grads = {"a": jnp.linspace(1.0, 2.0, size), "hole": None, "b": {"c": jnp.ones(size)}}

    @jax.jit
    def run(state):
        def body(state, _):
            kept, state = tx.update(grads, state)
            return state, kept

        return jax.lax.scan(body, state, None, updates)[1]

    kept = run(tx.init(grads))
    assert kept["hole"] is None
    ratio = np.asarray(kept["a"] / grads["a"])
    np.testing.assert_allclose(ratio[ratio != 0], 1 / keep, rtol=1e-6)
    share = (ratio != 0).mean()
    assert abs(share - keep) < 5 * np.sqrt(keep * (1 - keep) / ratio.size)
    # E[g m / p] = g; and no two updates, nor two leaves, share a mask.
    assert abs(ratio.mean() - 1) < 5 * np.sqrt((1 - keep) / keep / ratio.size)
    masks = ratio != 0
    assert len({mask.tobytes() for mask in masks}) == updates
    assert not np.array_equal(masks, np.asarray(kept["b"]["c"]) != 0)


def test_draws_depend_on_key_update_and_path_alone():
    grads = {"a": jnp.ones(64), "b": jnp.ones(64)}
    tx = bernoulli_gradients(0.5, KEY)
    state = tx.init(grads)
    first, state = tx.update(grads, state)
    again, _ = tx.update(grads, tx.init(grads))
    alone, _ = tx.update({"a": None, "b": grads["b"]}, tx.init(grads))
    chex.assert_trees_all_equal(first, again)
    np.testing.assert_array_equal(first["b"], alone["b"])
    following, _ = tx.update(grads, state)
    assert not np.array_equal(first["a"], following["a"])
    tx = bernoulli_gradients(0.5, jax.random.key(1))
    other, _ = tx.update(grads, tx.init(grads))
    assert not np.array_equal(first["a"], other["a"])


def test_keep_1_is_the_identity_and_a_donated_state_leaves_the_key_alone():
    key = jax.random.key(3)
    tx = bernoulli_gradients(1.0, key)
    grads = {"a": jnp.arange(4.0)}
    step = jax.jit(lambda state, grads: tx.update(grads, state)[::-1], donate_argnums=0)
    state, kept = step(tx.init(grads), grads)
    chex.assert_trees_all_equal(kept, grads)
    assert int(state.updates) == 1
    jax.random.normal(key)  # would raise, had the key been donated
    tx.init(grads)


def test_eight_devices_draw_as_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    grads = {"w": jax.random.normal(KEY, (64, 16))}
    tx = bernoulli_gradients(0.4, KEY)
    step = jax.jit(lambda grads, state: tx.update(grads, state)[0])
    one = step(grads, tx.init(grads))
    spread = jax.device_put(grads, NamedSharding(mesh, PartitionSpec("data")))
    eight = step(spread, jax.device_put(tx.init(grads), NamedSharding(mesh, PartitionSpec())))
    assert len(eight["w"].sharding.device_set) == 8
    chex.assert_trees_all_close(one, eight, atol=1e-6)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.999, 1.0])
def test_fisher_mask_takes_exactly_the_largest_share_of_all_leaves_together(keep):
    rng = np.random.default_rng(0)
    # Few distinct values, so that the edge falls among ties.
    importance = {
        "a": rng.integers(0, 5, (7, 11)).astype(np.float32),
        "b": {"c": rng.integers(2, 9, 30).astype(np.float32)},
        "new": None,
    }
    mask = fisher_mask(importance, keep)
    assert mask["new"] is None
    assert mask["a"].dtype == np.bool_
    assert mask["a"].shape == (7, 11)
    values = np.concatenate([importance["a"].ravel(), importance["b"]["c"]])
    taken = np.concatenate([mask["a"].ravel(), mask["b"]["c"]])
    assert taken.sum() == max(1, round(keep * 107))
    if not taken.all():
        assert values[taken].min() >= values[~taken].max()
    edge = values == values[taken].min()
    assert np.all(np.diff(taken[edge].astype(int)) <= 0)  # of equal ones, the first


def test_fisher_mask_keeps_at_least_one():
    assert fisher_mask({"w": jnp.zeros(5)}, 0.01)["w"].tolist() == [True] + [False] * 4


@pytest.mark.parametrize(
    "tx",
    [
        optax.adamw(0.1, weight_decay=0.5),
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)),
        optax.chain(optax.sgd(0.1), optax.add_decayed_weights(-0.01)),
    ],
    ids=["adamw", "sgd", "decay-last"],
)
def test_masked_elements_keep_their_bits_under_decay(tx):
    """The reference masks gradients only, and its decoupled decay moves masked weights."""
    rng = np.random.default_rng(1)
    start = rng.normal(size=(6, 5)).astype(np.float32)
    start[0, 0] = -0.0
    mask = rng.random((6, 5)) < 0.4
    mask[0, 0] = False
    wrapped = only_elements(tx, {"w": mask, "head": None})
    params = {"w": jnp.asarray(start), "head": jnp.ones(3)}

    def step(carry, number):
        params, state = carry
        grads = jax.tree.map(lambda leaf: leaf * 0.3 + 0.1 * number, params)
        updates, state = wrapped.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=0)
    carry = (params, wrapped.init(params))
    for number in range(20):
        carry = step(carry, float(number))
    after = np.asarray(carry[0]["w"])
    np.testing.assert_array_equal(bits(after)[~mask], bits(start)[~mask])
    assert np.all(after[mask] != start[mask])
    assert np.all(np.asarray(carry[0]["head"]) != 1.0)  # a leaf without a mask moves whole


def test_masking_gradients_alone_would_not_pass():
    """The control of the law above: the reference's order, masked gradients before AdamW."""
    w = {"w": jnp.array([1.0, 1.0])}
    tx = optax.adamw(0.1, weight_decay=0.5)
    updates, _ = tx.update({"w": jnp.array([1.0, 0.0])}, tx.init(w), w)
    assert float(updates["w"][1]) == pytest.approx(-0.05)


def test_the_elements_that_move_do_so_as_if_alone():
    """Clipping and moments know only what moves: equal to the optimizer of the moving part."""
    start, mask = jnp.arange(1.0, 7.0), np.array([True, False, True, False, False, True])
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.1))

    def run(tx, w):
        state = tx.init(w)
        for _ in range(5):
            updates, state = tx.update({"w": w["w"] * 2.0}, state, w)
            w = optax.apply_updates(w, updates)
        return w["w"]

    whole = run(only_elements(tx, {"w": mask}), {"w": start})
    np.testing.assert_allclose(whole[mask], run(tx, {"w": start[mask]}), rtol=1e-6)


def test_extra_arguments_reach_the_optimizer():
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    wrapped = only_elements(tx, {"w": np.array([True])})
    w = {"w": jnp.ones(1)}
    wrapped.update(w, wrapped.init(w), w, anchor=w, grad=w)
    assert seen.keys() == {"anchor", "grad"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bernoulli_gradients(0.0, KEY), "keep is 0.0"),
        (lambda: bernoulli_gradients(1.2, KEY), "keep is 1.2"),
        (lambda: fisher_mask({"w": np.ones(2)}, float("nan")), "keep is nan"),
        (lambda: fisher_mask({"w": None}, 0.5), "nothing to choose from"),
        (lambda: fisher_mask({"a": {"w": np.array([1.0, np.nan])}}, 0.5), "importance of a/w"),
        (lambda: fisher_mask({"w": np.array([1.0, -1.0])}, 0.5), "importance of w"),
        (lambda: init_with({"w": np.ones(3, bool)}), r"mask of w is bool\[3\], .* shape \[2\]"),
        (lambda: init_with({"w": np.ones(2)}), "mask of w is float64"),
        (lambda: init_with({"v": np.ones(2, bool)}), "mask names v"),
    ],
)
def test_masks_that_cannot_be_meant(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def init_with(mask):
    return only_elements(optax.sgd(0.1), mask).init({"w": jnp.ones(2)})
