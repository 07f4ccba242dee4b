"""BART (Lewis et al. 2019, arXiv:1910.13461), mBART, Pegasus and Marian: one model, four habits.

They differ in where the norms stand and in how a token's place is told.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.alike import Alike
from sftjax.models.architecture import given, require
from sftjax.models.dropout import Dropout
from sftjax.models.few_rows import times
from sftjax.models.norm import LayerNorm
from sftjax.models.seq2seq import Kept, KeysValues, Now, Pair, attention, empty

SIZES = (
    "vocab_size",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "max_position_embeddings",
)


class Habits(NamedTuple):
    """What the config's `model_type` decides."""

    norm_first: bool
    """Whether a norm stands before each part of a block and after the last block."""
    norm_embeddings: bool
    sinusoidal: bool
    """Whether places are fixed sines and cosines; else a learned table whose first two rows are
    not used."""


HABITS = {
    "bart": Habits(False, True, False),
    "mbart": Habits(True, True, False),
    "pegasus": Habits(True, False, True),
    "marian": Habits(False, False, True),
}
"""`model_type` -> what it does."""


class Side(NamedTuple):
    """The sizes in which encoder and decoder may differ."""

    layers: int
    heads: int
    middle: int


@dataclass(frozen=True)
class BartArchitecture:
    """Everything the computation depends on."""

    vocab_size: int
    d_model: int
    encoder: Side
    decoder: Side
    max_positions: int
    activation: str
    dropout: float
    attention_dropout: float
    activation_dropout: float
    deviation: float
    """Of fresh weights."""
    scaled: bool
    """Whether embeddings are multiplied by `sqrt(d_model)`."""
    tied: bool
    habits: Habits


def architecture(config: Mapping[str, Any]) -> BartArchitecture:
    """Read a `config.json`; absent fields take transformers' defaults.

    Raises:
      ValueError: if a size is missing, or a field asks for what is not built here.

    >>> architecture(dict.fromkeys(SIZES, 4) | {"model_type": "pegasus"}).habits.sinusoidal
    True
    """
    require({**config, "is_encoder_decoder": None}, SIZES)
    for name in ("encoder_attention_heads", "decoder_attention_heads"):
        if config["d_model"] % config[name]:
            raise ValueError(
                f"the config's d_model {config['d_model']} is not a multiple of {name} "
                f"{config[name]}; take the config.json that belongs to the weights"
            )
    activation = given(config, "activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {activation!r} in the config; known: {', '.join(ACTIVATIONS)}"
        )
    if config.get("share_encoder_decoder_embeddings") is False:
        raise ValueError(
            "share_encoder_decoder_embeddings=false (two vocabularies) is not built here; choose a "
            "checkpoint with one table"
        )
    rates = {
        name: given(config, name, 0.1 if name == "dropout" else 0.0)
        for name in ("dropout", "attention_dropout", "activation_dropout")
    }
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"the config's {name} must be in [0, 1), not {rate!r}")
    encoder, decoder = (
        Side(config[f"{s}_layers"], config[f"{s}_attention_heads"], config[f"{s}_ffn_dim"])
        for s in ("encoder", "decoder")
    )
    return BartArchitecture(
        vocab_size=config["vocab_size"],
        d_model=config["d_model"],
        encoder=encoder,
        decoder=decoder,
        max_positions=config["max_position_embeddings"],
        activation=activation,
        **rates,
        deviation=given(config, "init_std", 0.02),
        scaled=given(config, "scale_embedding", False),
        tied=given(config, "tie_word_embeddings", True),
        habits=HABITS[config["model_type"]],
    )


def halves(positions: int, width: int) -> np.ndarray:
    """Return the (positions, width) table of sines, then cosines (Vaswani et al. 2017, 3.5).

    >>> halves(2, 4)[1].tolist()
    [0.841..., 0.00999..., 0.540..., 0.9999...]
    """
    column = np.arange(width)
    angle = np.arange(positions)[:, None] / 10000.0 ** (2 * (column // 2) / width)
    table = [np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])]
    return np.concatenate(table, 1).astype(np.float32)


def _dense(features: int, a: BartArchitecture, dtype: DTypeLike, name: str) -> nn.Dense:
    normal = nn.initializers.normal(a.deviation)
    return nn.Dense(features, dtype=dtype, kernel_init=normal, name=name)


def _norm(dtype: DTypeLike, name: str) -> LayerNorm:
    return LayerNorm(epsilon=1e-5, dtype=dtype, name=name)


class Attention(nn.Module):
    """Attention of either kind."""

    architecture: BartArchitecture
    dtype: DTypeLike
    heads: int

    @nn.compact
    def __call__(
        self,
        x: Array,
        source: Array | None,
        bias: Array,
        kept: KeysValues | None,
        index: Array | None,
    ) -> tuple[Array, KeysValues | None]:
        """Return the output and the memory."""
        a = self.architecture
        q, k, v, out = (
            _dense(a.d_model, a, self.dtype, f"{n}_proj") for n in ("q", "k", "v", "out")
        )
        read = None if source is None else lambda: (k(source), v(source))
        dropout = Dropout(a.attention_dropout)
        y, kept = attention(q(x), read, bias, self.heads, dropout, None, kept, index)
        return out(y), kept


class Block(nn.Module):
    """Attention to its own, in a decoder to the source, and the feed-forward network."""

    architecture: BartArchitecture
    dtype: DTypeLike
    decoder: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        source: Array | None,
        bias: Array,
        source_bias: Array | None,
        kept: Kept | None,
        index: Array | None,
    ) -> tuple[Array, Kept | None]:
        a, dtype = self.architecture, self.dtype
        side = a.decoder if self.decoder else a.encoder

        def part(x: Array, name: str, call: Any) -> tuple[Array, Any]:
            norm = _norm(dtype, name)
            y, more = call(norm(x) if a.habits.norm_first else x)
            x = x + Dropout(a.dropout)(y)
            return (x if a.habits.norm_first else norm(x)), more

        def own(y: Array) -> tuple[Array, Any]:
            attend = Attention(a, dtype, side.heads, name="self_attn")
            return attend(y, y, bias, kept and kept.own, index)

        def cross(y: Array) -> tuple[Array, Any]:
            assert source_bias is not None
            attend = Attention(a, dtype, side.heads, name="encoder_attn")
            return attend(y, source, source_bias, kept and kept.source, index)

        def forward(y: Array) -> tuple[Array, Any]:
            y = ACTIVATIONS[a.activation](_dense(side.middle, a, dtype, "fc1")(y))
            return _dense(a.d_model, a, dtype, "fc2")(Dropout(a.activation_dropout)(y)), None

        x, own_kept = part(x, "self_attn_layer_norm", own)
        new = None
        if self.decoder:
            x, read = part(x, "encoder_attn_layer_norm", cross)
            new = None if own_kept is None else Kept(own_kept, read)
        return part(x, "final_layer_norm", forward)[0], new


class Blocks(nn.Module):
    """The blocks of a stack, named by their numbers."""

    architecture: BartArchitecture
    dtype: DTypeLike
    decoder: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        source: Array | None,
        bias: Array,
        source_bias: Array | None,
        kept: tuple[Kept, ...] | None = None,
        index: Array | None = None,
    ) -> tuple[Array, tuple[Kept | None, ...]]:
        a, call, new = self.architecture, Alike(), []
        for number in range((a.decoder if self.decoder else a.encoder).layers):
            block = Block(a, self.dtype, self.decoder, name=str(number))
            mine = None if kept is None else kept[number]
            x, one = call(block, x, source, bias, source_bias, mine, index)
            new.append(one)
        return x, tuple(new)


class Stack(nn.Module):
    """Encoder or decoder: words and places, blocks, and what norms the family has beside them."""

    architecture: BartArchitecture
    dtype: DTypeLike
    decoder: bool

    @nn.compact
    def __call__(
        self, x: Array, positions: Array, *rest: Any
    ) -> tuple[Array, tuple[Kept | None, ...]]:
        """Take words (..., D) and their places, of which there may be fewer rows."""
        a, dtype = self.architecture, self.dtype
        if a.habits.sinusoidal:
            places = jnp.asarray(halves(a.max_positions, a.d_model))[positions]
        else:
            normal = nn.initializers.normal(a.deviation)
            table = nn.Embed(
                a.max_positions + 2, a.d_model, embedding_init=normal, name="embed_positions"
            )
            places = table(positions + 2)
        x = (x + places).reshape(-1, a.d_model).astype(dtype)
        if a.habits.norm_embeddings:
            x = _norm(dtype, "layernorm_embedding")(x)
        x, kept = Blocks(a, dtype, self.decoder, name="layers")(Dropout(a.dropout)(x), *rest)
        return (_norm(dtype, "layer_norm")(x) if a.habits.norm_first else x), kept


class Trunk(nn.Module):
    """The level of the tree that checkpoints call `model`."""

    architecture: BartArchitecture
    dtype: DTypeLike

    def setup(self) -> None:
        """Name the parts as checkpoints do."""
        a = self.architecture
        normal = nn.initializers.normal(a.deviation)
        self.shared = nn.Embed(a.vocab_size, a.d_model, embedding_init=normal)
        self.encoder = Stack(a, self.dtype, decoder=False)
        self.decoder = Stack(a, self.dtype, decoder=True)

    def embed(self, ids: Array) -> Array:
        """Return (..., D) words, scaled if the config says so."""
        x = self.shared(ids)
        return x * math.sqrt(self.architecture.d_model) if self.architecture.scaled else x

    def encode(self, ids: Array, positions: Array, bias: Array) -> Array:
        """Return (B*T, D) of the source."""
        return self.encoder(self.embed(ids), positions, None, bias, None)[0]

    def decode(
        self, ids: Array, positions: Array, *rest: Any
    ) -> tuple[Array, tuple[Kept | None, ...]]:
        """Return (N, D) and the memory."""
        return self.decoder(self.embed(ids), positions, *rest)

    def words(self) -> Array:
        """Return the (V, D) table."""
        return self.shared.embedding


class Bart(nn.Module):
    """BART or its kin with the language-modelling head."""

    architecture: BartArchitecture
    dtype: DTypeLike

    def setup(self) -> None:
        """Name the parts as checkpoints do."""
        a = self.architecture
        self.model = Trunk(a, self.dtype)
        zeros = nn.initializers.zeros
        self.final_logits_bias = self.param("final_logits_bias", zeros, (1, a.vocab_size))
        if not a.tied:
            kernel = nn.initializers.normal(a.deviation)
            self.lm_head = nn.Dense(
                a.vocab_size, use_bias=False, dtype=jnp.float32, kernel_init=kernel
            )

    def __call__(self, pair: Pair) -> Array:
        """Return (B, U, V) float32 logits."""
        x_BUD = self.hidden(pair)
        return self.scores(x_BUD.reshape(-1, x_BUD.shape[-1])).reshape(*x_BUD.shape[:2], -1)

    def hidden(self, pair: Pair) -> Array:
        """Return (B, U, D): what the head reads."""
        source_ND = self.encode(pair.input_ids, pair.bias, pair.positions)
        x_ND, _ = self.model.decode(
            *(pair.decoder_input_ids, pair.decoder_positions, source_ND),
            *(pair.decoder_bias, pair.cross_bias),
        )
        return x_ND.reshape(*pair.decoder_input_ids.shape, -1)

    def encode(self, input_ids: Array, bias: Array, positions: Array) -> Array:
        """Return (B*T, D) of the source."""
        return self.model.encode(input_ids, positions, bias)

    def step(
        self, tokens: Array, source: Array | None, kept: tuple[Kept, ...], now: Now
    ) -> tuple[Array, tuple[Kept | None, ...]]:
        """Return (R, V) logits and the memory, of one token in each row; (R,) int32."""
        x_RD, new = self.model.decode(
            tokens, now.place, source, now.own_bias, now.source_bias, kept, now.place
        )
        return self.scores(x_RD), new

    def scores(self, x_ND: Array) -> Array:
        """Return (N, V) float32."""
        x_ND = x_ND.astype(jnp.float32)
        if self.architecture.tied:
            scores_NV = times(x_ND, self.model.words().astype(jnp.float32))
        else:
            scores_NV = self.lm_head(x_ND)
        return scores_NV + self.final_logits_bias.astype(jnp.float32)


def room(a: BartArchitecture, rows: int, tokens: int, dtype: DTypeLike) -> tuple[Kept, ...]:
    """Return the empty memory of so many rows and tokens."""
    heads = a.decoder.heads
    return empty(a.decoder.layers, (rows, heads, tokens, a.d_model // heads), dtype)


def words(a: BartArchitecture, params: Mapping[str, Any]) -> Array:
    """Return the (V, D) matrix whose product with `hidden`, and the final bias, are the logits."""
    if a.tied:
        return params["model"]["shared"]["embedding"].astype(jnp.float32)
    return params["lm_head"]["kernel"].T.astype(jnp.float32)
