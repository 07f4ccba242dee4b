"""The weight-space anchors against ridge optima and the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor.decay import add_decayed_difference, anchor_of
from sftjax.anchor.dose import dose_of
from sftjax.anchor.family import ewc, l2_init, l2_sp, recadam, sgd
from sftjax.core import Aux, Loss
from sftjax.train.step import compile_step, init, make_step

RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
HESSIAN = BASIS @ np.diag([0.5, 1.0, 2.0, 3.0, 4.0]) @ BASIS.T
CENTER, ORIGIN = RNG.normal(size=5), RNG.normal(size=5)
FISHER = np.array([0.1, 5.0, 0.0, 1.0, 2.0])


def ridge(weights):
    weights = np.diag(np.broadcast_to(weights, 5))
    return np.linalg.solve(HESSIAN + weights, HESSIAN @ CENTER + weights @ ORIGIN)


def descend(tx, steps, importance=None):
    with jax.enable_x64(True):
        hessian, center = jnp.asarray(HESSIAN), jnp.asarray(CENTER)
        anchor = {"w": jnp.asarray(ORIGIN)}
        extra = {"anchor": anchor}
        if importance is not None:
            extra["importance"] = {"w": jnp.asarray(importance)}

        def body(carry, _):
            w, state = carry
            grads = {"w": hessian @ (w["w"] - center)}
            updates, state = tx.update(grads, state, w, **extra)
            return (optax.apply_updates(w, updates), state), None

        (w, _), _ = jax.lax.scan(body, (anchor, tx.init(anchor)), length=steps)
        return np.asarray(w["w"])


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({"momentum": 0.0}, 0.7),
        ({"momentum": 0.0, "coupled": False}, 0.7),
        ({"momentum": 0.9}, 0.7),
        ({"momentum": 0.9, "nesterov": True}, 0.7),
        ({"momentum": 0.9, "coupled": False}, 0.07),  # momentum multiplies the gradient alone
        ({"momentum": 0.9, "coupled": False, "nesterov": True}, 0.07),
    ],
)
def test_sgd_reaches_the_ridge_coupled_or_not(options, reached):
    """O1, SGD: both forms, and what momentum makes of the decoupled one."""
    found = descend(sgd(0.02, strength=0.7, **options), 6000)
    np.testing.assert_allclose(found, ridge(reached), atol=1e-6)


def test_a_dose_of_sgd_is_the_same_place_coupled_or_not():
    ends = [
        descend(sgd(0.02, dose=3.0, num_steps=6000, coupled=coupled), 6000)
        for coupled in (True, False)
    ]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)
    np.testing.assert_allclose(ends[0], ridge(3.0 * 0.1 / 120.0), atol=1e-6)


@pytest.mark.parametrize(
    ("pull", "importance", "weights"),
    [
        (l2_sp(0.4), None, 0.4),
        (l2_init(0.4), None, 0.8),  # no half in the penalty
        (l2_init(lambda step: 0.4), None, 0.8),
        (ewc(0.4), FISHER, 0.4 * FISHER),  # O3
        (ewc(0.4), np.ones(5), 0.4),
    ],
    ids=["l2-sp", "l2-init", "l2-init-schedule", "ewc", "ewc-of-ones"],
)
def test_each_penalty_has_its_ridge(pull, importance, weights):
    tx = optax.with_extra_args_support(optax.chain(pull, optax.sgd(0.05)))
    np.testing.assert_allclose(descend(tx, 4000, importance), ridge(weights), atol=1e-6)


def test_ewc_does_not_go_without_its_importance():
    w, tx = {"w": jnp.ones(2)}, ewc(0.1)
    with pytest.raises(ValueError, match="EWC needs an importance"):
        tx.update(w, tx.init(w), w, anchor={"w": jnp.zeros(2)})
    updates, _ = tx.update(w, tx.init(w), w)  # no anchor at all: nothing to weigh
    np.testing.assert_array_equal(updates["w"], w["w"])


def recadam_by_hand(grads, rate, gamma, k, t0, free=False):
    """The paper's formula, one leaf, in numpy float64."""
    w, m, v = ORIGIN + 0.1, np.zeros(5), np.zeros(5)
    for t, grad in enumerate(grads):
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        adam = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        share = 1.0 if free else 1.0 / (1.0 + np.exp(-k * (t - t0)))
        w = w - rate * share * adam - rate * (1 - share) * gamma * (w - ORIGIN)
    return w


def test_recadam_is_its_formula_and_leaves_the_new_head_to_adam():
    grads = RNG.normal(size=(60, 5))
    tx = recadam(
        1e-2, num_steps=60, strength=20.0, k=0.2, t0=25, weight_decay=0.0, max_grad_norm=None
    )
    with jax.enable_x64(True):
        start = {"trunk": jnp.asarray(ORIGIN + 0.1), "head": jnp.asarray(ORIGIN + 0.1)}
        anchor, state, w = {"trunk": jnp.asarray(ORIGIN), "head": None}, tx.init(start), start
        update = jax.jit(tx.update)
        for grad in grads:
            both = {"trunk": jnp.asarray(grad), "head": jnp.asarray(grad)}
            updates, state = update(both, state, w, anchor=anchor)
            w = optax.apply_updates(w, updates)
    by_hand = recadam_by_hand(grads, 1e-2, 20.0, 0.2, 25)
    np.testing.assert_allclose(w["trunk"], by_hand, atol=1e-6)
    plain = recadam_by_hand(grads, 1e-2, 0.0, 0.2, 25, free=True)
    np.testing.assert_allclose(w["head"], plain, atol=1e-6)
    assert np.abs(by_hand - plain).max() > 1e-2


def test_recadams_dose_is_the_total_of_its_pull():
    """Without a gradient the displacement ends at the product, near exp(-dose)."""
    schedule, steps = optax.linear_schedule(1e-2, 0.0, 400), 400
    tx = recadam(schedule, num_steps=steps, dose=1.5, k=0.05)
    w, origin = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}

    def body(carry, _):
        w, state = carry
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, w), state, w, anchor=origin)
        return (optax.apply_updates(w, updates), state), None

    (end, _), _ = jax.lax.scan(body, (w, tx.init(w)), length=steps)
    np.testing.assert_allclose(end["w"], np.exp(-1.5), rtol=0.03)


def test_recadams_published_strength_at_a_hot_rate_is_refused_for_a_reason():
    """5000 at 1e-3 multiplies the displacement by -4 an update: a million in ten."""
    with pytest.raises(ValueError, match=r"eta \* lambda >= 1"):
        recadam(1e-3, num_steps=1000, strength=5000.0, t0=250)
    recadam(2e-5, num_steps=1000, strength=5000.0, t0=250)  # the paper's own
    tx = optax.chain(add_decayed_difference(5000.0), optax.scale(-1e-3))
    w, origin = {"w": jnp.ones(1)}, {"w": jnp.zeros(1)}
    state = tx.init(w)
    for _ in range(10):
        updates, state = tx.update({"w": jnp.zeros(1)}, state, w, anchor=origin)
        w = optax.apply_updates(w, updates)
    assert float(w["w"][0]) == pytest.approx(4.0**10, rel=1e-4)  # about 1e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recadam(2e-5, num_steps=1000), "needs a dose"),
        (lambda: recadam(2e-5, num_steps=200, dose=1.0, t0=250), "never take half"),
        (lambda: recadam(2e-5, num_steps=200, dose=1.0, k=0.0), "k is 0"),
        (lambda: recadam(2e-5, num_steps=0, dose=1.0), "t0 is 0"),
        (lambda: recadam(2e-5, num_steps=9, dose=1.0, strength=1.0), "not both"),
        (lambda: recadam(2e-5, num_steps=9, strength=-1.0), "strength is -1"),
        (lambda: sgd(0.01, dose=1.0), "num_steps"),
        (lambda: sgd(0.01, strength=10.0), "overshoot"),  # 0.1, times ten by momentum
        (lambda: sgd(0.01, dose=1.0, num_steps=10, momentum=1.0), "momentum is 1"),
    ],
)
def test_settings_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert dose_of(10.0, 0.01, 10) == 1.0  # decoupled, the same strength is fine
    sgd(0.01, strength=10.0, coupled=False)


def objective(params, model_state, batch, key):
    logits = jnp.tanh(batch["x"] @ params["trunk"]["kernel"]) @ params["head"]["kernel"]
    rows = batch["x"].shape[0]
    return Loss(jnp.sum((logits - batch["y"]) ** 2), float(rows)), Aux({})


def moving_parts(tx, importance=None):
    params = {
        "trunk": {"kernel": jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)},
        "head": {"kernel": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)},
    }
    mask = jax.tree.map(lambda _: True, params)
    anchor = anchor_of(params, mask, new=["head/kernel"])
    weights = jax.tree.map(jnp.ones_like, anchor) if importance else None
    state, fixed = init(params, mask, tx, jax.random.key(0), anchor=anchor, importance=weights)
    batch = {"x": RNG.normal(size=(8, 6)), "y": RNG.normal(size=(8, 2))}
    return params, state, fixed, batch


@pytest.mark.parametrize(
    ("tx", "moments", "importance"),
    [
        (sgd(0.05, strength=0.5, rates={"trunk": {"kernel": 0.5}, "head": {"kernel": 1.0}}), 1, 0),
        (sgd(0.05, strength=0.5, momentum=0.0, max_grad_norm=1.0), 0, 0),
        (recadam(1e-2, num_steps=12, dose=1.0), 2, 0),
        (optax.chain(optax.scale_by_adam(), ewc(0.5), optax.scale_by_learning_rate(0.01)), 2, 1),
    ],
    ids=["sgd", "sgd-plain", "recadam", "ewc"],
)
def test_the_anchor_is_not_in_the_state_and_survives_donation(tx, moments, importance):
    params, state, fixed, batch = moving_parts(tx, importance)
    arrays = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if jnp.ndim(leaf))
    assert arrays == moments * (6 * 4 + 4 * 2)
    before = np.asarray(fixed.anchor["trunk"]["kernel"]).tobytes()
    step = compile_step(make_step(objective, tx))
    half = None
    for number in range(12):
        if number == 6:
            half = jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))
        state, metrics = step(state, fixed, batch)
    assert np.isfinite(float(metrics["loss"]))
    assert np.asarray(fixed.anchor["trunk"]["kernel"]).tobytes() == before
    # O26: resumed from what was saved, with the anchor of the start and not the current weights.
    again = jax.tree.map(jnp.asarray, half)
    again = again._replace(key=jax.random.wrap_key_data(again.key))
    assert np.any(np.asarray(again.trainable["trunk"]["kernel"]) != params["trunk"]["kernel"])
    for _ in range(6):
        again, _ = step(again, fixed, batch)
    for a, b in zip(
        jax.tree.leaves(again.trainable), jax.tree.leaves(state.trainable), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
