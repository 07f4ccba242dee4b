"""Checkpoints that the recipes for labelled text can use."""

import os
from typing import Any, NamedTuple

from sftjax.core import PyTree
from sftjax.hub import LoadReport
from sftjax.models import TextEncoder
from sftjax.recipes.named_models import load_as


class LoadedEncoder(NamedTuple):
    """A pretrained encoder of text."""

    model: TextEncoder
    params: PyTree
    report: LoadReport


def load_encoder(name_or_folder: str | os.PathLike[str], **how: Any) -> LoadedEncoder:
    """Load a checkpoint of an encoder of text; `hub.load` says how.

    Raises:
      ValueError: if the checkpoint is of another kind of model.
    """
    takes = (
        "reads text with an encoder (bert, roberta, xlm-roberta, distilbert); choose a checkpoint "
        "of one of these"
    )
    return LoadedEncoder(*load_as(TextEncoder, takes, name_or_folder, **how))
