"""T5 (Raffel et al. 2020, arXiv:1910.10683), T5 1.1 and Flan-T5: config, stacks and head.

Positions are told by a learned bias on the attention scores, one number a head and a bucket of
distances, which the first block holds and all blocks of a stack share. Scores are not scaled, norms
have no bias and do not centre, and no Dense layer has a bias.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.alike import Alike
from sftjax.models.dropout import Dropout
from sftjax.models.few_rows import times
from sftjax.models.norm import over_root_mean_square
from sftjax.models.seq2seq import Kept, KeysValues, Now, Pair, attention, empty
from sftjax.models.t5_architecture import T5Architecture


def bucket(distance: Array, buckets: int, max_distance: int, *, both_ways: bool) -> Array:
    """Return the bucket of each distance: exact while short, then logarithmic, then one for all.

    Args:
      distance: integers, place looked at minus place looking.
      buckets: how many there are.
      max_distance: from here on all fall into the last one.
      both_ways: half of the buckets for what comes after (encoder), or all for what came before.

    Returns:
      int32, of distance's shape.

    >>> bucket(jnp.array([0, -1, -15, -16, -127, -500, 3]), 32, 128, both_ways=False).tolist()
    [0, 1, 15, 16, 31, 31, 0]
    >>> bucket(jnp.array([-3, 3]), 32, 128, both_ways=True).tolist()
    [3, 19]
    """
    if both_ways:
        buckets //= 2
        first = jnp.where(distance > 0, buckets, 0)
        apart = jnp.abs(distance)
    else:
        first = jnp.zeros_like(distance)
        apart = jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(apart, 1).astype(jnp.float32) / exact)
    steps = ratio / math.log(max_distance / exact) * (buckets - exact)
    far = jnp.minimum(exact + steps.astype(jnp.int32), buckets - 1)
    return (first + jnp.where(apart < exact, apart, far)).astype(jnp.int32)


def _dense(features: int, deviation: float, a: T5Architecture, dtype: DTypeLike, name: str):
    normal = nn.initializers.normal(a.factor * deviation)
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=normal, name=name)


class Positions(nn.Module):
    """The table of biases, (buckets, heads)."""

    architecture: T5Architecture
    both_ways: bool

    @nn.compact
    def __call__(self, distance_TS: Array) -> Array:
        """Return (1, H, T, S) float32 of (T, S) distances."""
        a = self.architecture
        init = nn.initializers.normal(a.factor * a.d_model**-0.5)
        table = self.param("embedding", init, (a.buckets, a.num_heads), jnp.float32)
        found = bucket(distance_TS, a.buckets, a.max_distance, both_ways=self.both_ways)
        return table.astype(jnp.float32)[found].transpose(2, 0, 1)[None]


class Norm(nn.Module):
    """`scale * x / sqrt(mean(x^2) + epsilon)`: no mean is taken off, no bias added."""

    epsilon: float
    factor: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (..., D) from (..., D); the statistics are float32."""
        init = nn.initializers.constant(self.factor)
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        return over_root_mean_square(x, scale, self.epsilon).astype(self.dtype)


class Attention(nn.Module):
    """Attention of either kind; in the first block it also holds the stack's position biases."""

    architecture: T5Architecture
    dtype: DTypeLike
    positions: bool = False
    both_ways: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        source: Array | None,
        bias: Array,
        distance: Array | None = None,
        kept: KeysValues | None = None,
        index: Array | None = None,
    ) -> tuple[Array, Array, KeysValues | None]:
        """Return the output, the bias with positions in it, and the memory."""
        a = self.architecture
        wide, narrow = a.num_heads * a.d_kv, a.d_model**-0.5
        if self.positions:
            table = Positions(a, self.both_ways, name="relative_attention_bias")
            assert distance is not None
            bias = table(distance) + (bias[:, None] if bias.ndim == 3 else bias)
        q = _dense(wide, narrow * a.d_kv**-0.5, a, self.dtype, "q")(x)
        k, v = (_dense(wide, narrow, a, self.dtype, name) for name in ("k", "v"))
        read = None if source is None else lambda: (k(source), v(source))
        dropout = Dropout(a.dropout)
        y, kept = attention(q, read, bias, a.num_heads, dropout, 1.0, kept, index)
        return _dense(a.d_model, wide**-0.5, a, self.dtype, "o")(y), bias, kept


class Sublayer(nn.Module):
    """`x + dropout(attention(norm(x)))`."""

    architecture: T5Architecture
    dtype: DTypeLike
    attention: str
    """What checkpoints call it."""
    positions: bool = False
    both_ways: bool = False

    @nn.compact
    def __call__(
        self, x: Array, source: Array | None, bias: Array, **rest: Any
    ) -> tuple[Array, Array, KeysValues | None]:
        """Return x, the bias and the memory; without a decoder's source, x looks at itself."""
        a = self.architecture
        y = Norm(a.epsilon, a.factor, self.dtype, name="layer_norm")(x)
        attend = Attention(a, self.dtype, self.positions, self.both_ways, name=self.attention)
        own = self.attention == "SelfAttention"
        y, bias, kept = attend(y, y if own else source, bias, **rest)
        return x + Dropout(a.dropout)(y), bias, kept


class FeedForward(nn.Module):
    """`wo(act(wi(x)))`, or `wo(act(wi_0(x)) * wi_1(x))`."""

    architecture: T5Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        a, act = self.architecture, ACTIVATIONS[self.architecture.activation]

        def wide(name: str) -> Array:
            return _dense(a.d_ff, a.d_model**-0.5, a, self.dtype, name)(x)

        y = act(wide("wi_0")) * wide("wi_1") if a.gated else act(wide("wi"))
        return _dense(a.d_model, a.d_ff**-0.5, a, self.dtype, "wo")(Dropout(a.dropout)(y))


class FeedForwardLayer(nn.Module):
    """`x + dropout(feed_forward(norm(x)))`."""

    architecture: T5Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        a = self.architecture
        y = Norm(a.epsilon, a.factor, self.dtype, name="layer_norm")(x)
        return x + Dropout(a.dropout)(FeedForward(a, self.dtype, name="DenseReluDense")(y))


class Sublayers(nn.Module):
    """The level of the tree that checkpoints call `layer`; 2 in an encoder, 3 in a decoder."""

    architecture: T5Architecture
    dtype: DTypeLike
    decoder: bool
    first: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        source: Array | None,
        bias: Array,
        source_bias: Array | None,
        distance: Array,
        kept: Kept | None,
        index: Array | None,
    ) -> tuple[Array, Array, Kept | None]:
        a, dtype = self.architecture, self.dtype
        own = Sublayer(a, dtype, "SelfAttention", self.first, not self.decoder, name="0")
        rest = {"distance": distance, "kept": kept and kept.own, "index": index}
        x, bias, own_kept = own(x, None, bias, **rest)
        if self.decoder:
            assert source_bias is not None
            cross = Sublayer(a, dtype, "EncDecAttention", name="1")
            x, _, read = cross(x, source, source_bias, kept=kept and kept.source, index=index)
            kept = None if own_kept is None else Kept(own_kept, read)
        return FeedForwardLayer(a, dtype, name="2" if self.decoder else "1")(x), bias, kept


class Block(nn.Module):
    """One block."""

    architecture: T5Architecture
    dtype: DTypeLike
    decoder: bool
    first: bool

    @nn.compact
    def __call__(self, *inputs: Any) -> tuple[Array, Array, Kept | None]:
        layers = Sublayers(self.architecture, self.dtype, self.decoder, self.first, name="layer")
        return layers(*inputs)


class Blocks(nn.Module):
    """The blocks of a stack, named by their numbers."""

    architecture: T5Architecture
    dtype: DTypeLike
    decoder: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        source: Array | None,
        bias: Array,
        source_bias: Array | None,
        distance: Array,
        kept: tuple[Kept, ...] | None = None,
        index: Array | None = None,
    ) -> tuple[Array, tuple[Kept | None, ...]]:
        a, call, new = self.architecture, Alike(), []
        for number in range(a.num_decoder_layers if self.decoder else a.num_layers):
            block = Block(a, self.dtype, self.decoder, number == 0, name=str(number))
            mine = None if kept is None else kept[number]
            x, bias, one = call(block, x, source, bias, source_bias, distance, mine, index)
            new.append(one)
        return x, tuple(new)


class Stack(nn.Module):
    """Encoder or decoder: dropout, blocks, norm, dropout."""

    architecture: T5Architecture
    dtype: DTypeLike
    decoder: bool

    @nn.compact
    def __call__(self, x: Array, *rest: Any) -> tuple[Array, tuple[Kept | None, ...]]:
        a = self.architecture
        x = Dropout(a.dropout)(x.astype(self.dtype))
        x, kept = Blocks(a, self.dtype, self.decoder, name="block")(x, *rest)
        x = Norm(a.epsilon, a.factor, self.dtype, name="final_layer_norm")(x)
        return Dropout(a.dropout)(x), kept


class T5(nn.Module):
    """T5 with its language-modelling head."""

    architecture: T5Architecture
    dtype: DTypeLike

    def setup(self) -> None:
        """Name the parts as checkpoints do."""
        a = self.architecture
        normal = nn.initializers.normal(a.factor)
        self.shared = nn.Embed(a.vocab_size, a.d_model, embedding_init=normal)
        self.encoder = Stack(a, self.dtype, decoder=False)
        self.decoder = Stack(a, self.dtype, decoder=True)
        if not a.tied:
            # The logits are float32 whatever the rest computes in.
            kernel = nn.initializers.normal(a.factor * a.d_model**-0.5)
            self.lm_head = nn.Dense(
                a.vocab_size, use_bias=False, dtype=jnp.float32, kernel_init=kernel
            )

    def __call__(self, pair: Pair) -> Array:
        """Return (B, U, V) float32 logits."""
        x_BUD = self.hidden(pair)
        return self.scores(x_BUD.reshape(-1, x_BUD.shape[-1])).reshape(*x_BUD.shape[:2], -1)

    def hidden(self, pair: Pair) -> Array:
        """Return (B, U, D): what the head reads, before the scale."""
        source_ND = self.encode(pair.input_ids, pair.bias)
        place = jnp.arange(pair.decoder_input_ids.shape[1])
        x_ND = self._embed(pair.decoder_input_ids)
        distance = place[None, :] - place[:, None]
        x_ND, _ = self.decoder(x_ND, source_ND, pair.decoder_bias, pair.cross_bias, distance)
        return x_ND.reshape(*pair.decoder_input_ids.shape, -1)

    def encode(self, input_ids: Array, bias: Array, positions: Array | None = None) -> Array:
        """Return (B*T, D) of the source."""
        del positions  # distances are all this family knows, and they are equal in packed rows
        place = jnp.arange(input_ids.shape[1])
        distance = place[None, :] - place[:, None]
        return self.encoder(self._embed(input_ids), None, bias, None, distance)[0]

    def step(
        self, tokens: Array, source: Array | None, kept: tuple[Kept, ...], now: Now
    ) -> tuple[Array, tuple[Kept | None, ...]]:
        """Return (R, V) logits and the memory, of one token in each row; (R,) int32."""
        distance = (now.places - now.place)[None]
        x_RD, new = self.decoder(
            self._embed(tokens), source, now.own_bias, now.source_bias, distance, kept, now.place
        )
        return self.scores(x_RD), new

    def scores(self, x_ND: Array) -> Array:
        """Return (N, V) float32."""
        a = self.architecture
        x_ND = x_ND.astype(jnp.float32) * (a.d_model**-0.5 if a.scaled else 1.0)
        if not a.tied:
            return self.lm_head(x_ND)
        return times(x_ND, self.shared.embedding.astype(jnp.float32))

    def _embed(self, ids: Array) -> Array:
        return self.shared(ids).reshape(-1, self.architecture.d_model)


def room(a: T5Architecture, rows: int, tokens: int, dtype: DTypeLike) -> tuple[Kept, ...]:
    """Return the empty memory of so many rows and tokens."""
    return empty(a.num_decoder_layers, (rows, a.num_heads, tokens, a.d_kv), dtype)


def words(a: T5Architecture, params: Mapping[str, Any]) -> Array:
    """Return the (V, D) matrix whose product with `hidden` is the logits."""
    table_VD = params["shared"]["embedding"] if a.tied else params["lm_head"]["kernel"].T
    return table_VD.astype(jnp.float32) * (a.d_model**-0.5 if a.scaled else 1.0)
