"""Optimizers by name: each goes downhill, beside an anchor, in the memory that is said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor import adamw
from sftjax.core import nbytes
from sftjax.recipes.optimizers import OPTIMIZERS, scale_of

SHAPE = (256, 128)
BYTES = {  # of moments, a parameter
    "adamw": 8, "adamw-bf16": 6, "lion": 4, "lion-bf16": 2, "sgd": 4, "adafactor": 0.05,
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_downhill_in_the_memory_that_is_said(name):
    target = jax.random.normal(jax.random.key(0), SHAPE)
    tx = adamw(0.05, scale=scale_of(name, "none"), strength=0.1, weight_decay=0.0)
    params = {"w": jnp.ones(SHAPE), "frozen": None}
    anchor = {"w": jnp.ones(SHAPE), "frozen": None}
    state = jax.jit(tx.init)(params)
    assert nbytes(state) <= BYTES[name] * np.prod(SHAPE) + 100

    def loss(params):
        return jnp.mean(jnp.square(params["w"] - target))

    @jax.jit
    def update(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, anchor=anchor)
        return optax.apply_updates(params, updates), state

    before = float(loss(params))
    for _ in range(5):
        params, state = update(params, state)
    assert float(loss(params)) < before
    assert params["frozen"] is None


def test_what_is_unknown_or_has_moments_of_its_own_is_refused():
    with pytest.raises(ValueError, match="'adam8bit' is unknown; there are: adamw, adamw-bf16"):
        scale_of("adam8bit", "none")
    with pytest.raises(ValueError, match="'recadam' is an optimizer by itself"):
        scale_of("lion", "recadam")
