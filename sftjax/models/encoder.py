"""The post-norm transformer encoder that BERT and RoBERTa share, parameter for parameter.

Hidden states are `x_ND`, all tokens of all rows in one matrix (see `attention`).
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import Architecture
from sftjax.models.attention import attend
from sftjax.models.dropout import Dropout
from sftjax.models.embedding import Embeddings
from sftjax.models.norm import LayerNorm


class Inputs(NamedTuple):
    """One batch as every family's module takes it."""

    input_ids: Array
    """(B, T) int32."""
    token_type_ids: Array | None
    """(B, T) int32, or None for all zeros."""
    position_ids: Array
    """(B, T) or (1, T) int32: rows of the position table."""
    bias: Array
    """(B, 1 or T, T) float32, added to the attention scores."""
    mask: Array
    """(B, T): nonzero for tokens, 0 for padding."""


def dense(features: int, a: Architecture, dtype: DTypeLike, name: str) -> nn.Dense:
    """Return a Dense layer that starts as the config says."""
    normal = nn.initializers.normal(a.initializer_range)
    return nn.Dense(features, dtype=dtype, kernel_init=normal, name=name)


class SelfAttention(nn.Module):
    """Queries, keys and values of every token, and what it gathers by them."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_ND: Array, bias: Array) -> Array:
        a = self.architecture
        q_ND, k_ND, v_ND = (
            dense(a.hidden_size, a, self.dtype, name)(x_ND) for name in ("query", "key", "value")
        )
        return attend(q_ND, k_ND, v_ND, bias, a.num_heads, Dropout(a.attention_dropout))


class AddAndNorm(nn.Module):
    """`LayerNorm(x + dropout(dense(y)))`, the end of both halves of a layer."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, y: Array, x_ND: Array) -> Array:
        a = self.architecture
        y_ND = Dropout(a.hidden_dropout)(dense(a.hidden_size, a, self.dtype, "dense")(y))
        return LayerNorm(epsilon=a.layer_norm_eps, dtype=self.dtype, name="LayerNorm")(y_ND + x_ND)


class Attention(nn.Module):
    """The first half of a layer."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_ND: Array, bias: Array) -> Array:
        y_ND = SelfAttention(self.architecture, self.dtype, name="self")(x_ND, bias)
        return AddAndNorm(self.architecture, self.dtype, name="output")(y_ND, x_ND)


class Intermediate(nn.Module):
    """The wide middle of a layer's second half."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_ND: Array) -> Array:
        a = self.architecture
        return ACTIVATIONS[a.activation](dense(a.intermediate_size, a, self.dtype, "dense")(x_ND))


class Layer(nn.Module):
    """One block: attention, then the feed-forward network."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_ND: Array, bias: Array) -> Array:
        a, dtype = self.architecture, self.dtype
        x_ND = Attention(a, dtype, name="attention")(x_ND, bias)
        y = Intermediate(a, dtype, name="intermediate")(x_ND)
        return AddAndNorm(a, dtype, name="output")(y, x_ND)


class Layers(nn.Module):
    """The stack of blocks, named by their numbers."""

    architecture: Architecture
    dtype: DTypeLike
    block: type[nn.Module] = Layer

    @nn.compact
    def __call__(self, x_ND: Array, bias: Array) -> Array:
        for number in range(self.architecture.num_layers):
            x_ND = self.block(self.architecture, self.dtype, name=str(number))(x_ND, bias)  # type: ignore[call-arg]
        return x_ND


class Encoder(nn.Module):
    """The level of the tree that checkpoints call `encoder` (DistilBERT's: `transformer`)."""

    architecture: Architecture
    dtype: DTypeLike
    block: type[nn.Module] = Layer

    @nn.compact
    def __call__(self, x_ND: Array, bias: Array) -> Array:
        return Layers(self.architecture, self.dtype, self.block, name="layer")(x_ND, bias)


class Pooler(nn.Module):
    """`tanh(dense(.))` of the first token."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_BD: Array) -> Array:
        a = self.architecture
        return jnp.tanh(dense(a.hidden_size, a, self.dtype, "dense")(x_BD))


class Trunk(nn.Module):
    """Embeddings, encoder and, where the head wants it, pooler."""

    architecture: Architecture
    dtype: DTypeLike
    pool: bool = False

    @nn.compact
    def __call__(self, inputs: Inputs) -> tuple[Array, Array]:
        """Return (B, T, D) hidden states, or (B, D) if pooled, and the (V, D) word table."""
        a, dtype = self.architecture, self.dtype
        x_ND, words_VD = Embeddings(a, dtype, name="embeddings")(
            inputs.input_ids, inputs.token_type_ids, inputs.position_ids
        )
        x_ND = Encoder(a, dtype, name="encoder")(x_ND, inputs.bias)
        x_BTD = x_ND.reshape(*inputs.input_ids.shape, a.hidden_size)
        if self.pool:
            return Pooler(a, dtype, name="pooler")(x_BTD[:, 0]), words_VD
        return x_BTD, words_VD


def word_scores(module: nn.Module, x_BTD: Array, words_VD: Array, a: Architecture) -> Array:
    """Return (B, T, V) float32 scores of every word, by the word table if the config ties them.

    To be called in a compact `module`, whose `bias` and, untied, `decoder` this makes.
    """
    bias = module.param("bias", nn.initializers.zeros, (a.vocab_size,))
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1]).astype(jnp.float32)
    if a.tied:
        scores_NV = x_ND @ words_VD.astype(jnp.float32).T
    else:
        normal = nn.initializers.normal(a.initializer_range)
        scores_NV = nn.Dense(a.vocab_size, use_bias=False, kernel_init=normal, name="decoder")(x_ND)
    return scores_NV.reshape(*x_BTD.shape[:-1], a.vocab_size) + bias


def mean_pool(x_BTD: Array, mask: Array) -> Array:
    """Return the mean over the tokens that are no padding, (B, D) float32.

    >>> mean_pool(jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([[1, 1, 0]])).tolist()
    [[2.0]]
    """
    weight = (mask != 0).astype(jnp.float32)[..., None]
    total = jnp.sum(x_BTD.astype(jnp.float32) * weight, axis=1)
    return total / jnp.maximum(weight.sum(axis=1), 1.0)
