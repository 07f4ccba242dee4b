"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): half of the layers, no types, no pooler."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import Architecture, check, given, require
from sftjax.models.attention import attend
from sftjax.models.dropout import Dropout
from sftjax.models.embedding import Embeddings
from sftjax.models.encoder import Encoder, Inputs, Span, dense, entering, mean_pool
from sftjax.models.head import FIRST_TOKEN, Head
from sftjax.models.norm import LayerNorm

SIZES = ("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings")

_ALIASES = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
"""Names that transformers takes for these fields too."""


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Read DistilBERT's `config.json`, whose fields have names of their own.

    Raises:
      ValueError: as `require` and `check` do.

    >>> architecture(dict.fromkeys(SIZES, 4)).classifier_dropout
    0.2
    """
    config = {_ALIASES.get(name, name): value for name, value in config.items()} | dict(config)
    require(config, SIZES)
    return check(
        Architecture(
            vocab_size=config["vocab_size"],
            hidden_size=config["dim"],
            num_layers=config["n_layers"],
            num_heads=config["n_heads"],
            intermediate_size=config["hidden_dim"],
            max_positions=config["max_position_embeddings"],
            type_vocab_size=0,
            activation=given(config, "activation", "gelu"),
            layer_norm_eps=1e-12,
            hidden_dropout=given(config, "dropout", 0.1),
            attention_dropout=given(config, "attention_dropout", 0.1),
            classifier_dropout=given(config, "seq_classif_dropout", 0.2),
            initializer_range=given(config, "initializer_range", 0.02),
            pad_token_id=config.get("pad_token_id", 0),
            tied=given(config, "tie_word_embeddings", True),
            sinusoidal=given(config, "sinusoidal_pos_embds", False),
        )
    )


def _norm(a: Architecture, dtype: DTypeLike, name: str) -> LayerNorm:
    return LayerNorm(epsilon=a.layer_norm_eps, dtype=dtype, name=name)


class Attention(nn.Module):
    """Self-attention with its output projection."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_MD: Array, x_ND: Array, bias: Array) -> Array:
        a = self.architecture
        q_MD = dense(a.hidden_size, a, self.dtype, "q_lin")(x_MD)
        k_ND, v_ND = (
            dense(a.hidden_size, a, self.dtype, name)(x_ND) for name in ("k_lin", "v_lin")
        )
        y_MD = self.attend(q_MD, k_ND, v_ND, bias)
        return dense(a.hidden_size, a, self.dtype, "out_lin")(y_MD)

    def attend(self, q_MD: Array, k_ND: Array, v_ND: Array, bias: Array) -> Array:
        """Gather; a method, so that interceptors can give it other keys and values."""
        a = self.architecture
        return attend(q_MD, k_ND, v_ND, bias, a.num_heads, Dropout(a.attention_dropout))


class FeedForward(nn.Module):
    """The second half of a block."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_ND: Array) -> Array:
        a = self.architecture
        y = ACTIVATIONS[a.activation](dense(a.intermediate_size, a, self.dtype, "lin1")(x_ND))
        return Dropout(a.hidden_dropout)(dense(a.hidden_size, a, self.dtype, "lin2")(y))


class Block(nn.Module):
    """Attention and feed-forward network, each added and normed."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_MD: Array, x_ND: Array, bias: Array) -> Array:
        """Return the block's output for the tokens `x_MD`, which look at all tokens `x_ND`."""
        a, dtype = self.architecture, self.dtype
        y_MD = Attention(a, dtype, name="attention")(x_MD, x_ND, bias)
        x_MD = _norm(a, dtype, "sa_layer_norm")(y_MD + x_MD)
        y_MD = FeedForward(a, dtype, name="ffn")(x_MD)
        return _norm(a, dtype, "output_layer_norm")(y_MD + x_MD)


class Trunk(nn.Module):
    """Embeddings and blocks."""

    architecture: Architecture
    dtype: DTypeLike
    first: bool = False
    span: Span | None = None

    @nn.compact
    def __call__(self, inputs: Inputs) -> tuple[Array, Array]:
        """Return (B, T, D) hidden states, or (B, D) of first tokens, and the (V, D) word table."""
        a, dtype = self.architecture, self.dtype
        x_ND, words_VD = Embeddings(a, dtype, name="embeddings")(
            inputs.input_ids, None, inputs.position_ids
        )
        x_ND = entering(x_ND, inputs)
        encoder = Encoder(a, dtype, Block, self.span, self.first, name="transformer")
        x = encoder(x_ND, inputs.bias)
        return x if self.first else x.reshape(*inputs.input_ids.shape, -1), words_VD


class Projector(nn.Module):
    """Scores of every word, by the word table itself if the config ties them."""

    architecture: Architecture

    @nn.compact
    def __call__(self, x_ND: Array, words_VD: Array) -> Array:
        a = self.architecture
        bias = self.param("bias", nn.initializers.zeros, (a.vocab_size,))
        kernel_DV = words_VD.T
        if not a.tied:
            normal = nn.initializers.normal(a.initializer_range)
            kernel_DV = self.param("kernel", normal, (a.hidden_size, a.vocab_size))
        return x_ND.astype(jnp.float32) @ kernel_DV.astype(jnp.float32) + bias


class DistilBert(nn.Module):
    """DistilBERT with one head."""

    architecture: Architecture
    head: Head
    dtype: DTypeLike
    span: Span | None = None

    @nn.compact
    def __call__(self, inputs: Inputs) -> Array:
        a, head, dtype = self.architecture, self.head, self.dtype
        first = head.kind in FIRST_TOKEN
        x, words_VD = Trunk(a, dtype, first, self.span, name="distilbert")(inputs)
        match head.kind:
            case "sequence":
                x_BD = dense(a.hidden_size, a, dtype, "pre_classifier")(x)
                x_BD = Dropout(a.classifier_dropout)(jax.nn.relu(x_BD))
                return dense(len(head.labels), a, jnp.float32, "classifier")(x_BD)
            case "token":
                x = Dropout(a.hidden_dropout)(x)
                return dense(len(head.labels), a, jnp.float32, "classifier")(x)
            case "masked-lm":
                x_ND = x.reshape(-1, a.hidden_size)
                x_ND = dense(a.hidden_size, a, dtype, "vocab_transform")(x_ND)
                x_ND = _norm(a, dtype, "vocab_layer_norm")(ACTIVATIONS[a.activation](x_ND))
                scores_NV = Projector(a, name="vocab_projector")(x_ND, words_VD)
                return scores_NV.reshape(*x.shape[:-1], a.vocab_size)
            case "mean":
                return mean_pool(x, inputs.mask)
            case _:
                return x.astype(jnp.float32)
