"""The fields of a checkpoint's `config.json` that decide the computation, read once and checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftjax.models.activation import ACTIVATIONS


@dataclass(frozen=True)
class Architecture:
    """Everything an encoder's computation depends on, under one name for all families.

    Hashable, so that it can be an attribute of a Flax module.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int
    """Rows of the token-type table; 0 for a model without token types."""
    activation: str
    layer_norm_eps: float
    hidden_dropout: float
    attention_dropout: float
    classifier_dropout: float
    initializer_range: float
    pad_token_id: int | None
    tied: bool
    """Whether the masked-LM head reads the word-embedding table."""
    sinusoidal: bool = False
    """Whether fresh position embeddings are sines and cosines instead of random."""


REFUSED: Mapping[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, [], None),
    "quantization_config": ({}, None),
    "partial_rotary_factor": (1.0, None),
}
"""Fields that change the computation in ways not built here, with the values that do not."""

NUMBERS = (
    "activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop",
    "classifier_dropout", "dropout", "dropout_rate", "embd_pdrop", "hidden_dropout_prob",
    "resid_pdrop", "seq_classif_dropout", "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps",
    "initializer_factor", "initializer_range", "rope_theta", "rope_local_base_freq",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "pad_token_id",
)  # fmt: skip
"""Fields that are numbers wherever they are given."""


def require(config: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Check that a config names its sizes and asks for nothing that is not built here.

    Args:
      config: the content of a checkpoint's `config.json`.
      names: the fields that must be there and be positive integers.

    Raises:
      ValueError: naming every field that is missing, not a positive integer, or not supported.

    >>> require({"hidden_size": 8, "is_decoder": True}, ("hidden_size",))
    Traceback (most recent call last):
    ValueError: config field is_decoder=True is not supported (only False): ...
    """
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise ValueError(
            f"the config lacks {', '.join(missing)}: without these fields the shapes of a "
            f"{config.get('model_type')!r} model are unknown; take the config.json that belongs to "
            "the weights"
        )
    for name in names:
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"config field {name} must be a positive integer, not {value!r}")
    for name in NUMBERS:
        value = config.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"config field {name} must be a number, not {value!r}")
    for name, harmless in REFUSED.items():
        if config.get(name) not in harmless:
            raise ValueError(
                f"config field {name}={config[name]!r} is not supported (only {harmless[0]!r}): it "
                "changes what the model computes, so the pretrained weights would be misread; "
                "choose a checkpoint without it"
            )


def check(architecture: Architecture) -> Architecture:
    """Return an architecture whose numbers fit together.

    Raises:
      ValueError: if heads do not divide the width, a rate is no probability, the activation is
        unknown, or the padding token lies outside the vocabulary.
    """
    a = architecture
    if a.hidden_size % a.num_heads:
        raise ValueError(
            f"the hidden size {a.hidden_size} is not a multiple of the {a.num_heads} attention "
            "heads; the config describes no model that can exist"
        )
    if a.activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {a.activation!r} in the config; known: {', '.join(ACTIVATIONS)}"
        )
    for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
        rate = getattr(a, name)
        if not 0.0 <= rate < 1.0:
            raise ValueError(
                f"the config's {name} must be in [0, 1), not {rate!r} (some families spell it "
                "hidden_dropout_prob, attention_probs_dropout_prob or dropout)"
            )
    if not (a.layer_norm_eps >= 0 and math.isfinite(a.layer_norm_eps)):
        raise ValueError(f"layer_norm_eps must be a number >= 0, not {a.layer_norm_eps!r}")
    if a.pad_token_id is not None and not 0 <= a.pad_token_id < a.vocab_size:
        raise ValueError(
            f"pad_token_id {a.pad_token_id} lies outside the vocabulary of {a.vocab_size} tokens"
        )
    for name in ("type_vocab_size", "initializer_range"):
        if not getattr(a, name) >= 0:
            raise ValueError(f"the config's {name} must not be negative, not {getattr(a, name)!r}")
    return architecture


def given(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return a config field, or the default where it is absent or null.

    >>> given({"classifier_dropout": None}, "classifier_dropout", 0.1)
    0.1
    """
    value = config.get(name)
    return default if value is None else value
