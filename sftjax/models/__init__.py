"""Encoders and decoders as Flax modules whose params have the checkpoint's names; no files here."""

from sftjax.models.architecture import Architecture
from sftjax.models.causal_model import CausalModel
from sftjax.models.head import Head
from sftjax.models.model import FAMILIES, Model, build
from sftjax.models.split import Split, split
from sftjax.models.text_encoder import TextEncoder

__all__ = [
    "FAMILIES",
    "Architecture",
    "CausalModel",
    "Head",
    "Model",
    "Split",
    "TextEncoder",
    "build",
    "split",
]
