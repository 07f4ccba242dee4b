r"""The family of weight-space anchors: each a line or a few on `add_decayed_difference`.

| method  | pull on $u$ | what $w_0$ is |
|---------|-------------|---------------|
| L2-SP   | $\lambda (w - w_0)$ | the pretrained weights |
| EWC     | $\lambda F (w - w_0)$ | the same, weighted by the Fisher |
| L2-init | $2 \lambda (w - w_0)$ | the weights at the start of the run |
| RecAdam | $\gamma (1 - a_t) (w - w_0)$, task update times $a_t$ | the pretrained weights |

The first three are transforms for a chain of your own; under `adamw` and `sgd` they need none:
there EWC is L2-SP with an `importance` in `Fixed`, and L2-init is twice the strength.
"""

import jax
import optax
from jax import Array

from sftjax.anchor.chain import chained
from sftjax.anchor.decay import DecayState, add_decayed_difference, add_decayed_unanchored
from sftjax.anchor.dose import strength_from
from sftjax.core import PyTree, holes


def l2_sp(strength: float | optax.Schedule) -> optax.GradientTransformation:
    r"""L2-SP, of the penalty $\frac{\alpha}{2} \|w - w_0\|^2$: the pull $\alpha (w - w_0)$.

    Args:
      strength: $\alpha$.

    References:
      Li et al., *Explicit Inductive Bias for Transfer Learning with CNNs*, 2018, arXiv:1802.01483

    >>> tx = optax.chain(l2_sp(0.1), optax.sgd(0.01, momentum=0.9))
    """
    return add_decayed_difference(strength)


def l2_init(strength: float | optax.Schedule) -> optax.GradientTransformation:
    r"""L2-init, of the penalty $\lambda \|w - w_0\|^2$, no half: the pull $2 \lambda (w - w_0)$.

    In the paper $w_0$ is the random start of every leaf. Here it is whatever the anchor holds:
    `anchor_of` leaves new leaves out unless they are not named as new.

    Args:
      strength: $\lambda$; half that of L2-SP for the same dose.

    References:
      Kumar et al., *Maintaining Plasticity in Continual Learning via Regenerative Regularization*,
      2023, arXiv:2308.11958

    >>> tx = optax.chain(l2_init(0.05), optax.sgd(0.01))
    """
    if callable(strength):
        return add_decayed_difference(lambda step: 2.0 * strength(step))
    return add_decayed_difference(2.0 * strength)


def ewc(strength: float | optax.Schedule) -> optax.GradientTransformation:
    r"""Elastic weight consolidation, of $\frac{\lambda}{2} \sum F (w - w_0)^2$: a weighted pull.

    The Fisher reaches it as `importance`, of the anchor's structure (`fisher`, `normalized`); with
    a mean of 1 the strength compares with L2-SP's, and a scalar's own dose is $\kappa F_i$.

    Args:
      strength: $\lambda$.

    Returns:
      A transform whose `update` refuses to go without an importance: it would be L2-SP in silence.

    References:
      Kirkpatrick et al., *Overcoming catastrophic forgetting in neural networks*, 2017,
      arXiv:1612.00796

    >>> tx = optax.chain(optax.scale_by_adam(), ewc(0.1), optax.scale_by_learning_rate(1e-3))
    """
    pull = add_decayed_difference(strength)

    def update(
        updates: PyTree,
        state: DecayState,
        params: PyTree | None = None,
        *,
        anchor: PyTree | None = None,
        importance: PyTree | None = None,
        **others: object,
    ) -> tuple[PyTree, DecayState]:
        if anchor is not None and importance is None:
            raise ValueError(
                "EWC needs an importance: find it with `fisher`, scale it with `normalized`, and "
                "give it to `train.init`; without one, use l2_sp"
            )
        extra = {"anchor": anchor, "importance": importance, **others}
        return pull.update(updates, state, params, **extra)  # type: ignore[call-arg]

    return optax.GradientTransformationExtraArgs(pull.init, update)  # type: ignore[arg-type]


def sgd(
    learning_rate: float | optax.Schedule,
    *,
    dose: float | None = None,
    num_steps: int | None = None,
    strength: float | None = None,
    coupled: bool = True,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.01,
    rates: PyTree | None = None,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum that decays toward the anchor: by default the setting of the L2-SP paper.

    $$ m \leftarrow \mu m + g + \lambda (w - w_0), \qquad w \leftarrow w - \eta_t r m $$

    and $\beta w$ in place of the pull on matrices without an anchor. Decoupled, both stand beside
    $m$ and not in it. On a quadratic the coupled form ends in the ridge optimum of $\lambda$, the
    decoupled one in that of $(1 - \mu) \lambda$, and the same dose is the same place in both.

    Args:
      learning_rate: $\eta$, or a schedule of it over updates.
      dose: $\kappa = \lambda \sum_t \eta_t$, over $1 - \mu$ where coupled; needs `num_steps`.
      num_steps: how many updates the run makes.
      strength: $\lambda$ itself, instead of a dose.
      coupled: let the pull pass through the momentum, as a penalty in the loss would.
      momentum: $\mu$; 0 keeps no state.
      nesterov: use Nesterov's momentum.
      weight_decay: $\beta$.
      rates: $r$, a float for each trainable leaf (`Selection.rate`); `None` is 1 everywhere.
      max_grad_norm: clip the gradient's norm over the trainable leaves; `None` never clips.

    Returns:
      A transform whose `update` takes `anchor=` (and `importance=`), as `train.make_step` gives it.

    Raises:
      ValueError: as `strength_from`.

    References:
      Li et al., *Explicit Inductive Bias for Transfer Learning with CNNs*, 2018, arXiv:1802.01483
      ($\lambda$ 0.1, $\beta$ 0.01, $\mu$ 0.9, $\eta$ 0.01 then 0.001, 9000 updates)

    >>> tx = sgd(0.01, strength=0.1)
    """
    strength = strength_from(
        learning_rate,
        dose=dose,
        strength=strength,
        num_steps=num_steps,
        momentum=momentum if coupled else 0.0,
    )
    decay = [
        l2_sp(strength) if strength else None,
        add_decayed_unanchored(weight_decay) if weight_decay else None,
    ]
    velocity = optax.trace(momentum, nesterov) if momentum else None
    links = [*decay, velocity] if coupled else [velocity, *decay]
    return chained(learning_rate, links, rates=rates, max_grad_norm=max_grad_norm)


def recadam(
    learning_rate: float | optax.Schedule,
    *,
    num_steps: int,
    dose: float | None = None,
    strength: float | None = None,
    k: float = 0.1,
    t0: float | None = None,
    weight_decay: float = 0.01,
    rates: PyTree | None = None,
    max_grad_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""RecAdam: hold to the pretrained weights first, and hand over to the task by a sigmoid.

    $$ w \leftarrow w - \eta_t r \left( a_t \frac{\hat m}{\sqrt{\hat v} + \epsilon}
       + (1 - a_t) \gamma (w - w_0) \right), \qquad a_t = \frac{1}{1 + e^{-k (t - t_0)}} $$

    on anchored leaves; the others take the plain Adam step, with decay on matrices.

    Args:
      learning_rate: $\eta$, or a schedule of it over updates.
      num_steps: how many updates the run makes.
      dose: $\kappa = \gamma \sum_t \eta_t (1 - a_t)$. A guide: the pull acts early, on a travel
        that the anneal has itself held back.
      strength: $\gamma$ itself; the paper's 5000 is meant for $\eta$ = 2e-5.
      k: slope of the sigmoid, per update; the paper tries 0.05 to 1.
      t0: the update at which the task has taken half; `None` is a quarter of the run. The paper
        tries 100 to 1000 updates.
      weight_decay: $\beta$.
      rates: $r$, a float for each trainable leaf (`Selection.rate`); `None` is 1 everywhere.
      max_grad_norm: clip the gradient's norm over the trainable leaves; `None` never clips.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: $\epsilon$.

    Returns:
      A transform whose `update` takes `anchor=` (and `importance=`), as `train.make_step` gives it.

    Raises:
      ValueError: if neither or both of dose and strength are given, $\eta_t (1 - a_t) \gamma \ge 1$
        at some update (it would diverge), or the run ends before the task has taken half.

    References:
      Chen et al., *Recall and Learn: Fine-tuning Deep Pretrained Language Models with Less
      Forgetting*, 2020, arXiv:2004.12651

    >>> tx = recadam(2e-5, num_steps=1000, strength=5000.0, t0=250)
    """
    middle = num_steps / 4 if t0 is None else t0
    if not 0.0 < k < float("inf"):
        raise ValueError(f"k is {k}; the slope of the sigmoid is a finite number > 0")
    if not 0.0 <= middle < num_steps:
        raise ValueError(
            f"t0 is {middle:g} and the run makes {num_steps} updates: the task would never take "
            "half of the step; choose t0 below num_steps"
        )
    task, recall = sigmoid_anneal(k, middle), sigmoid_anneal(-k, middle)
    gamma = strength_from(
        learning_rate, dose=dose, strength=strength, num_steps=num_steps, profile=recall
    )
    if gamma is None:
        raise ValueError("recadam needs a dose, or its gamma as a strength")
    return chained(
        learning_rate,
        [
            optax.scale_by_adam(b1, b2, eps),
            scale_anchored(task),
            add_decayed_difference(lambda step: gamma * recall(step)),
            add_decayed_unanchored(weight_decay) if weight_decay else None,
        ],
        rates=rates,
        max_grad_norm=max_grad_norm,
    )


def sigmoid_anneal(k: float, t0: float) -> optax.Schedule:
    r"""Return the schedule $1 / (1 + e^{-k (t - t_0)})$; of $-k$ it is one minus that of $k$.

    >>> float(sigmoid_anneal(0.1, 250.0)(250))
    0.5
    """
    return lambda step: jax.nn.sigmoid(k * (step - t0))


def scale_anchored(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Multiply the updates of anchored leaves by a schedule, and leave the others as they are.

    >>> import jax.numpy as jnp
    >>> tx, w = scale_anchored(lambda step: 0.5), {"trunk": jnp.ones(1), "head": jnp.ones(1)}
    >>> updates, _ = tx.update(w, tx.init(w), w, anchor={"trunk": w["trunk"], "head": None})
    >>> float(updates["trunk"][0]), float(updates["head"][0])
    (0.5, 1.0)
    """

    def update(
        updates: PyTree,
        state: DecayState,
        params: PyTree | None = None,
        *,
        anchor: PyTree | None = None,
        **others: object,
    ) -> tuple[PyTree, DecayState]:
        del params, others
        following = DecayState(optax.safe_increment(state.updates))
        if anchor is None:
            return updates, following
        factor = schedule(state.updates)

        def scale(update: Array | None, origin: Array | None) -> Array | None:
            if update is None or origin is None:
                return update
            return (update * factor).astype(update.dtype)

        return jax.tree.map(scale, updates, anchor, is_leaf=holes), following

    init = add_decayed_difference(0.0).init
    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]
