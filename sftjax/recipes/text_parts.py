"""The parts of a text model that methods of holding on need, whole or above a kept prefix."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch, Objective, PyTree
from sftjax.models import TextEncoder, split
from sftjax.objectives import Apply
from sftjax.recipes.methods import Parts
from sftjax.recipes.streams import Stream
from sftjax.recipes.trunks import embedding


def text_parts(
    model: TextEncoder,
    objective: Callable[[Apply], Objective],
    *,
    cut: int | None = None,
    held_out: Stream | None = None,
) -> Parts:
    """Return the parts of an encoder.

    Args:
      model: with the task's head.
      objective: the task's objective of any function that gives logits.
      cut: how many of the lowest blocks are computed beforehand; the batches then hold what they
        give as `hidden` (see `train.keep_prefix`). `None` computes all of them.
      held_out: batches of rows that are not trained on, for methods that learn from such.
    """
    embedder = embedding(model)
    lower, upper = split(model, 0)

    def rest(params: PyTree, h: Array, batch: Batch, key: Array | None) -> Array:
        return upper(params, {**batch, "hidden": h}, key)

    if cut is None:
        return Parts(objective, model.apply, unit(embedder.apply), lower, rest, held_out=held_out)
    upper = split(model, cut).upper
    return Parts(
        objective,
        upper,
        unit(split(embedder, cut).upper),
        lambda params, batch: batch["hidden"],
        rest,
        held_out=held_out,
    )


def unit(features: Apply) -> Apply:
    """Give features of mean square 1, so that a distance means the same for every model."""

    def scaled(params: PyTree, batch: Batch, key: Array | None) -> Array:
        found = features(params, batch, key)
        return found * jnp.reciprocal(jnp.sqrt(jnp.square(found).mean(-1, keepdims=True) + 1e-12))

    return scaled
