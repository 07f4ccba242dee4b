r"""The dose $\kappa = \lambda \sum_t \eta_t$: how strong an anchor is, whatever the learning rate.

Decoupled anchoring does $w \leftarrow w - \eta_t \lambda (w - w_0)$ at every update, so a
displacement left alone shrinks by $\prod_t (1 - \eta_t \lambda) \approx e^{-\kappa}$ over the run.
Against gradients that keep pulling, a dose below 0.1 does nothing that can be seen, 1 roughly
halves the distance travelled, 4 quarters it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def strength_of(
    dose: float, learning_rate: float | optax.Schedule, num_steps: int, *, momentum: float = 0.0
) -> float:
    r"""Return the strength $\lambda = \kappa\,(1 - \mu) / \sum_t \eta_t$ that gives a dose.

    Exact for decoupled anchoring (any optimizer) and, on a quadratic, for SGD with or without
    heavy-ball momentum $\mu$; for coupled anchoring under Adam it is a guide, since Adam divides
    the pull by the gradient's own size.

    Args:
      dose: $\kappa \ge 0$, no unit.
      learning_rate: $\eta$, or a schedule of it over updates.
      num_steps: how many updates the run makes.
      momentum: $\mu$ of SGD when the pull stands before it (coupled); 0 otherwise.

    Raises:
      ValueError: if the dose is negative or not finite, if the run makes no update or every rate is
        zero, or if $\eta_t \lambda \ge 1$ at some update, where the pull would overshoot.

    >>> round(strength_of(1.0, 1e-3, 1000), 6)
    1.0
    """
    if not 0.0 <= dose < float("inf"):
        raise ValueError(f"dose is {dose}; a dose is a finite number >= 0")
    rates = _rates(learning_rate, num_steps)
    strength = dose * (1.0 - momentum) / float(rates.sum())
    if float(rates.max()) * strength / (1.0 - momentum) >= 1.0:
        raise ValueError(
            f"dose {dose} over {num_steps} updates needs strength {strength:.3g}, and with the "
            f"learning rate {rates.max():.3g} the pull would overshoot the anchor in one update "
            "(eta * lambda >= 1); train for more updates or lower the dose"
        )
    return strength


def dose_of(strength: float, learning_rate: float | optax.Schedule, num_steps: int) -> float:
    r"""Return the dose $\kappa = \lambda \sum_t \eta_t$ that a raw strength amounts to.

    >>> dose_of(0.01, 2e-5, 1000)  # AdamW's usual decay in fine-tuning: a no-op
    0.0002
    """
    return round(strength * float(_rates(learning_rate, num_steps).sum()), 12)


def _rates(learning_rate: float | optax.Schedule, num_steps: int) -> np.ndarray:
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a dose needs a run of at least one update")
    if callable(learning_rate):
        rates = np.asarray(jax.vmap(learning_rate)(jnp.arange(num_steps)), np.float64)
    else:
        rates = np.full(num_steps, learning_rate, np.float64)
    if not np.all(np.isfinite(rates)) or rates.min() < 0 or rates.sum() == 0:
        raise ValueError("the learning rate must be finite, never negative, and not always zero")
    return rates
