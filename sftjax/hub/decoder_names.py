"""The weight maps of decoders of text."""

from sftjax.hub.names import Row, WeightMap, dense, embedding, norm

_LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_GEMMA_NORMS = (*_LLAMA_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _rms(module: str) -> Row:
    """Row of a norm without bias."""
    return Row(f"{module}.weight", module.replace(".", "/") + "/scale")


def _llama(stem: str, norms: tuple[str, ...] = _LLAMA_NORMS, *, bare: str = "Model") -> WeightMap:
    block = "model.layers.{}"
    linear = [f"self_attn.{name}_proj" for name in "qkvo"]
    linear += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    return WeightMap(
        stem=stem,
        trunk="model",
        rows=(
            *embedding("model.embed_tokens"),
            *(row for name in linear for row in dense(f"{block}.{name}")),
            *(_rms(f"{block}.{name}") for name in norms),
            _rms("model.norm"),
            *dense("lm_head")[:1],
            *dense("score")[:1],
        ),
        ties=(("lm_head.weight", "model.embed_tokens.weight"),),
        buffers=(f"{block}.self_attn.rotary_emb.inv_freq",),  # files before 2023
        output={"sequence": "score"},
        classes={"hidden": bare},
    )


def _kernel(module: str) -> tuple[Row, ...]:
    """Rows of a linear layer that torch keeps as (in, out) too (transformers' `Conv1D`)."""
    path = module.replace(".", "/")
    return (Row(f"{module}.weight", f"{path}/kernel"), Row(f"{module}.bias", f"{path}/bias"))


_GPT2 = "transformer.h.{}"

GPT2 = WeightMap(
    stem="GPT2",
    trunk="transformer",
    rows=(
        *embedding("transformer.wte"),
        *embedding("transformer.wpe"),
        *norm(f"{_GPT2}.ln_1"),
        *_kernel(f"{_GPT2}.attn.c_attn"),
        *_kernel(f"{_GPT2}.attn.c_proj"),
        *norm(f"{_GPT2}.ln_2"),
        *_kernel(f"{_GPT2}.mlp.c_fc"),
        *_kernel(f"{_GPT2}.mlp.c_proj"),
        *norm("transformer.ln_f"),
        *dense("lm_head")[:1],
        *dense("score")[:1],
    ),
    ties=(("lm_head.weight", "transformer.wte.weight"),),
    buffers=(f"{_GPT2}.attn.bias", f"{_GPT2}.attn.masked_bias"),  # masks, in files before 2023
    output={"sequence": "score"},
    classes={"causal-lm": "LMHeadModel"},
)

DECODERS: dict[str, WeightMap] = {
    "gpt2": GPT2,
    "llama": _llama("Llama"),
    "mistral": _llama("Mistral"),
    "smollm3": _llama("SmolLM3"),
    "qwen2": _llama("Qwen2"),
    "qwen3": _llama("Qwen3", (*_LLAMA_NORMS, *_QK_NORMS)),
    "gemma2": _llama("Gemma2", _GEMMA_NORMS),
    "gemma3_text": _llama("Gemma3", (*_GEMMA_NORMS, *_QK_NORMS), bare="TextModel"),
}
"""`model_type` of the config -> its table."""
