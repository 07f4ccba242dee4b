"""Augmentation of pictures and their masks alike: what moves pixels moves both."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch
from sftjax.data.augment import ONE, Augment, example_keys, parsed_word, unit
from sftjax.data.processor import Processor

MOVING = ("flip", "flip-vertical")
"""Words of changes that move pixels, by decisions that the key alone makes."""
STILL = ("colour",)
"""Words of changes that leave every pixel where it is."""


def masked_augmentation(words: Sequence[str], processor: Processor) -> Augment:
    """Return changes at random of `pixel_values` (B, H, W, C) and of `labels` (B, H, W).

    Args:
      words: of `MOVING` and `STILL`, as for `augmentation`.
      processor: normalizes the result.

    Raises:
      ValueError: for a word whose change a mask cannot follow here.

    >>> augment = masked_augmentation(["flip:1"], Processor((1, 2)))
    >>> batch = {"pixel_values": jnp.array([[[[0], [255]]]], jnp.uint8).repeat(3, -1),
    ...          "labels": jnp.array([[[0, 1]]])}
    >>> out = augment(jax.random.key(0), batch)
    >>> out["labels"].tolist(), bool(out["pixel_values"][0, 0, 0, 0] > 0)
    ([[[1, 0]]], True)
    """
    changes = []
    for word in words:
        name, numbers = parsed_word(word)
        if name not in (*MOVING, *STILL):
            raise ValueError(
                f"--augment {word}: a mask follows {', '.join(MOVING)} and stays with "
                f"{', '.join(STILL)}; leave the others out"
            )
        changes.append((ONE[name][0], numbers, name in MOVING))
    mean = jnp.asarray(processor.mean, jnp.float32)
    std = jnp.asarray(processor.std, jnp.float32)

    def one(key: Array, image: Array, mask: Array) -> tuple[Array, Array]:
        for number, (change, numbers, moves) in enumerate(changes):
            own = jax.random.fold_in(key, number)
            image = change(own, image, *numbers)
            mask = change(own, mask, *numbers) if moves else mask
        return image, mask

    def augment(key: Array | None, batch: Batch) -> Batch:
        images, out = unit(batch["pixel_values"], mean, std), dict(batch)
        if key is not None and changes:
            keys = example_keys(key, batch, len(images))
            images, masks = jax.vmap(one)(keys, images, batch["labels"][..., None])
            out["labels"] = masks[..., 0]
        out["pixel_values"] = (images - mean) / std
        return out

    return augment
