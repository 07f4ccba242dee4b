"""From files and TFDS to batches: tables, labels, tokens, and a position that is the step."""

from typing import TYPE_CHECKING, Any

from sftjax.data.assets import ASSETS, Asset, cache_folder, fetch
from sftjax.data.batches import Batches, bucket_lengths
from sftjax.data.chat import Audit, Chat, ChatTokenizer, check_vocabulary, encode_chat
from sftjax.data.conversation import Conversation, conversations
from sftjax.data.encoded import Encoded, pack
from sftjax.data.holdout import hold_out
from sftjax.data.labels import Labels, classes, multi_label, regression, token_labels
from sftjax.data.packed_pairs import PackedPairs
from sftjax.data.packing import ChatBatches, Packing, best_fit
from sftjax.data.pair_batches import PairBatches
from sftjax.data.pairs import TEMPLATES, Pairs, Policy, columns_of, encode_pairs, fill
from sftjax.data.prefetch import prefetch
from sftjax.data.show import Shown, show
from sftjax.data.sources import read, splits
from sftjax.data.table import Table, texts
from sftjax.data.template import ChatTemplate
from sftjax.data.text import Tokenizer, WordTokenizer, encode, encode_words

if TYPE_CHECKING:
    from sftjax.data.rated_sentences import RatedSentences, prepare_sentences, retrieval_set

__all__ = [
    "ASSETS",
    "TEMPLATES",
    "Asset",
    "Audit",
    "Batches",
    "Chat",
    "ChatBatches",
    "ChatTemplate",
    "ChatTokenizer",
    "Conversation",
    "Encoded",
    "Labels",
    "PackedPairs",
    "Packing",
    "PairBatches",
    "Pairs",
    "Policy",
    "RatedSentences",
    "Shown",
    "Table",
    "Tokenizer",
    "WordTokenizer",
    "best_fit",
    "bucket_lengths",
    "cache_folder",
    "check_vocabulary",
    "classes",
    "columns_of",
    "conversations",
    "encode",
    "encode_chat",
    "encode_pairs",
    "encode_words",
    "fetch",
    "fill",
    "hold_out",
    "multi_label",
    "pack",
    "prefetch",
    "prepare_sentences",
    "read",
    "regression",
    "retrieval_set",
    "show",
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
