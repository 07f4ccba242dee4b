"""The chain that all optimizers share: clip, links, rates, step size, in this order."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor import adamw, chained, recadam, sgd

GRADS = {"trunk": jnp.array([3.0, 0.0]), "head": jnp.array([4.0, 0.0])}


def moved(tx):
    return tx.update(GRADS, tx.init(GRADS), GRADS)[0]


def test_the_norm_is_clipped_before_the_links_and_the_rates_come_after():
    found = moved(
        chained(0.1, [optax.scale(7.0)], rates={"trunk": 0.5, "head": 2.0}, max_grad_norm=1.0)
    )
    np.testing.assert_allclose(found["trunk"], [-0.1 * 0.5 * 7.0 * 0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["head"], [-0.1 * 2.0 * 7.0 * 0.8, 0.0], rtol=1e-6)


def test_what_is_left_out_leaves_no_state():
    assert len(chained(0.1, [None, optax.trace(0.9), None]).init(GRADS)) == 2
    np.testing.assert_array_equal(moved(chained(0.5, []))["head"], -0.5 * GRADS["head"])


@pytest.mark.parametrize("make", [
    lambda **given: adamw(1e-3, strength=0.1, **given),
    lambda **given: sgd(1e-3, strength=0.1, **given),
    lambda **given: recadam(1e-3, num_steps=50, strength=1.0, **given),
], ids=["adamw", "sgd", "recadam"])  # fmt: skip
def test_every_optimizer_scales_a_leaf_by_its_rate_after_its_moments(make):
    whole = moved(make(max_grad_norm=None))
    parts = moved(make(max_grad_norm=None, rates={"trunk": 0.25, "head": 1.0}))
    np.testing.assert_allclose(parts["trunk"], 0.25 * whole["trunk"], rtol=1e-6)
    np.testing.assert_array_equal(parts["head"], whole["head"])
    assert np.abs(whole["trunk"]).max() > 0
