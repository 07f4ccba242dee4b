"""Models as Flax modules whose params have the checkpoint's own names; nothing about files."""

from sftjax.models.alike import Alike
from sftjax.models.architecture import Architecture
from sftjax.models.causal_model import CausalModel
from sftjax.models.encoder_apart import encoder_apart
from sftjax.models.head import Head
from sftjax.models.image_model import ImageModel
from sftjax.models.model import FAMILIES, Model, build
from sftjax.models.seq2seq import shift_right
from sftjax.models.seq2seq_model import Seq2SeqModel
from sftjax.models.split import Split, split
from sftjax.models.statistics import (
    Policy,
    statistics_of,
    statistics_policy,
    take_statistics,
)
from sftjax.models.tensor_rules import TENSOR_RULES
from sftjax.models.text_encoder import TextEncoder

__all__ = [
    "FAMILIES",
    "TENSOR_RULES",
    "Alike",
    "Architecture",
    "CausalModel",
    "Head",
    "ImageModel",
    "Model",
    "Policy",
    "Seq2SeqModel",
    "Split",
    "TextEncoder",
    "build",
    "encoder_apart",
    "shift_right",
    "split",
    "statistics_of",
    "statistics_policy",
    "take_statistics",
]
