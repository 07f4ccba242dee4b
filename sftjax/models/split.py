"""A model in two parts, cut between blocks: the lower one can be run once and its output kept."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jax import Array

from sftjax.core import Batch, PyTree
from sftjax.models.encoder import Span
from sftjax.models.head import FIRST_TOKEN, Head
from sftjax.models.image_model import ImageModel
from sftjax.models.text_encoder import TextEncoder


class Split(NamedTuple):
    """The two parts; `upper(params, {**batch, "hidden": lower(params, batch)}, key)` is the model.

    Both take the whole params and read only their own leaves.
    """

    lower: Callable[[PyTree, Batch], Array]
    """`(params, batch) -> hidden`, (B, T, D) float32, or (B, D) where the upper part reads first
    tokens alone; of a CNN (B, h, w, C). Draws no dropout."""
    upper: Callable[[PyTree, Batch, Array | None], Array]
    """`(params, batch with "hidden", key) -> output`, what the whole model gives."""


def split(model: TextEncoder | ImageModel, blocks: int) -> Split:
    """Cut a model above its lowest blocks.

    A block is what `select` numbers: a layer of a transformer, a stage of a ResNet or ConvNeXt, an
    inverted bottleneck of an EfficientNet, a convolution of a VGG.

    Args:
      model: from `build` or `hub.load`.
      blocks: how many go to the lower part; 0 leaves it the embeddings (the stem; of a VGG, the
        images), all leave the upper part the head.

    Raises:
      ValueError: if the model does not have that many, or its head reads blocks below the cut.

    >>> import jax, jax.numpy as jnp
    >>> from sftjax.models import bert, build
    >>> config = {"model_type": "bert", **dict.fromkeys(bert.SIZES, 4)}
    >>> model = build(config, Head("sequence", ("bad", "good")))
    >>> params, batch = model.init(jax.random.key(0)), {"input_ids": jnp.array([[1, 2, 3]])}
    >>> lower, upper = split(model, 3)
    >>> whole = model.apply(params, batch)
    >>> bool((upper(params, {**batch, "hidden": lower(params, batch)}, None) == whole).all())
    True
    """
    image = isinstance(model, ImageModel)
    last = model.num_blocks if image else model.architecture.num_layers
    if not 0 <= blocks <= last:
        raise ValueError(f"a model of {last} blocks cannot be cut above {blocks} of them")
    if image:
        if model.head.stage or (model.head.kind == "segment" and blocks):
            raise ValueError(
                f"a {model.head.kind!r} head that reads earlier stages needs their maps, which the "
                "part above a cut does not have; cut above 0 blocks, or keep the head's own output"
            )
        lower = dataclasses.replace(model, module=model.module.clone(stop=blocks))
        upper = dataclasses.replace(model, module=model.module.clone(start=blocks))
        return Split(lower.apply, upper.apply)
    # With every block below, what is read of their output is all that need be kept.
    kind = "first" if blocks == last and model.head.kind in FIRST_TOKEN else "hidden"
    head = Head(kind)
    lower = dataclasses.replace(
        model, head=head, module=model.module.clone(head=head, span=Span(0, blocks))
    )
    upper = dataclasses.replace(
        model, module=model.module.clone(span=Span(blocks, last, given=True))
    )
    return Split(lower.apply, upper.apply)
