"""The post-norm transformer encoder that BERT and RoBERTa share, parameter for parameter.

Hidden states are `x_ND`, all tokens of all rows in one matrix (see `attention`).
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.alike import Alike
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
    hidden: Array | None = None
    """(B, T, D) or (B, D), what enters the first block of the span; None is the embeddings."""


class Span(NamedTuple):
    """Which blocks of the stack are run: `start`, ..., `stop - 1`."""

    start: int
    stop: int
    given: bool = False
    """Whether what enters block `start` is in the batch, and not the embeddings of its tokens."""


def dense(features: int, a: Architecture, dtype: DTypeLike, name: str) -> nn.Dense:
    """Return a Dense layer that starts as the config says."""
    normal = nn.initializers.normal(a.initializer_range)
    return nn.Dense(features, dtype=dtype, kernel_init=normal, name=name)


class SelfAttention(nn.Module):
    """Queries of the tokens that look, keys and values of those looked at, and what is gathered."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_MD: Array, x_ND: Array, bias: Array) -> Array:
        a = self.architecture
        q_MD = dense(a.hidden_size, a, self.dtype, "query")(x_MD)
        k_ND, v_ND = (dense(a.hidden_size, a, self.dtype, name)(x_ND) for name in ("key", "value"))
        return self.attend(q_MD, k_ND, v_ND, bias)

    def attend(self, q_MD: Array, k_ND: Array, v_ND: Array, bias: Array) -> Array:
        """Gather; a method, so that interceptors can give it other keys and values."""
        a = self.architecture
        return attend(q_MD, k_ND, v_ND, bias, a.num_heads, Dropout(a.attention_dropout))


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
    def __call__(self, x_MD: Array, x_ND: Array, bias: Array) -> Array:
        y_MD = SelfAttention(self.architecture, self.dtype, name="self")(x_MD, x_ND, bias)
        return AddAndNorm(self.architecture, self.dtype, name="output")(y_MD, x_MD)


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
    def __call__(self, x_MD: Array, x_ND: Array, bias: Array) -> Array:
        """Return the block's output for the tokens `x_MD`, which look at all tokens `x_ND`."""
        a, dtype = self.architecture, self.dtype
        x_MD = Attention(a, dtype, name="attention")(x_MD, x_ND, bias)
        y = Intermediate(a, dtype, name="intermediate")(x_MD)
        return AddAndNorm(a, dtype, name="output")(y, x_MD)


class Layers(nn.Module):
    """The stack of blocks, named by their numbers."""

    architecture: Architecture
    dtype: DTypeLike
    block: type[nn.Module] = Layer
    span: Span | None = None
    first: bool = False

    @nn.compact
    def __call__(self, x_ND: Array, bias: Array) -> Array:
        a = self.architecture
        span, call = self.span or Span(0, a.num_layers), Alike()
        for number in range(span.start, span.stop):
            looking = x_ND
            if self.first and number == a.num_layers - 1:
                # Where only first tokens are read, the last block need not compute the others:
                # of its products, those of keys and values remain, a sixth.
                looking = x_ND.reshape(len(bias), -1, x_ND.shape[-1])[:, 0]
            x_ND = call(self.block(a, self.dtype, name=str(number)), looking, x_ND, bias)
        return x_ND


class Encoder(nn.Module):
    """The level of the tree that checkpoints call `encoder` (DistilBERT's: `transformer`)."""

    architecture: Architecture
    dtype: DTypeLike
    block: type[nn.Module] = Layer
    span: Span | None = None
    first: bool = False
    """Give the first token of each row alone, (B, D)."""

    @nn.compact
    def __call__(self, x_ND: Array, bias: Array) -> Array:
        layers = Layers(
            self.architecture, self.dtype, self.block, self.span, self.first, name="layer"
        )
        return layers(x_ND, bias)


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
    first: bool = False
    pool: bool = False
    """Only with `first`."""
    span: Span | None = None

    @nn.compact
    def __call__(self, inputs: Inputs) -> tuple[Array, Array]:
        """Return (B, T, D) hidden states, or (B, D) of first tokens, and the (V, D) word table."""
        a, dtype = self.architecture, self.dtype
        x_ND, words_VD = Embeddings(a, dtype, name="embeddings")(
            inputs.input_ids, inputs.token_type_ids, inputs.position_ids
        )
        x_ND = entering(x_ND, inputs)
        x = Encoder(a, dtype, span=self.span, first=self.first, name="encoder")(x_ND, inputs.bias)
        if self.pool:
            x = Pooler(a, dtype, name="pooler")(x)
        return x if self.first else x.reshape(*inputs.input_ids.shape, -1), words_VD


def entering(x_ND: Array, inputs: Inputs) -> Array:
    """Return what enters the span of blocks: the hidden states given, or the embeddings."""
    if inputs.hidden is None:
        return x_ND
    return inputs.hidden.reshape(-1, x_ND.shape[-1]).astype(x_ND.dtype)


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
