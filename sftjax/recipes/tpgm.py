"""TPGM after a run: rows held out of the training say how far each tensor may go."""

from collections.abc import Callable, Collection

import jax
from jax import Array

from sftjax.anchor import displacement_norms, learn_radii
from sftjax.core import Batch, Fixed, Objective, PyTree, combine, map_with_path, partition
from sftjax.recipes.streams import Stream
from sftjax.train import spread

STEPS = 200
"""Batches that the radii are learned from, as in the paper."""


def projecting(
    objective: Objective, held_out: Stream, moving: Collection[str]
) -> Callable[[PyTree, PyTree], PyTree]:
    """Return `(pretrained, tuned) -> projected`, which learns a radius for each tensor.

    Args:
      objective: of the run; without randomness, its mean is what the radii lower.
      held_out: batches of labelled rows that the weights were not trained on.
      moving: paths of the leaves that moved; those without a pretrained value stay as they are.
    """

    def loss(params: PyTree, batch: Batch) -> Array:
        return objective(params, {}, batch, None)[0].mean

    def finish(pretrained: PyTree, tuned: PyTree) -> PyTree:
        trainable, frozen = partition(tuned, map_with_path(lambda path, _: path in moving, tuned))
        anchor = map_with_path(lambda path, leaf: leaf if path in moving else None, pretrained)
        lengths = [float(x) for x in jax.tree.leaves(displacement_norms(trainable, anchor))]
        at = spread(held_out.at)
        held, _ = learn_radii(
            loss,
            trainable,
            Fixed(frozen, {}, anchor),
            (at(step) for step in range(STEPS)),
            # In the units of the weights: a radius can cross its whole range in 50 batches.
            learning_rate=sum(lengths) / len(lengths) / 50 or 1.0,
        )
        return combine(held, frozen)

    return finish
