"""The configs of decoders of text with rotary positions, read into one architecture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import given, require
from sftjax.models.rope import Rope, read_rope

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class CausalArchitecture:
    """Everything a decoder's computation depends on, under one name for all families; hashable."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    activation: str
    norm_eps: float
    initializer_range: float
    pad_token_id: int | None
    tied: bool
    """Whether the output matrix is the word table."""
    windows: tuple[int | None, ...]
    """For each layer, how many tokens back it looks; None for all."""
    ropes: tuple[Rope | None, ...]
    """For each layer, how positions turn its heads; None for not at all."""
    scale: float
    """What attention scores are multiplied by."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether each head's queries and keys are normed."""
    sandwich: bool = False
    """Whether what attention and network give is normed too, before it is added."""
    unit_offset: bool = False
    """Whether norms multiply by 1 + scale."""
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    embedding_dropout: float = 0.0
    learned_positions: bool = False
    scale_by_layer: bool = False
    """Whether scores are divided by the layer's number, the lowest being 1."""


def llama(config: Mapping[str, Any]) -> CausalArchitecture:
    """Read a Llama's config (SmolLM2's too); absent fields take transformers' defaults.

    >>> llama(dict.fromkeys(SIZES, 4) | {"hidden_size": 16}).head_dim
    4
    """
    return _read(
        config,
        qkv_bias=given(config, "attention_bias", False),
        out_bias=given(config, "attention_bias", False),
        mlp_bias=given(config, "mlp_bias", False),
    )


def mistral(config: Mapping[str, Any]) -> CausalArchitecture:
    """Read a Mistral's config: every layer has the window."""
    window = config.get("sliding_window", 4096)
    return _read(config, windows=(window,) * config.get("num_hidden_layers", 0))


def smollm3(config: Mapping[str, Any]) -> CausalArchitecture:
    """Read a SmolLM3's config: some layers know no positions."""
    require(config, SIZES)
    layers = config["num_hidden_layers"]
    every = given(config, "no_rope_layer_interval", 4)
    turned = given(config, "no_rope_layers", [int((i + 1) % every != 0) for i in range(layers)])
    if len(turned) < layers:
        raise ValueError(f"no_rope_layers has {len(turned)} entries for {layers} layers")
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    types = config.get("layer_types") or [LAYER_TYPES[not has] for has in turned[:layers]]
    one = _rope(config, 2e6)
    return _read(
        config,
        kv_heads=4,
        tied=True,
        windows=_windows(types, window, layers),
        ropes=tuple(one if has else None for has in turned[:layers]),
        qkv_bias=given(config, "attention_bias", False),
        out_bias=given(config, "attention_bias", False),
        mlp_bias=given(config, "mlp_bias", False),
    )


def qwen2(config: Mapping[str, Any]) -> CausalArchitecture:
    """Read the config of a Qwen2 or Qwen2.5: queries, keys and values have biases."""
    return _read(config, windows=_qwen_windows(config), qkv_bias=True)


def qwen3(config: Mapping[str, Any]) -> CausalArchitecture:
    """Read a Qwen3's config: queries and keys are normed."""
    bias = given(config, "attention_bias", False)
    return _read(
        {"head_dim": 128, **config},
        windows=_qwen_windows(config),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
    )


def gemma2(config: Mapping[str, Any]) -> CausalArchitecture:
    """Read a Gemma 2's config: every second layer has a window, scores and logits have caps."""
    return _gemma(
        config,
        every=2,
        attention_softcap=config.get("attn_logit_softcapping", 50.0),
        logit_softcap=config.get("final_logit_softcapping", 30.0),
    )


def gemma3(config: Mapping[str, Any]) -> CausalArchitecture:
    """Read a Gemma 3's text config: five layers of six have a window and a base of their own."""
    config = {"head_dim": 256, **config}
    require(config, SIZES)
    types = _gemma_types(config, config.get("sliding_window_pattern", 6))
    stored = config.get("rope_parameters") or {}
    bases = {
        "full_attention": given(config, "rope_theta", 1e6),
        "sliding_attention": given(config, "rope_local_base_freq", 1e4),
    }
    scaled = {"full_attention": config.get("rope_scaling"), "sliding_attention": None}
    by_type = {
        name: _rope_of(config, stored.get(name) or scaled[name], bases[name])
        for name in LAYER_TYPES
    }
    return _gemma(
        config,
        every=config.get("sliding_window_pattern", 6),
        ropes=tuple(by_type[name] for name in types),
        qk_norm=True,
        attention_softcap=config.get("attn_logit_softcapping"),
        logit_softcap=config.get("final_logit_softcapping"),
    )


READ = {
    "llama": llama,
    "mistral": mistral,
    "smollm3": smollm3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
}
"""`model_type` of a config -> its reader. All raise ValueError as `check_causal` does."""


_SPELLED = {
    "norm_eps": "rms_norm_eps (or layer_norm_epsilon)",
    "head_dim": "head_dim",
    "scale": "scale of attention (query_pre_attn_scalar)",
    "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
}
"""Our name of a number that must be above 0 -> its field of a config.json."""


def check_causal(a: CausalArchitecture) -> CausalArchitecture:
    """Return an architecture whose numbers fit together.

    Raises:
      ValueError: if heads of keys do not divide heads of queries, a number that must be positive is
        not, the activation is unknown, or the padding token lies outside the vocabulary.
    """
    if a.num_kv_heads < 1 or a.num_heads % a.num_kv_heads:
        raise ValueError(
            f"the {a.num_heads} attention heads cannot share {a.num_kv_heads} heads of keys "
            "(num_key_value_heads); it must be a divisor"
        )
    if a.activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {a.activation!r} in the config; known: {', '.join(ACTIVATIONS)}"
        )
    if a.pad_token_id is not None and not -1 <= a.pad_token_id < a.vocab_size:
        raise ValueError(
            f"pad_token_id {a.pad_token_id} lies outside the vocabulary of {a.vocab_size} tokens"
        )
    for name, spelled in _SPELLED.items():
        value = getattr(a, name)
        if value is not None and not value > 0:
            raise ValueError(f"the config's {spelled} must be above 0, not {value!r}")
    if small := [window for window in a.windows if window is not None and window < 1]:
        raise ValueError(
            f"the config's sliding_window must hold at least one token, not {small[0]}; set it to "
            "null for no window"
        )
    return a


def _read(
    config: Mapping[str, Any],
    *,
    kv_heads: int | None = None,
    tied: bool = False,
    activation: str = "hidden_act",
    windows: tuple[int | None, ...] | None = None,
    ropes: tuple[Rope | None, ...] | None = None,
    **more: Any,
) -> CausalArchitecture:
    require(config, SIZES)
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    head_dim = _head_dim(config)
    default = "gelu_pytorch_tanh" if activation == "hidden_activation" else "silu"
    more = {"scale": head_dim**-0.5, **more}
    return check_causal(
        CausalArchitecture(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=given(config, "num_key_value_heads", kv_heads or heads),
            head_dim=head_dim,
            intermediate_size=config["intermediate_size"],
            max_positions=config["max_position_embeddings"],
            activation=given(config, activation, default),
            norm_eps=given(config, "rms_norm_eps", 1e-6),
            initializer_range=given(config, "initializer_range", 0.02),
            pad_token_id=config.get("pad_token_id"),
            tied=given(config, "tie_word_embeddings", tied),
            windows=windows or (None,) * layers,
            ropes=ropes or (_rope(config, 1e4),) * layers,
            attention_dropout=given(config, "attention_dropout", 0.0),
            **more,
        )
    )


def _gemma(config: Mapping[str, Any], every: int, **more: Any) -> CausalArchitecture:
    require(config, SIZES)
    if config.get("use_bidirectional_attention"):
        raise ValueError(
            "config field use_bidirectional_attention=True is not supported: the model would look "
            "at tokens to come; choose a causal checkpoint"
        )
    layers = config["num_hidden_layers"]
    bias = given(config, "attention_bias", False)
    return _read(
        {"head_dim": 256, "num_key_value_heads": 4, **config},
        tied=True,
        activation="hidden_activation",
        windows=_windows(_gemma_types(config, every), config.get("sliding_window", 4096), layers),
        scale=given(config, "query_pre_attn_scalar", 256) ** -0.5,
        qkv_bias=bias,
        out_bias=bias,
        sandwich=True,
        unit_offset=True,
        embedding_scale=config["hidden_size"] ** 0.5,
        **more,
    )


def _gemma_types(config: Mapping[str, Any], every: int) -> list[str]:
    layers = range(config.get("num_hidden_layers", 0))
    return config.get("layer_types") or [LAYER_TYPES[bool((i + 1) % every)] for i in layers]


def _qwen_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    layers = config.get("num_hidden_layers", 0)
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    first = given(config, "max_window_layers", 28)
    types = config.get("layer_types") or [LAYER_TYPES[i >= first] for i in range(layers)]
    return _windows(types, window, layers)


def _windows(types: list[str], window: int | None, layers: int) -> tuple[int | None, ...]:
    unknown = sorted({*types} - {*LAYER_TYPES})
    if unknown or len(types) < layers:
        raise ValueError(
            f"layer_types must name one of {', '.join(LAYER_TYPES)} for each of the {layers} "
            f"layers; the config has {len(types)} entries, unknown: {', '.join(unknown) or 'none'}"
        )
    return tuple(window if name == "sliding_attention" else None for name in types[:layers])


def _rope(config: Mapping[str, Any], base: float) -> Rope:
    fields = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return _rope_of(config, fields, given(config, "rope_theta", base))


def _rope_of(config: Mapping[str, Any], fields: Mapping[str, Any] | None, base: float) -> Rope:
    return read_rope(fields or {}, _head_dim(config), config["max_position_embeddings"], base)


def _head_dim(config: Mapping[str, Any]) -> int:
    return given(config, "head_dim", config["hidden_size"] // config["num_attention_heads"])
