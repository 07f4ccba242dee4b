"""Models as Flax modules whose params have the checkpoint's own names; nothing about files."""

from sftjax.models.architecture import Architecture
from sftjax.models.encoder_apart import encoder_apart
from sftjax.models.head import Head
from sftjax.models.model import FAMILIES, Model, build
from sftjax.models.seq2seq import shift_right
from sftjax.models.seq2seq_model import Seq2SeqModel
from sftjax.models.split import Split, split
from sftjax.models.text_encoder import TextEncoder

__all__ = [
    "FAMILIES",
    "Architecture",
    "Head",
    "Model",
    "Seq2SeqModel",
    "Split",
    "TextEncoder",
    "build",
    "encoder_apart",
    "shift_right",
    "split",
]
