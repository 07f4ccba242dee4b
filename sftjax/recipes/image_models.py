"""Checkpoints that the recipes for pictures can use, and how pictures are prepared for them."""

import dataclasses
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.typing import DTypeLike

from sftjax.core import PyTree, flatten
from sftjax.data import Processor, processor_config, processor_of
from sftjax.hub import LoadReport
from sftjax.models import Head, ImageModel, statistics_of
from sftjax.models.image_model import IMAGE_FAMILIES
from sftjax.recipes.named_models import load_as


class LoadedImages(NamedTuple):
    """A model of images and the way to it from pixels."""

    model: ImageModel
    params: PyTree
    report: LoadReport
    processor: Processor


BESIDE = {"dinov2-small": ("decoder/**",)}
"""Asset -> its tensors that are of another model: the decoder of its package."""


def load_images_model(
    name: str,
    head: Head | None = None,
    *,
    size: int = 0,
    key: Array | None = None,
    dtype: DTypeLike | None = None,
    scratch: bool = False,
    quantize: str | None = None,
    whole: bool = False,
) -> LoadedImages:
    """Load a checkpoint of a model of images; its report holds the processor that is used.

    Args:
      name: as `hub.load` takes it, or `asset:NAME`.
      head: None for the checkpoint's own.
      size: height and width of the pictures; 0 for the checkpoint's.
      key: draws what is new.
      dtype: what the model computes in.
      scratch: draw every leaf; the report then calls all of them new.
      quantize: as in `hub.load`.
      whole: resize the whole picture instead of its middle, so that a mask fits back onto it.

    Raises:
      ValueError: if the checkpoint is no model of images, or says nothing of how pictures are
        prepared and no size is given.
    """
    ignore = BESIDE.get(name.removeprefix("asset:"), ())
    how: dict[str, Any] = {"head": head, "key": key, "quantize": quantize, "ignore": ignore}
    if dtype is not None:
        how["dtype"] = dtype
    families = ", ".join(IMAGE_FAMILIES)
    takes = f"reads pictures with one of {families}; choose a checkpoint of one of these"
    model, params, report = load_as(ImageModel, takes, name, **how)
    if report.processor is not None:
        processor = processor_of(report.processor)
    elif size:
        processor = Processor(resize=(size, size))
    else:
        raise ValueError(
            f"{name} does not say how pictures are prepared (no preprocessor_config.json); give "
            "--image-size, with ImageNet's mean and deviation"
        )
    changes: dict[str, Any] = {}
    if size and IMAGE_FAMILIES[model.family].patched and processor.size != (size, size):
        changes["image_size"] = size
    if scratch and model.family == "efficientnet":
        # Keras's 0.99 needs hundreds of updates to forget the start; torch's share is 0.1.
        changes["batch_norm_momentum"] = 0.9
    if changes:
        model, params, report = load_as(ImageModel, takes, name, config=changes, **how)
    if size:
        processor = processor.at(size)
    if whole:
        processor = processor._replace(resize=processor.size, shortest=None, crop=None)
    if scratch:
        params = jax.jit(model.init)(jax.random.key(0) if key is None else key)
        still = statistics_of(params)
        new = tuple(path for path in flatten(params) if path not in still)
        report = dataclasses.replace(report, new=new)
    report = dataclasses.replace(report, processor=processor_config(processor))
    return LoadedImages(model, params, report, processor)
