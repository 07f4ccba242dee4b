r"""The dose $\kappa = \lambda \sum_t \eta_t$: how strong an anchor is, whatever the learning rate.

Decoupled anchoring does $w \leftarrow w - \eta_t \lambda (w - w_0)$ at every update, so a
displacement left alone shrinks by $\prod_t (1 - \eta_t \lambda) \approx e^{-\kappa}$ over the run.
Against a constant update, what remains of the travel without an anchor is `remaining`,
$(1 - e^{-\kappa}) / \kappa$: a dose below 0.1 does nothing that can be seen, 1 leaves 0.63 of the
distance, 4 leaves a quarter.

Every other method takes the same dose: its own parameter is the one with which the same fraction
remains. Each conversion says where that is exact, and where a guide.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

Rate = float | optax.Schedule
"""A number, or a schedule of it over updates."""


def remaining(dose: float) -> float:
    r"""Return the fraction $(1 - e^{-\kappa}) / \kappa$ of the unanchored travel that remains.

    The solution of $\dot\delta = -u - \lambda \delta$ over $\kappa = \lambda \sum_t \eta_t$, over
    that with $\lambda = 0$: exact for a constant update $u$, any schedule, and small
    $\eta_t \lambda$.

    Args:
      dose: $\kappa \ge 0$, no unit.

    >>> remaining(0.0), round(remaining(1.0), 4), round(remaining(4.0), 4)
    (1.0, 0.6321, 0.2454)
    """
    _check_dose(dose)
    return -math.expm1(-dose) / dose if dose > 0.0 else 1.0


def dose_for(fraction: float) -> float:
    """Return the dose of which a fraction of the travel remains: the inverse of `remaining`.

    Args:
      fraction: in (0, 1].

    Raises:
      ValueError: if the fraction is not in (0, 1]; no finite dose leaves nothing.

    >>> round(dose_for(0.5), 4)
    1.5936
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}; what remains of the travel lies in (0, 1]")
    # Since exp(k) >= 1 + k: 1 / (1 + k) <= remaining(k) <= 1 / k.
    return _root(lambda dose: fraction - remaining(dose), 1.0 / fraction - 1.0, 1.0 / fraction)


def strength_of(
    dose: float,
    learning_rate: Rate,
    num_steps: int,
    *,
    momentum: float = 0.0,
    profile: optax.Schedule | None = None,
) -> float:
    r"""Return the strength $\lambda = \kappa\,(1 - \mu) / \sum_t \eta_t s_t$ that gives a dose.

    Exact for decoupled anchoring (any optimizer) and, on a quadratic, for SGD with or without
    heavy-ball momentum $\mu$; for coupled anchoring under Adam it is a guide, since Adam divides
    the pull by the gradient's own size. With a profile $s_t$ the total of the pull is exact, and
    what remains is a guide: a pull that acts late acts on more of the travel.

    Args:
      dose: $\kappa \ge 0$, no unit.
      learning_rate: $\eta$, or a schedule of it over updates.
      num_steps: how many updates the run makes.
      momentum: $\mu$ of SGD when the pull stands before it (coupled); 0 otherwise.
      profile: $s$, the course of the strength over updates; the strength at update t is
        $\lambda s_t$. `None` is 1 throughout.

    Raises:
      ValueError: if the dose is negative or not finite, if the run makes no update or every rate is
        zero, or if $\eta_t \lambda \ge 1$ at some update, where the pull would overshoot.

    >>> round(strength_of(1.0, 1e-3, 1000), 6)
    1.0
    """
    _check_dose(dose)
    rates = _rates(learning_rate, num_steps)
    pulls = rates / _friction(momentum)
    if profile is not None:
        pulls = pulls * _course(profile, num_steps)
    if pulls.sum() == 0.0:
        raise ValueError(
            "profile is zero at every update whose learning rate is above 0, so no strength gives "
            "the dose; let it be above 0 at one of these updates"
        )
    strength = dose / float(pulls.sum())
    _refuse_overshoot(
        strength * pulls, rates, f"dose {dose} over {num_steps} updates", "lower the dose"
    )
    return strength


def dose_of(strength: Rate, learning_rate: Rate, num_steps: int, *, momentum: float = 0.0) -> float:
    r"""Return the dose $\kappa = \sum_t \eta_t \lambda_t / (1 - \mu)$ of a raw strength.

    >>> dose_of(0.01, 2e-5, 1000)  # AdamW's usual decay in fine-tuning: a no-op
    0.0002
    """
    pulls = _rates(learning_rate, num_steps) * _course(strength, num_steps)
    return round(float(pulls.sum()) / _friction(momentum), 12)


def check_strength(
    strength: Rate, learning_rate: Rate, num_steps: int, *, momentum: float = 0.0
) -> None:
    r"""Refuse a strength, or a schedule of it, that overshoots at some update.

    Raises:
      ValueError: if it is negative or not finite, or $\eta_t \lambda_t / (1 - \mu) \ge 1$.

    >>> check_strength(lambda t: 5000.0, 1e-3, 10)
    Traceback (most recent call last):
    ValueError: this strength needs a pull of 5 at update 0, where the learning rate is 0.001: ...
    """
    rates = _rates(learning_rate, num_steps)
    pulls = rates * _course(strength, num_steps) / _friction(momentum)
    _refuse_overshoot(pulls, rates, "this strength", "lower the strength")


def strength_from(
    learning_rate: Rate,
    *,
    dose: float | None = None,
    strength: float | None = None,
    num_steps: int | None = None,
    momentum: float = 0.0,
    profile: optax.Schedule | None = None,
) -> float | None:
    r"""Return the strength that a dose or a raw strength asks for, or `None` if neither is given.

    The arguments are those of an optimizer such as `adamw`. A raw strength under a schedule is
    compared with it only where `num_steps` is known.

    Raises:
      ValueError: if both are given, a dose comes without `num_steps`, or the pull would overshoot.

    >>> round(strength_from(1e-3, dose=2.0, num_steps=1000), 6), strength_from(1e-3, strength=0.1)
    (2.0, 0.1)
    """
    if dose is not None and strength is not None:
        raise ValueError("give a dose or a strength, not both")
    if dose is not None:
        if num_steps is None:
            raise ValueError("a dose needs num_steps, the number of updates that share it")
        return strength_of(dose, learning_rate, num_steps, momentum=momentum, profile=profile)
    if strength is None:
        return None
    if not 0.0 <= strength < float("inf"):
        raise ValueError(f"strength is {strength}; a strength is a finite number >= 0")
    if num_steps is not None or not callable(learning_rate):
        course = strength if profile is None else lambda step: strength * profile(step)
        steps = 1 if num_steps is None else num_steps
        check_strength(course, learning_rate, steps, momentum=momentum)
    return strength


def importance_cap(strength: Rate, learning_rate: Rate, num_steps: int) -> float:
    r"""Return the largest importance a decoupled pull can carry: $1 / \max_t \eta_t \lambda_t$.

    At the cap one update lands on the anchor, above it the pull overshoots; see `normalized`.

    >>> round(importance_cap(2.0, 1e-2, 100), 6)
    50.0
    """
    largest = float(np.max(_rates(learning_rate, num_steps) * _course(strength, num_steps)))
    return 1.0 / largest if largest > 0.0 else float("inf")


def mixout_rate_of(dose: float) -> float:
    r"""Return mixout's rate $p = 1 - r(\kappa)$, with $r$ = `remaining`.

    On a quadratic with curvature $h_i$ along each weight, mixout adds
    $\frac{p}{2 (1 - p)} \sum h_i \delta_i^2$ in expectation, and the minimum moves to
    $(1 - p) \delta^*$. Exact there, and for one mask a weight; a guide where weights interact or
    share a mask.

    >>> round(mixout_rate_of(1.0), 4)
    0.3679
    """
    return 1.0 - remaining(dose)


def wise_ft_alpha_of(dose: float) -> float:
    r"""Return WiSE-FT's $\alpha = r(\kappa)$ in $(1 - \alpha) w_0 + \alpha w_1$, $r$ = `remaining`.

    Exact, for whatever run led to $w_1$: the interpolation keeps $\alpha$ of its travel.

    >>> round(wise_ft_alpha_of(4.0), 4)
    0.2454
    """
    return remaining(dose)


def ema_decay_of(dose: float, num_steps: int, learning_rate: Rate = 1.0) -> float:
    r"""Return the decay $d$ of an average of weights, begun at $w_0$, that keeps as much travel.

    $$ \frac{\sum_{s=1}^{T} \eta_s \left( 1 - d^{\,T - s + 1} \right)}{\sum_s \eta_s} = r(\kappa)
       \qquad \bar w_t = d\, \bar w_{t-1} + (1 - d)\, w_t, \quad \bar w_0 = w_0 $$

    Exact for a constant update, at the end of the run. The average must not be debiased: that
    would remove the very weight on $w_0$.

    Args:
      dose: $\kappa$.
      num_steps: T, how many updates the run makes, each followed by one of the average.
      learning_rate: $\eta$; a constant one has no influence.

    >>> round(ema_decay_of(1.0, 1000), 6)
    0.997513
    """
    rates, fraction = _rates(learning_rate, num_steps), remaining(dose)
    if fraction == 1.0:
        return 0.0
    updates = np.arange(num_steps, 0, -1)  # T - s + 1

    def excess(log_rate: float) -> float:
        kept = -np.expm1(-math.exp(log_rate) * updates)
        return float(rates @ kept / rates.sum()) - fraction

    return math.exp(-math.exp(_root(excess, -100.0, 6.0)))


def distillation_weight_of(dose: float) -> float:
    r"""Return the weight $1 / r(\kappa) - 1$ of a distillation loss, with $r$ = `remaining`.

    To second order distillation is $\frac{w}{2} \delta^\top F \delta$, with the Fisher $F$ of the
    reference. Where the task's curvature is the same $F$, its minimum moves to
    $\delta^* / (1 + w)$: exact on that quadratic, a guide elsewhere, and the looser the less the
    reference data look like the task's.

    >>> round(distillation_weight_of(1.0), 4)
    0.582
    """
    return 1.0 / remaining(dose) - 1.0


def _check_dose(dose: float) -> None:
    if not 0.0 <= dose < float("inf"):
        raise ValueError(f"dose is {dose}; a dose is a finite number >= 0")


def _friction(momentum: float) -> float:
    r"""Return $1 - \mu$: heavy-ball momentum multiplies the rate by its inverse."""
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum is {momentum}; it lies in [0, 1)")
    return 1.0 - momentum


def _refuse_overshoot(pulls: np.ndarray, rates: np.ndarray, subject: str, remedy: str) -> None:
    worst = int(np.argmax(pulls))
    if pulls[worst] >= 1.0:
        raise ValueError(
            f"{subject} needs a pull of {pulls[worst]:.3g} at update {worst}, where the learning "
            f"rate is {rates[worst]:.3g}: it would overshoot the anchor in one update "
            f"(eta * lambda >= 1); train for more updates or {remedy}"
        )


def _rates(learning_rate: Rate, num_steps: int) -> np.ndarray:
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a dose needs a run of at least one update")
    rates = _values(learning_rate, num_steps)
    if not np.all(np.isfinite(rates)) or rates.min() < 0 or rates.sum() == 0:
        raise ValueError(
            f"the learning rate lies between {rates.min():g} and {rates.max():g} in {num_steps} "
            "updates; it must be finite, never negative, and not always zero"
        )
    return rates


def _course(strength: Rate, num_steps: int) -> np.ndarray:
    values = _values(strength, num_steps)
    if not np.all(np.isfinite(values)) or values.min() < 0:
        raise ValueError(
            f"the strength lies between {values.min():g} and {values.max():g} in {num_steps} "
            "updates; it must be finite and never negative"
        )
    return values


def _values(rate: Rate, num_steps: int) -> np.ndarray:
    if callable(rate):
        values = np.asarray(jax.vmap(rate)(jnp.arange(num_steps)), np.float64)
        return np.broadcast_to(values, num_steps)
    return np.full(num_steps, rate, np.float64)


def _root(increasing: Callable[[float], float], low: float, high: float) -> float:
    """Halve a bracket until it is as narrow as floats are."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if increasing(middle) < 0.0 else (low, middle)
    return 0.5 * (low + high)
