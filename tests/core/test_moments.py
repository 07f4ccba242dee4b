"""Every array of an optimizer's state has one owner or none, and moments have their clock."""

import jax
import jax.numpy as jnp
import optax
import pytest

from sftjax.core import clocks_of, flatten, owner_of

PARAMS = {"kernel": jnp.ones((2, 3)), "head": {"kernel": jnp.ones(5), "count": jnp.ones(7)}}


@pytest.mark.parametrize("tx", [
    optax.adam(1e-3),
    optax.sgd(optax.linear_schedule(1.0, 0.0, 9), momentum=0.9),
    optax.chain(optax.clip_by_global_norm(1.0), optax.lamb(1e-3)),
    optax.inject_hyperparams(optax.adamw)(1e-3),
    optax.partition({"a": optax.adam(1e-3), "b": optax.sgd(0.1)}, {"kernel": "a", "head": "b"}),
])  # fmt: skip
def test_what_has_an_owner_has_its_shape_and_all_else_is_a_scalar(tx):
    """The shapes differ, so that a wrong owner shows."""
    leaves = flatten(PARAMS)
    for where, array in flatten(tx.init(PARAMS)).items():
        owner = owner_of(where, leaves)
        assert array.shape == (leaves[owner].shape if owner else ()), where


def test_the_longest_suffix_owns_and_segments_are_whole():
    paths = {"kernel", "head/kernel"}
    assert owner_of("0/mu/head/kernel", paths) == "head/kernel"
    assert owner_of("0/mu/kernel", paths) == "kernel"
    assert owner_of("head/kernel", paths) == "head/kernel"
    assert owner_of("0/mu/my_kernel", paths) == ""
    assert owner_of("0/kernel/scale", paths) == ""


@pytest.mark.parametrize(("tx", "clocks"), [
    (optax.scale_by_adam(), {"count"}),
    (optax.adam(optax.linear_schedule(1.0, 0.0, 9)), {"0/count"}),
    (optax.chain(optax.clip_by_global_norm(1.0), optax.chain(optax.scale_by_adam())),
     {"1/0/count"}),
    (optax.chain(optax.scale_by_adam(), optax.scale_by_adam()), {"0/count", "1/count"}),
    (optax.inject_hyperparams(optax.adam)(1e-3), {"inner_state/0/count"}),
    (optax.sgd(optax.linear_schedule(1.0, 0.0, 9), momentum=0.9), set()),
    (optax.sgd(0.1), set()),
])  # fmt: skip
def test_a_clock_stands_beside_moments(tx, clocks):
    """A schedule's counter is none, and no more is a leaf that happens to be named `count`."""
    assert clocks_of(tx.init(PARAMS), flatten(PARAMS)) == clocks


def test_a_state_of_no_leaves_has_no_clock():
    state = optax.adam(1e-3).init(PARAMS)
    assert clocks_of(state, ()) == set()
    assert jax.tree.leaves(state)
