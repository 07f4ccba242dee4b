"""One dose, one meaning: the fraction of the unanchored travel that remains."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor.dose import (
    check_strength,
    distillation_weight_of,
    dose_for,
    dose_of,
    ema_decay_of,
    importance_cap,
    mixout_rate_of,
    remaining,
    strength_from,
    strength_of,
    wise_ft_alpha_of,
)

DOSES = [0.01, 0.3, 1.0, 4.0, 20.0]
SCHEDULES = [1e-3, optax.linear_schedule(1e-3, 0.0, 2000), optax.cosine_decay_schedule(2e-3, 2000)]


@functools.cache
def rates_of(schedule, steps=2000):
    if not callable(schedule):
        return np.full(steps, schedule)
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)), np.float64)


def test_remaining_in_numbers():
    assert [round(remaining(dose), 3) for dose in (0.01, 1.0, 4.0)] == [0.995, 0.632, 0.245]
    assert remaining(0.0) == 1.0
    for tiny in (1e-300, 1e-16, 1e-8, 1e-4):  # the series 1 - k/2 + k^2/6
        assert remaining(tiny) == pytest.approx(1 - tiny / 2 + tiny**2 / 6, rel=1e-15, abs=1e-12)
    assert remaining(1e6) == pytest.approx(1e-6)


@pytest.mark.parametrize("dose", [1e-6, *DOSES, 1e4])
def test_dose_for_is_the_inverse(dose):
    assert dose_for(remaining(dose)) == pytest.approx(dose, rel=1e-9)


@pytest.mark.parametrize("dose", DOSES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["constant", "linear", "cosine"])
def test_decoupled_pull_keeps_the_fraction_under_a_constant_update(dose, schedule):
    rates, strength = rates_of(schedule), strength_of(dose, schedule, 2000)
    away = 0.0
    for rate in rates:
        away -= rate * (1.0 + strength * away)
    assert -away / rates.sum() == pytest.approx(remaining(dose), rel=0.02)


@pytest.mark.parametrize("dose", DOSES[:4])
def test_heavy_ball_momentum_keeps_the_fraction(dose):
    """Coupled needs the strength that momentum multiplies; decoupled the plain one."""
    for coupled in (True, False):
        strength = strength_of(dose, 1e-4, 20000, momentum=0.9 if coupled else 0.0)
        travels = []
        for pull in (strength, 0.0):
            away = trace = 0.0
            for _ in range(20000):
                trace = 0.9 * trace + 1.0 + (pull * away if coupled else 0.0)
                away -= 1e-4 * (trace + (0.0 if coupled else pull * away))
            travels.append(away)
        assert travels[0] / travels[1] == pytest.approx(remaining(dose), rel=0.02)


@pytest.mark.parametrize("dose", [0.0, *DOSES])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["constant", "linear", "cosine"])
def test_ema_keeps_the_fraction_exactly(dose, schedule):
    rates, decay = rates_of(schedule), ema_decay_of(dose, 2000, schedule)
    away = mean = 0.0
    for rate in rates:
        away += rate
        mean = decay * mean + (1 - decay) * away
    assert mean / away == pytest.approx(remaining(dose), rel=1e-6)
    assert 0.0 <= decay < 1.0


def test_ema_of_one_update_and_of_many():
    assert ema_decay_of(1.0, 1) == pytest.approx(1 - remaining(1.0))
    updates = np.arange(1, 10**4 + 1)
    assert np.mean(1 - ema_decay_of(2.0, 10**4) ** updates) == pytest.approx(remaining(2.0))


@pytest.mark.parametrize("dose", DOSES)
def test_methods_with_a_closed_optimum_keep_the_fraction(dose):
    rng = np.random.default_rng(0)
    curvature, goal = rng.uniform(0.5, 4.0, 6), rng.normal(size=6)  # of 1/2 sum h (d - c)^2
    fraction = remaining(dose)
    p = mixout_rate_of(dose)
    masks = np.array([0.0, 1.0])[:, None]  # both outcomes, and the expected loss's gradient
    mixed = masks * (fraction * goal) / (1 - p)
    slope = np.array([p, 1 - p]) @ (curvature * (mixed - goal) * masks / (1 - p))
    np.testing.assert_allclose(slope, 0.0, atol=1e-9)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    hessian, weight = basis @ np.diag(curvature) @ basis.T, distillation_weight_of(dose)
    np.testing.assert_allclose(
        np.linalg.solve(hessian + weight * hessian, hessian @ goal), fraction * goal, rtol=1e-9
    )
    assert wise_ft_alpha_of(dose) == fraction


def test_no_dose_is_no_method():
    assert mixout_rate_of(0.0) == ema_decay_of(0.0, 10) == distillation_weight_of(0.0) == 0.0
    assert wise_ft_alpha_of(0.0) == 1.0


def test_a_profile_shares_the_dose_out():
    schedule = optax.linear_schedule(1e-3, 0.0, 500)
    profile = optax.linear_schedule(1.0, 0.0, 500)
    strength = strength_of(0.2, schedule, 500, profile=profile)
    assert dose_of(lambda t: strength * profile(t), schedule, 500) == pytest.approx(0.2, rel=1e-6)
    assert strength > strength_of(0.2, schedule, 500)
    assert importance_cap(2.0, schedule, 500) == pytest.approx(500.0, rel=1e-6)
    assert importance_cap(0.0, schedule, 500) == math.inf


def test_published_settings_in_numbers():
    """Section 0 of the survey: what the usual strengths amount to."""
    linear = optax.linear_schedule(2e-5, 0.0, 1000)
    assert dose_of(0.01, linear, 1000) == pytest.approx(1e-4, rel=1e-2)
    assert dose_of(1e-3, optax.linear_schedule(2e-5, 0.0, 234), 234) == pytest.approx(2.3e-6, 0.03)
    steps = optax.piecewise_constant_schedule(0.01, {6000: 0.1})
    assert dose_of(0.1, steps, 9000, momentum=0.9) == pytest.approx(63.0, rel=1e-5)
    assert dose_of(0.01, 1e-3, 10000, momentum=0.9) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: remaining(-0.1), "dose is -0.1"),
        (lambda: remaining(float("nan")), "dose is nan"),
        (lambda: dose_for(0.0), "fraction is 0.0"),
        (lambda: dose_for(1.1), "fraction is 1.1"),
        (lambda: mixout_rate_of(float("inf")), "dose is inf"),
        (lambda: ema_decay_of(1.0, 0), "at least one update"),
        (lambda: strength_of(1.0, 1e-3, 10, momentum=1.0), "momentum is 1.0"),
        (lambda: strength_of(1.0, 1e-3, 10, profile=lambda t: 0.0), "profile is zero"),
        (lambda: strength_of(1.0, 1e-3, 10, profile=lambda t: -1.0), "never negative"),
        # all of the dose in one update overshoots, where shared out it would not
        (lambda: strength_of(2.0, 1e-3, 50, profile=lambda t: 1.0 * (t == 3)), "at update 3"),
        (lambda: check_strength(5000.0, 1e-3, 10), "pull of 5 at update 0"),
        (lambda: check_strength(lambda t: 300.0 * t, 1e-3, 10), "at update 9"),
        (lambda: check_strength(100.0, 1e-3, 10, momentum=0.9), r"eta \* lambda >= 1"),
        (lambda: strength_from(1e-3, dose=1.0), "num_steps"),
        (lambda: strength_from(1e-3, dose=1.0, strength=1.0), "not both"),
        (lambda: strength_from(1e-3, strength=-1.0), "strength is -1"),
        (lambda: strength_from(1e-3, strength=1000.0), "overshoot"),
        (lambda: strength_from(SCHEDULES[1], strength=1000.0, num_steps=9), "overshoot"),
    ],
)
def test_doses_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_anchor_is_asked_for_with_nothing():
    assert strength_from(1e-3) is None
    assert strength_from(1e-3, strength=0.0) == 0.0
    assert strength_from(1e-3, dose=0.0, num_steps=5) == 0.0
