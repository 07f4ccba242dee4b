"""The one-call optimizer: what it refuses, and a strength that is an array of a sweep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor import adamw


@pytest.mark.parametrize(("options", "message"), [
    ({"dose": 1.0, "num_steps": 9, "coupled": True}, "a coupled pull has no dose under Adam"),
    ({"dose": 1.0}, "a dose needs num_steps"),
    ({"dose": 1.0, "strength": 1.0, "num_steps": 9}, "a dose or a strength, not both"),
    ({"dose": 1.0, "strength": jnp.ones(()), "num_steps": 9}, "a dose or a strength, not both"),
    ({"strength": -1.0}, "finite number >= 0"),
    ({"strength": -1.0, "coupled": True}, "finite number >= 0"),
    ({"strength": 2e3}, "pull of 2 at update 0"),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adamw(1e-3, **options)


def test_a_coupled_strength_is_not_compared_with_the_rate():
    adamw(1e-3, strength=2e3, coupled=True)  # Adam bounds it, as it bounds the gradient


@pytest.mark.parametrize("coupled", [False, True])
def test_an_array_is_the_number_it_holds(coupled):
    w, origin = {"w": jnp.arange(4.0)}, {"w": jnp.ones(4)}
    grads = {"w": jnp.array([0.1, -0.2, 0.3, 0.0])}

    def moved(strength):
        tx = adamw(0.1, strength=strength, coupled=coupled)
        state, now = tx.init(w), w
        for _ in range(3):
            updates, state = tx.update(grads, state, now, anchor=origin)
            now = optax.apply_updates(now, updates)
        return now["w"]

    strengths = jnp.array([0.0, 0.5, 2.0])
    together = jax.jit(jax.vmap(moved))(strengths)
    for strength, found in zip(strengths.tolist(), together, strict=True):
        np.testing.assert_allclose(found, moved(strength), atol=1e-6)
