"""GPT-2 (Radford et al. 2019): learned positions, LayerNorms, one product for q, k and v."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import given, require
from sftjax.models.causal import Inputs, Layers, Look, Settings, dense, give, look
from sftjax.models.causal_config import CausalArchitecture, check_causal
from sftjax.models.dropout import Dropout
from sftjax.models.norm import LayerNorm

SIZES = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")


def gpt2(config: Mapping[str, Any]) -> CausalArchitecture:
    """Read a GPT-2's config; absent fields take transformers' defaults.

    Raises:
      ValueError: as `require` and `check_causal` do.

    >>> gpt2({"model_type": "gpt2", **dict.fromkeys(SIZES, 4)}).intermediate_size
    16
    """
    require(config, SIZES)
    width, layers, heads = config["n_embd"], config["n_layer"], config["n_head"]
    if width % heads:
        raise ValueError(
            f"n_embd {width} is not a multiple of the {heads} attention heads; the config "
            "describes no model that can exist"
        )
    scaled = given(config, "scale_attn_weights", True)
    return check_causal(
        CausalArchitecture(
            vocab_size=config["vocab_size"],
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=width // heads,
            intermediate_size=given(config, "n_inner", 4 * width),
            max_positions=config["n_positions"],
            activation=given(config, "activation_function", "gelu_new"),
            norm_eps=given(config, "layer_norm_epsilon", 1e-5),
            initializer_range=given(config, "initializer_range", 0.02),
            pad_token_id=config.get("pad_token_id"),
            tied=given(config, "tie_word_embeddings", True),
            windows=(None,) * layers,
            ropes=(None,) * layers,
            scale=(width // heads) ** -0.5 if scaled else 1.0,
            scale_by_layer=given(config, "scale_attn_by_inverse_layer_idx", False),
            attention_dropout=given(config, "attn_pdrop", 0.1),
            residual_dropout=given(config, "resid_pdrop", 0.1),
            embedding_dropout=given(config, "embd_pdrop", 0.1),
            learned_positions=True,
        )
    )


class Attention(nn.Module):
    """Causal attention whose queries, keys and values come of one product."""

    architecture: CausalArchitecture
    settings: Settings
    look: Look

    @nn.compact
    def __call__(self, x_BTD: Array, segments: Array | None, past: Any) -> tuple[Array, Any]:
        a, s = self.architecture, self.settings
        rows, length, width = x_BTD.shape
        x_ND = dense(3 * width, True, a, s, "c_attn")(x_BTD.reshape(-1, width))
        q, k, v = (
            part.reshape(rows, length, a.num_heads, a.head_dim) for part in jnp.split(x_ND, 3, -1)
        )
        y, kept = look(a, s, self.look, q, k, v, segments, past)
        y_ND = dense(width, True, a, s, "c_proj")(y.reshape(-1, width))
        return Dropout(a.residual_dropout)(y_ND).reshape(x_BTD.shape), kept


class Network(nn.Module):
    """`c_proj(act(c_fc(x)))`."""

    architecture: CausalArchitecture
    settings: Settings

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        a, s = self.architecture, self.settings
        x_ND = x_BTD.reshape(-1, a.hidden_size)
        y_ND = ACTIVATIONS[a.activation](dense(a.intermediate_size, True, a, s, "c_fc")(x_ND))
        y_ND = dense(a.hidden_size, True, a, s, "c_proj")(y_ND)
        return Dropout(a.residual_dropout)(y_ND).reshape(x_BTD.shape)


class Layer(nn.Module):
    """One block."""

    architecture: CausalArchitecture
    settings: Settings
    look: Look

    @nn.compact
    def __call__(
        self, x: Array, turns: None, segments: Array | None, past: Any
    ) -> tuple[Array, Any]:
        """Return the block's output and, if they are to be kept, its keys and values."""
        a, s = self.architecture, self.settings
        y = LayerNorm(a.norm_eps, s.dtype, name="ln_1")(x)
        y, kept = Attention(a, s, self.look, name="attn")(y, segments, past)
        x += y
        x += Network(a, s, name="mlp")(LayerNorm(a.norm_eps, s.dtype, name="ln_2")(x))
        return x, kept if s.keep else None


class Trunk(nn.Module):
    """Words and places, layers, and the last norm."""

    architecture: CausalArchitecture
    settings: Settings

    @nn.compact
    def __call__(self, inputs: Inputs) -> tuple[Array, list[Any], Array]:
        """Return (B, T, D) hidden states, what is kept, and the (V, D) word table."""
        a, s = self.architecture, self.settings
        normal = nn.initializers.normal(a.initializer_range)
        words = nn.Embed(a.vocab_size, a.hidden_size, embedding_init=normal, name="wte")
        places = nn.Embed(a.max_positions, a.hidden_size, embedding_init=normal, name="wpe")
        x = words(inputs.input_ids) + places(inputs.position_ids)
        x = Dropout(a.embedding_dropout)(x.astype(s.dtype))
        x, kept = Layers(a, s, Layer, name="h")(x, inputs)
        return LayerNorm(a.norm_eps, s.dtype, name="ln_f")(x), kept, words.embedding


class Gpt2(nn.Module):
    """GPT-2 with one head."""

    architecture: CausalArchitecture
    settings: Settings
    kind: str
    """`hidden`, `causal-lm` or `sequence`."""
    labels: int = 0

    @nn.compact
    def __call__(self, inputs: Inputs, last: Array | None = None) -> tuple[Array, list[Any]]:
        """Return what the head gives (of the tokens `last` (B,) alone, if they are named)."""
        x, kept, words_VD = Trunk(self.architecture, self.settings, name="transformer")(inputs)
        return give(self, x, words_VD, last), kept
