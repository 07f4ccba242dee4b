"""The parts of a model of pictures that methods need, whole or above a kept prefix."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch, Objective, PyTree
from sftjax.data import Processor, augmentation
from sftjax.models import ImageModel, split
from sftjax.objectives import Apply
from sftjax.recipes.methods import Parts
from sftjax.recipes.norms import Norms
from sftjax.recipes.streams import Stream
from sftjax.recipes.text_parts import unit
from sftjax.recipes.trunks import embedding


def picture_parts(
    model: ImageModel,
    objective: Callable[[Apply], Objective],
    *,
    processor: Processor,
    statistics: str,
    cut: int | None = None,
    held_out: Stream | None = None,
) -> Parts:
    """Return the parts of a model of pictures; each takes raw pixels or normalized ones.

    Args:
      model: with the task's head.
      objective: the task's objective of any function that gives logits.
      processor: normalizes raw pixels, in the step.
      statistics: what batch norms do whose scale and bias move: frozen, adapt or recalibrate.
      cut: as in `text_parts`.
      held_out: as there.
    """
    seen = normalizing(processor)
    embedder = embedding(model)
    lower, upper = split(model, cut or 0)
    # The whole model, or what is above the cut.
    part = model if cut is None else _above(model, cut)

    def moving(params: PyTree, statistics: PyTree, batch: Batch, key: Array | None):
        return part.apply_moving(params, statistics, seen(batch), key)

    def apply(params: PyTree, batch: Batch, key: Array | None) -> Array:
        return part.apply(params, seen(batch), key)

    def features(params: PyTree, batch: Batch, key: Array | None) -> Array:
        run = embedder.apply if cut is None else split(embedder, cut).upper
        return run(params, seen(batch), key)

    def embed(params: PyTree, batch: Batch) -> Array:
        return batch["hidden"] if cut is not None else lower(params, seen(batch))

    def rest(params: PyTree, h: Array, batch: Batch, key: Array | None) -> Array:
        return upper(params, {**batch, "hidden": h}, key)

    norms = Norms(statistics, moving)
    return Parts(objective, apply, unit(features), embed, rest, held_out=held_out, norms=norms)


def normalizing(processor: Processor) -> Callable[[Batch], Batch]:
    """Return what makes raw pixels of a batch normalized ones, and leaves others as they are.

    >>> seen = normalizing(Processor((2, 2)))
    >>> seen({"pixel_values": jnp.zeros((1, 2, 2, 3), jnp.uint8)})["pixel_values"].dtype
    dtype('float32')
    """
    normalize = augmentation([], processor)

    def seen(batch: Batch) -> Batch:
        pixels = batch.get("pixel_values")
        raw = pixels is not None and jnp.issubdtype(pixels.dtype, jnp.integer)
        return normalize(None, batch) if raw else batch

    return seen


def _above(model: ImageModel, cut: int) -> ImageModel:
    return dataclasses.replace(model, module=model.module.clone(start=cut))
