"""Checkpoints in and out: readers, writers, name maps, tokenizers and model cards.

`load` turns a folder or a name on the Hub into a model and its params, `save` goes back to the same
layout, and everything that either decided stands in the `LoadReport`.
"""

from sftjax.core import by_rules
from sftjax.hub.card import Card, Data, Metric, card_of, render
from sftjax.hub.chat_template import ChatFiles, load_chat_files
from sftjax.hub.config import read_config
from sftjax.hub.families import WEIGHT_MAPS
from sftjax.hub.gguf_file import GgufFile
from sftjax.hub.gguf_model import convert_gguf
from sftjax.hub.growing import Grown, grow_words
from sftjax.hub.loading import Loaded, load
from sftjax.hub.names import Row, WeightMap
from sftjax.hub.outline import Outline, outline
from sftjax.hub.peft import LoadedAdapter, load_adapter, save_adapter, why_not_peft
from sftjax.hub.report import LoadReport
from sftjax.hub.saving import save
from sftjax.hub.source import find_folder
from sftjax.hub.tensor_files import TensorFile, write_tensor_file
from sftjax.hub.tokenizer import Encoded, EncodedWords, Tokenizer, load_tokenizer

__all__ = [
    "WEIGHT_MAPS",
    "Card",
    "ChatFiles",
    "Data",
    "Encoded",
    "EncodedWords",
    "GgufFile",
    "Grown",
    "LoadReport",
    "Loaded",
    "LoadedAdapter",
    "Metric",
    "Outline",
    "Row",
    "TensorFile",
    "Tokenizer",
    "WeightMap",
    "by_rules",
    "card_of",
    "convert_gguf",
    "find_folder",
    "grow_words",
    "load",
    "load_adapter",
    "load_chat_files",
    "load_tokenizer",
    "outline",
    "read_config",
    "render",
    "save",
    "save_adapter",
    "why_not_peft",
    "write_tensor_file",
]
