"""A model with another head that has no weights of its own: what a row is, whatever the task."""

import dataclasses
from typing import TypeVar

from sftjax.models import Head, ImageModel, TextEncoder

M = TypeVar("M", TextEncoder, ImageModel)


def model_with(model: M, kind: str, stage: str = "") -> M:
    """Return the same trunk with a head that has no weights of its own."""
    head = Head(kind, stage=stage)
    return dataclasses.replace(model, head=head, module=model.module.clone(head=head))


def embedding(model: TextEncoder | ImageModel) -> TextEncoder | ImageModel:
    """Return the trunk that gives one vector a row: of text the mean, of a picture its features."""
    if isinstance(model, ImageModel):
        return model_with(model, "features")
    return model_with(model, "mean")
