"""From files and TFDS to batches: tables, labels, tokens, and a position that is the step."""

from typing import TYPE_CHECKING, Any

from sftjax.data.assets import ASSETS, Asset, cache_folder, fetch
from sftjax.data.augment import Augment, augmentation
from sftjax.data.batches import Batches, bucket_lengths
from sftjax.data.chat import Audit, Chat, ChatTokenizer, check_vocabulary, encode_chat
from sftjax.data.conversation import Conversation, conversations
from sftjax.data.decode import Crop, Slice, UnreadableImage, decode
from sftjax.data.decoders import decoders
from sftjax.data.encoded import Encoded, pack
from sftjax.data.holdout import hold_out
from sftjax.data.image_arrays import read_idx
from sftjax.data.image_sources import image_splits, read_images
from sftjax.data.images import Corrupt, ImageBatches, Images, load_images
from sftjax.data.labels import Labels, classes, multi_label, regression, token_labels
from sftjax.data.leaks import Leak, leaks, refuse_leaks
from sftjax.data.packed_pairs import PackedPairs
from sftjax.data.packing import ChatBatches, Packing, best_fit
from sftjax.data.pair_batches import PairBatches
from sftjax.data.pairs import TEMPLATES, Pairs, Policy, columns_of, encode_pairs, fill
from sftjax.data.prefetch import ahead, prefetch
from sftjax.data.processor import Processor, processor_config, processor_of
from sftjax.data.show import Shown, show
from sftjax.data.sources import read, splits
from sftjax.data.splitting import split_table
from sftjax.data.table import Table, texts
from sftjax.data.template import ChatTemplate
from sftjax.data.text import Tokenizer, WordTokenizer, encode, encode_words
from sftjax.data.voc import read_voc

if TYPE_CHECKING:
    from sftjax.data.rated_sentences import RatedSentences, prepare_sentences, retrieval_set

__all__ = [
    "ASSETS",
    "TEMPLATES",
    "Asset",
    "Audit",
    "Augment",
    "Batches",
    "Chat",
    "ChatBatches",
    "ChatTemplate",
    "ChatTokenizer",
    "Conversation",
    "Corrupt",
    "Crop",
    "Encoded",
    "ImageBatches",
    "Images",
    "Labels",
    "Leak",
    "PackedPairs",
    "Packing",
    "PairBatches",
    "Pairs",
    "Policy",
    "Processor",
    "RatedSentences",
    "Shown",
    "Slice",
    "Table",
    "Tokenizer",
    "UnreadableImage",
    "WordTokenizer",
    "ahead",
    "augmentation",
    "best_fit",
    "bucket_lengths",
    "cache_folder",
    "check_vocabulary",
    "classes",
    "columns_of",
    "conversations",
    "decode",
    "decoders",
    "encode",
    "encode_chat",
    "encode_pairs",
    "encode_words",
    "fetch",
    "fill",
    "hold_out",
    "image_splits",
    "leaks",
    "load_images",
    "multi_label",
    "pack",
    "prefetch",
    "prepare_sentences",
    "processor_config",
    "processor_of",
    "read",
    "read_idx",
    "read_images",
    "read_voc",
    "refuse_leaks",
    "regression",
    "retrieval_set",
    "show",
    "split_table",
    "splits",
    "texts",
    "token_labels",
]

_NEEDS_TFDS = ("RatedSentences", "prepare_sentences", "retrieval_set")


def __getattr__(name: str) -> Any:
    """Import what needs tensorflow_datasets when it is first asked for."""
    if name in _NEEDS_TFDS:
        from sftjax.data import rated_sentences

        return getattr(rated_sentences, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
