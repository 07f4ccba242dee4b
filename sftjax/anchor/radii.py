r"""TPGM: let validation data say how far each tensor may go from its anchor.

The radius $\gamma$ of every anchored tensor is learned by Adam on the validation loss of the
projected weights, which themselves stand still: once after training (`learn_radii`), or a batch
after every update (`radii_step`).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sftjax.anchor.projection import Norm, displacement_norms, project
from sftjax.core import Batch, Fixed, PyTree, combine

ValidationLoss = Callable[[PyTree, Batch], Array]
"""`(params, batch) -> ()`: the mean loss of a batch of validation rows, without randomness."""


class RadiiState(NamedTuple):
    """What the learning of radii carries from batch to batch; arrays only."""

    radii: PyTree
    """$\\gamma$, () for each anchored leaf, holes elsewhere; in the units of the weights."""
    opt_state: PyTree
    """Adam's moments of the radii."""


RadiiStep = Callable[[RadiiState, PyTree, Fixed, Batch], tuple[PyTree, RadiiState]]
"""`(state, trainable, fixed, batch) -> (projected, state)`"""


def init_radii(
    trainable: PyTree, anchor: PyTree | None, *, norm: Norm = "l2", fraction: float = 0.5
) -> RadiiState:
    r"""Start every radius at a fraction of the displacement that is there now.

    Before training the displacement, and so the radius, is 0; it then grows by at most the learning
    rate a batch.

    Args:
      trainable: the weights, holes where frozen.
      anchor: $w_0$, holes where a leaf is free.
      norm: as in `project`.
      fraction: of $\|w - w_0\|$, from 0 to 1.

    Raises:
      ValueError: if there is no anchor, or the fraction is outside 0 to 1.

    >>> w, origin = {"a": jnp.array([3.0, 4.0])}, {"a": jnp.zeros(2)}
    >>> float(init_radii(w, origin).radii["a"])
    2.5
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(
            f"fraction is {fraction}; a radius starts between 0 and 1 of what is there"
        )
    if anchor is None or not jax.tree.leaves(anchor):
        raise ValueError(
            "radii are learned around an anchor, and there is none; make one with anchor_of"
        )
    norms = displacement_norms(trainable, anchor, norm)
    radii = jax.tree.map(lambda length: fraction * length, norms)
    return RadiiState(radii, optax.scale_by_adam().init(radii))


def radii_step(
    loss: ValidationLoss, *, norm: Norm = "l2", learning_rate: float = 1e-2
) -> RadiiStep:
    r"""Return one update of the radii, pure and uncompiled, for use after each update of a run.

    $$ \gamma \leftarrow \mathrm{clip}\left(\gamma - \eta\,\mathrm{Adam}(\nabla_\gamma
       L(\Pi_\gamma(w))), 0, \|w - w_0\|\right) $$

    Args:
      loss: of the full params; the frozen ones are filled in.
      norm: as in `project`.
      learning_rate: $\eta$, in the units of a radius; compare it with `displacement_norms`.

    Returns:
      `(state, trainable, fixed, batch) -> (projected, state)`. In a loop it is
      `projected, radii = step(radii, state.trainable, fixed, batch)`, then
      `state = state._replace(trainable=projected)`.

    Raises:
      ValueError: if the learning rate is not a finite number above 0.

    >>> step = radii_step(lambda params, batch: jnp.sum((params["a"] - batch["x"]) ** 2))
    """
    if not 0.0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate is {learning_rate}; it is a finite number above 0")
    adam = optax.scale_by_adam()

    def step(
        state: RadiiState, trainable: PyTree, fixed: Fixed, batch: Batch
    ) -> tuple[PyTree, RadiiState]:
        norms = displacement_norms(trainable, fixed.anchor, norm)

        def value(radii: PyTree) -> Array:
            held = project(trainable, fixed.anchor, radii, norm)
            return loss(combine(held, fixed.frozen), batch)

        # Above the displacement a radius has no gradient and would never come back.
        radii = jax.tree.map(jnp.minimum, state.radii, norms)
        moves, opt_state = adam.update(jax.grad(value)(radii), state.opt_state)
        radii = jax.tree.map(
            lambda radius, move, length: jnp.clip(radius - learning_rate * move, 0.0, length),
            radii,
            moves,
            norms,
        )
        return project(trainable, fixed.anchor, radii, norm), RadiiState(radii, opt_state)

    return step


def learn_radii(
    loss: ValidationLoss,
    trainable: PyTree,
    fixed: Fixed,
    batches: Iterable[Batch],
    *,
    norm: Norm = "l2",
    learning_rate: float = 1e-2,
    fraction: float = 0.5,
) -> tuple[PyTree, PyTree]:
    r"""Learn the radii of a finished run on validation batches, one update a batch.

    Args:
      loss: `(params, batch) -> ()`, of the full params.
      trainable: the trained weights; they are not changed.
      fixed: the run's fixed part, with its anchor.
      batches: validation batches of one shape; the paper makes 200 updates. They must not be
        batches that the weights were trained on, where the whole displacement is best.
      norm: as in `project`.
      learning_rate: of Adam, in the units of a radius.
      fraction: of the displacement, where the radii start; a half as in the authors' code.

    Returns:
      `(projected, radii)`: the weights inside their balls, and $\gamma$ for each anchored leaf.

    Raises:
      ValueError: if there is no anchor or no batch.

    References:
      Tian et al., *Trainable Projected Gradient Method for Robust Fine-tuning*, 2023,
      arXiv:2303.10720

    >>> w, fixed = {"a": jnp.array([4.0])}, Fixed({"a": None}, {}, anchor={"a": jnp.zeros(1)})
    >>> loss = lambda params, batch: jnp.sum((params["a"] - batch["x"]) ** 2)
    >>> held, radii = learn_radii(loss, w, fixed, [{"x": 1.0}] * 300)
    >>> round(float(held["a"][0]), 2), round(float(radii["a"]), 2)
    (1.0, 1.0)
    """
    state = init_radii(trainable, fixed.anchor, norm=norm, fraction=fraction)
    step = jax.jit(radii_step(loss, norm=norm, learning_rate=learning_rate))
    projected = None
    for batch in batches:
        projected, state = step(state, trainable, fixed, batch)
    if projected is None:
        raise ValueError("there is no validation batch to learn the radii from")
    return projected, state.radii
