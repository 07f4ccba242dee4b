"""BERT (Devlin et al. 2018, arXiv:1810.04805): its config and its heads."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import Architecture, check, given, require
from sftjax.models.dropout import Dropout
from sftjax.models.encoder import Inputs, Span, Trunk, dense, mean_pool, word_scores
from sftjax.models.head import FIRST_TOKEN, Head
from sftjax.models.norm import LayerNorm

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def architecture(config: Mapping[str, Any], pad_token_id: int = 0) -> Architecture:
    """Read the `config.json` of a BERT or a RoBERTa; absent fields take transformers' defaults.

    Raises:
      ValueError: as `require` and `check` do.

    >>> small = dict.fromkeys(SIZES, 4)
    >>> architecture(small).activation
    'gelu'
    """
    require(config, SIZES)
    dropout = given(config, "hidden_dropout_prob", 0.1)
    return check(
        Architecture(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            intermediate_size=config["intermediate_size"],
            max_positions=config["max_position_embeddings"],
            type_vocab_size=given(config, "type_vocab_size", 2),
            activation=given(config, "hidden_act", "gelu"),
            layer_norm_eps=given(config, "layer_norm_eps", 1e-12),
            hidden_dropout=dropout,
            attention_dropout=given(config, "attention_probs_dropout_prob", 0.1),
            classifier_dropout=given(config, "classifier_dropout", dropout),
            initializer_range=given(config, "initializer_range", 0.02),
            pad_token_id=config.get("pad_token_id", pad_token_id),
            tied=given(config, "tie_word_embeddings", True),
        )
    )


class Predictions(nn.Module):
    """The masked-LM head: a dense layer, its activation and norm, then the word scores."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_BTD: Array, words_VD: Array) -> Array:
        x_BTD = Transform(self.architecture, self.dtype, name="transform")(x_BTD)
        return word_scores(self, x_BTD, words_VD, self.architecture)


class Transform(nn.Module):
    """What happens to hidden states before the word scores."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        a = self.architecture
        y_ND = dense(a.hidden_size, a, self.dtype, "dense")(x_BTD.reshape(-1, a.hidden_size))
        y_ND = ACTIVATIONS[a.activation](y_ND)
        y_ND = LayerNorm(epsilon=a.layer_norm_eps, dtype=self.dtype, name="LayerNorm")(y_ND)
        return y_ND.reshape(x_BTD.shape)


class PretrainingHeads(nn.Module):
    """The level of the tree that checkpoints call `cls`."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_BTD: Array, words_VD: Array) -> Array:
        return Predictions(self.architecture, self.dtype, name="predictions")(x_BTD, words_VD)


class Bert(nn.Module):
    """BERT with one head."""

    architecture: Architecture
    head: Head
    dtype: DTypeLike
    span: Span | None = None

    @nn.compact
    def __call__(self, inputs: Inputs) -> Array:
        a, head = self.architecture, self.head
        first, pool = head.kind in FIRST_TOKEN, head.kind in ("sequence", "pooled")
        x, words_VD = Trunk(a, self.dtype, first, pool, self.span, name="bert")(inputs)
        if head.kind in ("sequence", "token"):
            x = Dropout(a.classifier_dropout)(x)
            return dense(len(head.labels), a, jnp.float32, "classifier")(x)
        if head.kind == "masked-lm":
            return PretrainingHeads(a, self.dtype, name="cls")(x, words_VD)
        return mean_pool(x, inputs.mask) if head.kind == "mean" else x.astype(jnp.float32)
