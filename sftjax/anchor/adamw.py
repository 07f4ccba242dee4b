"""AdamW that decays toward the pretrained weights: the optimizer most runs want, in one call."""

import optax
from jax import Array

from sftjax.anchor.chain import chained
from sftjax.anchor.decay import add_decayed_difference, add_decayed_unanchored
from sftjax.anchor.dose import strength_from
from sftjax.core import PyTree


def adamw(
    learning_rate: float | optax.Schedule,
    *,
    dose: float | None = None,
    num_steps: int | None = None,
    strength: float | Array | None = None,
    coupled: bool = False,
    weight_decay: float = 0.01,
    rates: PyTree | None = None,
    max_grad_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    scale: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with clipping, decay toward the anchor, plain decay elsewhere, and a rate per leaf.

    $$ w \leftarrow w - \eta_t r \left( \frac{\hat m}{\sqrt{\hat v} + \epsilon}
       + \lambda (w - w_0) \right) $$

    on anchored leaves, with the rate multiplier $r$; on matrices without an anchor (a fresh head,
    or all of them when there is no anchor) $\beta w$ stands in place of $\lambda (w - w_0)$.

    Args:
      learning_rate: $\eta$, or a schedule of it over updates.
      dose: $\kappa = \lambda \sum_t \eta_t$ (see `sftjax.anchor.dose`); needs `num_steps`.
      num_steps: how many updates the run makes.
      strength: $\lambda$ itself, instead of a dose; of a sweep, a (traced) array, not checked.
      coupled: let the pull pass through Adam's normalization as part of the gradient; by strength
        alone, since what a strength does then depends on the size of the gradient.
      weight_decay: $\beta$.
      rates: $r$, a float for each trainable leaf (`Selection.rate`); `None` is 1 everywhere.
      max_grad_norm: clip the gradient's norm over the trainable leaves; `None` never clips.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: $\epsilon$.
      scale: what stands in place of Adam's moments, such as `optax.scale_by_lion()`.

    Returns:
      A transform whose `update` takes `anchor=` (and `importance=`), as `train.make_step` gives it.

    Raises:
      ValueError: if both or neither of a dose's parts are given, or the dose is impossible.

    >>> tx = adamw(1e-4, dose=1.0, num_steps=500)
    """
    if dose is not None and coupled:
        raise ValueError(
            "a coupled pull has no dose under Adam, which divides it by the size of the gradient: "
            "give a strength (0.1 is a usual one), let the pull be decoupled, or use `anchor.sgd`"
        )
    if not isinstance(strength, Array):
        strength = strength_from(
            # Adam bounds a coupled pull, which cannot overshoot: the rate is not compared with it.
            1e-30 if coupled else learning_rate,
            dose=dose,
            strength=strength,
            num_steps=num_steps,
        )
    elif dose is not None:
        raise ValueError("give a dose or a strength, not both")
    pull = None
    # An array is of a sweep: checked before it became one, and 0 in some of its runs only.
    if strength is not None and (isinstance(strength, Array) or strength > 0):
        pull = add_decayed_difference(strength)
    return chained(
        learning_rate,
        [
            pull if coupled else None,
            optax.scale_by_adam(b1, b2, eps) if scale is None else scale,
            None if coupled else pull,
            add_decayed_unanchored(weight_decay) if weight_decay else None,
        ],
        rates=rates,
        max_grad_norm=max_grad_norm,
    )
