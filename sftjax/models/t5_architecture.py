"""What a T5's `config.json` says, read once and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import given, require

SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")


@dataclass(frozen=True)
class T5Architecture:
    """Everything a T5's computation depends on."""

    vocab_size: int
    d_model: int
    d_kv: int
    """Width of a head; heads together need not be as wide as the model."""
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    buckets: int
    max_distance: int
    activation: str
    gated: bool
    """Whether the feed-forward's middle is multiplied by a second product (T5 1.1)."""
    dropout: float
    epsilon: float
    factor: float
    """Multiplies the standard deviation of fresh weights."""
    tied: bool
    """Whether the head reads the embedding table."""
    scaled: bool
    """Whether what the head reads is multiplied by `d_model ** -0.5` (T5 1.0)."""


def architecture(config: Mapping[str, Any]) -> T5Architecture:
    """Read the `config.json` of a T5; absent fields take transformers' defaults.

    `tie_word_embeddings` says whether the head is the embedding table; `scale_decoder_outputs`,
    which transformers 5 writes, whether its input is scaled, and where it is absent the tied scale.

    Raises:
      ValueError: if a size is missing, or a field asks for what is not built here.

    >>> architecture(dict.fromkeys(SIZES, 4) | {"feed_forward_proj": "gated-gelu"}).activation
    'gelu_new'
    """
    require({**config, "is_encoder_decoder": None}, SIZES)
    multilingual = config.get("model_type") == "mt5"  # T5 1.1 by default, and never scaled
    default = "gated-gelu" if multilingual else "relu"
    words = given(config, "feed_forward_proj", default).split("-")
    if len(words) > 2 or (len(words) == 2 and words[0] != "gated") or words[-1] not in ACTIVATIONS:
        raise ValueError(
            f"feed_forward_proj {config['feed_forward_proj']!r} is not known; it is an activation "
            f"or 'gated-' and one: {', '.join(ACTIVATIONS)}"
        )
    tied = given(config, "tie_word_embeddings", True)
    a = T5Architecture(
        vocab_size=config["vocab_size"],
        d_model=config["d_model"],
        d_kv=config["d_kv"],
        d_ff=config["d_ff"],
        num_layers=config["num_layers"],
        num_decoder_layers=given(config, "num_decoder_layers", config["num_layers"]),
        num_heads=config["num_heads"],
        buckets=given(config, "relative_attention_num_buckets", 32),
        max_distance=given(config, "relative_attention_max_distance", 128),
        # As transformers does: this one pair of words means the approximate GELU.
        activation="gelu_new" if words == ["gated", "gelu"] else words[-1],
        gated=words[0] == "gated",
        dropout=given(config, "dropout_rate", 0.1),
        epsilon=given(config, "layer_norm_epsilon", 1e-6),
        factor=given(config, "initializer_factor", 1.0),
        tied=tied,
        scaled=not multilingual and given(config, "scale_decoder_outputs", tied),
    )
    if not 0.0 <= a.dropout < 1.0:
        raise ValueError(f"the config's dropout_rate must be in [0, 1), not {a.dropout!r}")
    if a.buckets < 4 or a.buckets % 2 or a.max_distance <= a.buckets // 2:
        raise ValueError(
            f"{a.buckets} relative_attention_num_buckets up to distance {a.max_distance} cannot be "
            "laid out; the number must be even and the distance greater than its half"
        )
    return a
