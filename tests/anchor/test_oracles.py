"""L2-SP against closed forms (ridge, box, exponential decay), in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor import (
    adamw,
    add_decayed_difference,
    add_decayed_unanchored,
    anchor_of,
    dose_of,
    l2_sp_penalty,
    strength_of,
)

RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
HESSIAN = BASIS @ np.diag([0.5, 1.0, 1.5, 2.0, 3.0, 4.0]) @ BASIS.T
CENTER = RNG.normal(size=6)
ORIGIN = RNG.normal(size=6)
RIDGE_STRENGTH = 0.7


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def descend(tx, steps, origin=ORIGIN, importance=None, start=ORIGIN):
    """Minimize the quadratic of HESSIAN and CENTER from `start`; return where it ends."""
    hessian, center = jnp.asarray(HESSIAN), jnp.asarray(CENTER)
    anchor = {"w": jnp.asarray(origin, jnp.float64)}
    weights = None if importance is None else {"w": jnp.asarray(importance)}
    w = {"w": jnp.asarray(start, jnp.float64)}

    def body(carry, _):
        w, state = carry
        grads = {"w": hessian @ (w["w"] - center)}
        updates, state = tx.update(grads, state, w, anchor=anchor, importance=weights)
        return (optax.apply_updates(w, updates), state), None

    (w, _), _ = jax.lax.scan(body, (w, tx.init(w)), length=steps)
    return np.asarray(w["w"])


def ridge(strength, importance=1.0):
    weights = np.diag(np.broadcast_to(strength * np.asarray(importance), 6))
    return np.linalg.solve(HESSIAN + weights, HESSIAN @ CENTER + weights @ ORIGIN)


def decayed(chain, strength=RIDGE_STRENGTH):
    return optax.with_extra_args_support(
        optax.chain(
            *[add_decayed_difference(strength) if part == "pull" else part for part in chain]
        )
    )


@pytest.mark.parametrize(
    ("chain", "steps"),
    [
        (["pull", optax.sgd(0.1)], 2000),
        (["pull", optax.sgd(0.05, momentum=0.9)], 2000),
        (
            ["pull", optax.scale_by_adam(), optax.scale_by_schedule(lambda t: -0.5 / (t + 10))],
            60000,
        ),
    ],
    ids=["sgd", "momentum", "adam-coupled"],
)
def test_coupled_reaches_the_ridge(chain, steps):
    np.testing.assert_allclose(descend(decayed(chain), steps), ridge(RIDGE_STRENGTH), atol=1e-4)


def test_the_penalty_in_the_loss_is_the_coupled_pull():
    w, origin = {"w": jnp.asarray(CENTER)}, {"w": jnp.asarray(ORIGIN)}
    grad = jax.grad(lambda w: 0.3 * l2_sp_penalty(w, origin))(w)
    zero = jax.tree.map(jnp.zeros_like, w)
    tx = add_decayed_difference(0.3)
    pull, _ = tx.update(zero, tx.init(w), w, anchor=origin)
    np.testing.assert_allclose(grad["w"], pull["w"], rtol=1e-6)
    at_origin = jax.grad(lambda w: l2_sp_penalty(w, origin))(origin)
    assert np.all(np.asarray(at_origin["w"]) == 0.0)  # not NaN


def test_importance_gives_the_weighted_ridge():
    fisher = np.array([0.1, 5.0, 0.0, 1.0, 2.0, 10.0])
    tx = decayed(["pull", optax.sgd(0.05)], 0.4)
    found = descend(tx, 4000, importance=fisher)
    np.testing.assert_allclose(found, ridge(0.4, fisher), atol=1e-6)


@pytest.mark.parametrize("strength", [2.0, 20.0])
def test_decoupled_adam_stays_in_its_box_and_is_not_the_ridge(strength):
    """Full-batch decoupled Adam solves min L subject to |w - w0|_inf <= 1/strength."""
    steps = 80000
    tx = decayed(
        [
            optax.scale_by_adam(),
            "pull",
            optax.scale_by_learning_rate(optax.cosine_decay_schedule(1e-2, steps)),
        ],
        strength,
    )
    found = descend(tx, steps)
    assert np.abs(found - ORIGIN).max() <= 1 / strength + 1e-3
    inside = box_optimum(1 / strength)
    assert np.abs(found - inside).max() < 5e-3
    assert np.abs(found - ridge(strength)).max() > 10 * np.abs(found - inside).max()


def box_optimum(radius):
    w = ORIGIN.copy()
    for _ in range(20000):  # projected gradient descent
        w = np.clip(w - 0.2 * HESSIAN @ (w - CENTER), ORIGIN - radius, ORIGIN + radius)
    return w


@pytest.mark.parametrize("dose", [0.1, 1.0, 4.0])
def test_without_gradient_the_displacement_decays_by_the_dose(dose):
    schedule = optax.linear_schedule(1e-2, 0.0, 400)
    tx = adamw(schedule, dose=dose, num_steps=400, weight_decay=0.0)
    w, origin = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
    state = tx.init(w)
    update = jax.jit(tx.update)
    strength = strength_of(dose, schedule, 400)
    product = np.prod([1 - float(schedule(t)) * strength for t in range(400)])
    for _ in range(400):
        updates, state = update(jax.tree.map(jnp.zeros_like, w), state, w, anchor=origin)
        w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(w["w"], product, rtol=1e-6)
    np.testing.assert_allclose(product, np.exp(-dose), rtol=0.03 * dose)


def test_dose_and_strength_are_inverse():
    schedule = optax.cosine_decay_schedule(3e-4, 777)
    assert dose_of(strength_of(1.7, schedule, 777), schedule, 777) == pytest.approx(1.7)


def test_sgd_travel_on_a_quadratic_depends_on_the_dose_alone():
    """Ten times the rate for a tenth of the updates: the same dose keeps the same displacement."""
    slow = strength_of(2.0, 1e-3, 5000)
    fast = strength_of(2.0, 1e-2, 500)
    ends = [
        descend(decayed([optax.identity(), "pull", optax.scale(-rate)], strength), steps)
        for rate, strength, steps in [(1e-3, slow, 5000), (1e-2, fast, 500)]
    ]
    np.testing.assert_allclose(ends[0], ends[1], atol=2e-2)


def test_new_leaves_are_not_anchored_and_decay_plainly():
    params = {"trunk": {"w": jnp.ones((2, 2))}, "head": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}
    mask = jax.tree.map(lambda _: True, params)
    anchor = anchor_of(params, mask, new=["head/w", "head/b"])
    assert anchor["head"] == {"w": None, "b": None}
    assert anchor["trunk"]["w"] is params["trunk"]["w"]
    tx = optax.chain(add_decayed_difference(1.0), add_decayed_unanchored(0.5))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params, anchor=anchor)
    assert float(jnp.sum(updates["trunk"]["w"])) == 0.0  # at its anchor
    np.testing.assert_allclose(updates["head"]["w"], 0.5)
    np.testing.assert_allclose(updates["head"]["b"], 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adamw(1e-3, dose=1.0), "num_steps"),
        (lambda: adamw(1e-3, dose=1.0, strength=1.0, num_steps=5), "not both"),
        (lambda: adamw(1e-3, dose=-1.0, num_steps=5), "dose is -1"),
        (lambda: adamw(1e-3, strength=float("nan")), "strength is nan"),
        (lambda: adamw(1e-3, dose=10.0, num_steps=5), "overshoot"),
        (lambda: adamw(0.0, dose=1.0, num_steps=5), "not always zero"),
        (lambda: strength_of(1.0, 1e-3, 0), "at least one update"),
    ],
)
def test_doses_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_anchor_needs_a_pretrained_leaf_that_moves():
    params = {"trunk": jnp.ones(2), "head": jnp.ones(2)}
    with pytest.raises(ValueError, match="no leaf can be anchored"):
        anchor_of(params, {"trunk": False, "head": True}, new=["head"])
    with pytest.raises(ValueError, match="matches no leaf"):
        anchor_of(params, {"trunk": True, "head": True}, exclude=["norm"])
