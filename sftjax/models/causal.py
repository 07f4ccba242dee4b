"""The pre-norm decoder that Llama, Mistral, SmolLM, Qwen and Gemma share, parameter for parameter.

Between layers hidden states are `x_BTD`; every Dense layer sees them as `x_ND`, all tokens of all
rows in one matrix (see `attention`). Layers are unrolled, not scanned: their leaves keep the
checkpoint's paths, so that blocks are selected, adapted and quantized one by one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.alike import Alike
from sftjax.models.causal_attention import attend, gather
from sftjax.models.causal_config import CausalArchitecture
from sftjax.models.dropout import Dropout
from sftjax.models.few_rows import times
from sftjax.models.norm import over_root_mean_square
from sftjax.models.rope import Rope, angles, turn

REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a layer keeps for the backward pass: everything, nothing but its input, or what its Dense
layers give (attention is then computed twice)."""


class Past(NamedTuple):
    """What one layer remembers, and where the next token goes."""

    keys: Array
    """(B, J, S, K), turned."""
    values: Array
    """(B, J, S, K)."""
    slot: Array
    """() int32: the place of the first new token."""
    seen: Array
    """(B, T, S) booleans: which places the new tokens may look at."""


class Inputs(NamedTuple):
    """One batch as every family's module takes it."""

    input_ids: Array
    """(B, T) int32."""
    position_ids: Array
    """(B, T) or (1, T) int32."""
    segment_ids: Array | None
    """(B, T) int32, 0 for padding; None where nothing but causality holds tokens apart."""
    past: tuple[Past, ...] | None = None
    """For each layer; None where there is nothing before."""


class Settings(NamedTuple):
    """How, not what, a decoder computes; hashable."""

    dtype: DTypeLike = jnp.float32
    attention: str = "auto"
    """One of `causal_attention.IMPLEMENTATIONS`."""
    remat: str = "none"
    """One of `REMAT`."""
    keep: bool = False
    """Whether the layers' keys and values are returned."""


class Look(NamedTuple):
    """What differs between the layers of a decoder; those in which it is equal are alike."""

    scale: float
    """Of the attention scores."""
    window: int | None
    """How many tokens are looked at; None is all."""


def look_of(a: CausalArchitecture, layer: int) -> Look:
    """Return what a layer looks at."""
    return Look(a.scale / (layer + 1 if a.scale_by_layer else 1), a.windows[layer])


def dense(features: int, bias: bool, a: CausalArchitecture, s: Settings, name: str) -> nn.Dense:
    """Return a Dense layer that starts as the config says."""
    normal = nn.initializers.normal(a.initializer_range)
    return nn.Dense(features, use_bias=bias, dtype=s.dtype, kernel_init=normal, name=name)


class RMSNorm(nn.Module):
    """`scale * x / sqrt(mean(x^2) + epsilon)` (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    epsilon: float
    dtype: DTypeLike
    """Of the result; the statistics are float32 whatever it is."""
    unit_offset: bool = False
    """Whether x is multiplied by `1 + scale`, as in Gemma."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (..., D) from (..., D)."""
        start = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],), jnp.float32).astype(jnp.float32)
        scale = scale + 1.0 if self.unit_offset else scale
        return over_root_mean_square(x, scale, self.epsilon).astype(self.dtype)


def norm(a: CausalArchitecture, s: Settings, name: str) -> RMSNorm:
    """Return the family's norm."""
    return RMSNorm(a.norm_eps, s.dtype, a.unit_offset, name=name)


class Attention(nn.Module):
    """Queries look at keys of tokens up to theirs and gather values."""

    architecture: CausalArchitecture
    settings: Settings
    look: Look

    @nn.compact
    def __call__(
        self, x_BTD: Array, turns: tuple[Array, Array] | None, segments: Array | None, past: Any
    ) -> tuple[Array, tuple[Array, Array]]:
        """Return what is gathered, and the keys and values that stand for these tokens."""
        a, s = self.architecture, self.settings
        rows, length, width = x_BTD.shape
        x_ND = x_BTD.reshape(-1, width)

        def heads(name: str, number: int) -> Array:
            y_ND = dense(number * a.head_dim, a.qkv_bias, a, s, name)(x_ND)
            return y_ND.reshape(rows, length, number, a.head_dim)

        q, k = heads("q_proj", a.num_heads), heads("k_proj", a.num_kv_heads)
        v = heads("v_proj", a.num_kv_heads)
        if a.qk_norm:
            q, k = norm(a, s, "q_norm")(q), norm(a, s, "k_norm")(k)
        if turns is not None:
            q, k = turn(q, *turns), turn(k, *turns)
        y, kept = look(a, s, self.look, q, k, v, segments, past)
        y_ND = dense(a.hidden_size, a.out_bias, a, s, "o_proj")(y.reshape(rows * length, -1))
        return y_ND.reshape(x_BTD.shape), kept


def look(
    a: CausalArchitecture,
    s: Settings,
    own: Look,
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    past: Past | None,
) -> tuple[Array, tuple[Array, Array]]:
    """Gather by the layer's own rules, in compact; with a past, look at what it remembers too."""
    dropout = None
    module = Dropout(a.attention_dropout)
    if a.attention_dropout and module.has_rng("dropout"):
        dropout = module
    if past is None:
        y = attend(
            q, k, v, scale=own.scale, segment_ids=segments, window=own.window,
            softcap=a.attention_softcap, implementation=s.attention, dropout=dropout,
        )  # fmt: skip
        return y, (k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))
    k, v = (
        jax.lax.dynamic_update_slice_in_dim(old, new.transpose(0, 2, 1, 3), past.slot, 2)
        for old, new in ((past.keys, k), (past.values, v))
    )
    return gather(q, k, v, past.seen, scale=own.scale, softcap=a.attention_softcap), (k, v)


class Network(nn.Module):
    """`down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202)."""

    architecture: CausalArchitecture
    settings: Settings

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        a, s = self.architecture, self.settings
        x_ND = x_BTD.reshape(-1, a.hidden_size)
        gate = dense(a.intermediate_size, a.mlp_bias, a, s, "gate_proj")(x_ND)
        up = dense(a.intermediate_size, a.mlp_bias, a, s, "up_proj")(x_ND)
        y_ND = dense(a.hidden_size, a.mlp_bias, a, s, "down_proj")(
            ACTIVATIONS[a.activation](gate) * up
        )
        return y_ND.reshape(x_BTD.shape)


class Layer(nn.Module):
    """One block: attention, then the network, each added to what came in."""

    architecture: CausalArchitecture
    settings: Settings
    look: Look

    @nn.compact
    def __call__(
        self, x: Array, turns: tuple[Array, Array] | None, segments: Array | None, past: Any
    ) -> tuple[Array, Any]:
        """Return the block's output and, if they are to be kept, its keys and values."""
        a, s = self.architecture, self.settings
        after, before = "post_attention_layernorm", "post_attention_layernorm"
        if a.sandwich:
            before = "pre_feedforward_layernorm"
        y = norm(a, s, "input_layernorm")(x)
        y, kept = Attention(a, s, self.look, name="self_attn")(y, turns, segments, past)
        x += norm(a, s, after)(y) if a.sandwich else y
        y = Network(a, s, name="mlp")(norm(a, s, before)(x))
        x += norm(a, s, "post_feedforward_layernorm")(y) if a.sandwich else y
        return x, kept if s.keep else None


class Layers(nn.Module):
    """The stack of blocks, named by their numbers."""

    architecture: CausalArchitecture
    settings: Settings
    block: type[nn.Module] = Layer

    @nn.compact
    def __call__(self, x: Array, inputs: Inputs) -> tuple[Array, list[Any]]:
        a, s = self.architecture, self.settings
        turns: dict[Rope | None, Any] = {None: None}
        for rope in a.ropes:
            if rope not in turns and rope is not None:
                turns[rope] = angles(rope, inputs.position_ids)
        block = self.block
        if s.remat != "none":
            block = nn.remat(block, policy=REMAT[s.remat], prevent_cse=True)
        call, kept = Alike(), []
        for i in range(a.num_layers):
            past = None if inputs.past is None else inputs.past[i]
            one = block(a, s, look_of(a, i), name=str(i))
            x, own = call(one, x, turns[a.ropes[i]], inputs.segment_ids, past)
            kept.append(own)
        return x, kept


class Trunk(nn.Module):
    """Word table, layers, and the last norm."""

    architecture: CausalArchitecture
    settings: Settings

    @nn.compact
    def __call__(self, inputs: Inputs) -> tuple[Array, list[Any], Array]:
        """Return (B, T, D) hidden states, what is kept, and the (V, D) word table."""
        a, s = self.architecture, self.settings
        normal = nn.initializers.normal(a.initializer_range)
        # No dtype: it would cast the whole table at every step, not the rows that are read.
        words = nn.Embed(a.vocab_size, a.hidden_size, embedding_init=normal, name="embed_tokens")
        x = words(inputs.input_ids).astype(s.dtype)
        if a.embedding_scale != 1.0:
            x *= jnp.asarray(a.embedding_scale, s.dtype)
        x, kept = Layers(a, s, name="layers")(x, inputs)
        return norm(a, s, "norm")(x), kept, words.embedding


class Decoder(nn.Module):
    """A Llama or its kin, with one head."""

    architecture: CausalArchitecture
    settings: Settings
    kind: str
    """`hidden`, `causal-lm` or `sequence`."""
    labels: int = 0

    @nn.compact
    def __call__(self, inputs: Inputs, last: Array | None = None) -> tuple[Array, list[Any]]:
        """Return what the head gives (of the tokens `last` (B,) alone, if they are named)."""
        x, kept, words_VD = Trunk(self.architecture, self.settings, name="model")(inputs)
        return give(self, x, words_VD, last), kept


def give(module: Any, x_BTD: Array, words_VD: Array, last: Array | None) -> Array:
    """Put the head on hidden states; in the compact `module`, whose last layer this makes."""
    a, s = module.architecture, module.settings
    if last is not None:
        x_BTD = jnp.take_along_axis(x_BTD, last[:, None, None], axis=1)
    if module.kind == "hidden":
        return x_BTD if last is None else x_BTD[:, 0]
    x_ND = x_BTD.reshape(-1, a.hidden_size)
    if module.kind == "sequence":
        score = dense(module.labels, False, a, s._replace(dtype=jnp.float32), "score")
        return score(x_ND.astype(jnp.float32))
    if a.tied:
        scores = times(x_ND, words_VD.astype(s.dtype))
    else:
        scores = nn.Dense(
            a.vocab_size, use_bias=False, dtype=s.dtype, dot_general=_to_float32, name="lm_head",
            kernel_init=nn.initializers.normal(a.initializer_range),
        )(x_ND).astype(jnp.float32)  # fmt: skip
    if a.logit_softcap is not None:
        scores = a.logit_softcap * jnp.tanh(scores / a.logit_softcap)
    return scores if last is not None else scores.reshape(*x_BTD.shape[:-1], -1)


def _to_float32(x: Array, kernel: Array, dimensions: Any, precision: Any = None, **more: Any):
    del more
    return jax.lax.dot_general(x, kernel, dimensions, precision, preferred_element_type=jnp.float32)
