"""Small random decoders of every family, and rows for them, from NumPy alone (see `reference`)."""

import pathlib
import runpy
from types import SimpleNamespace

import numpy as np

reference = SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "reference.py")))
Case = reference.Case

SIZES = {
    "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HIGH = 3000
"""Where the positions of the second row start."""


def llama(**more):
    return Case("LlamaForCausalLM", "causal-lm", SIZES | {"model_type": "llama"} | more)


def of(torch_class, family, **more):
    return Case(torch_class, "causal-lm", SIZES | {"model_type": family} | more)


GPT2 = {
    "model_type": "gpt2", "vocab_size": 50, "n_embd": 64, "n_layer": 2, "n_head": 4,
    "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

CASES = {
    "llama": llama(),
    "llama-untied-biases": llama(
        attention_bias=True, mlp_bias=True, num_key_value_heads=4, hidden_act="gelu"),
    "llama-tied-head_dim": llama(
        tie_word_embeddings=True, head_dim=24, num_key_value_heads=1, rms_norm_eps=1e-3),
    "llama-linear": llama(rope_scaling={"type": "linear", "factor": 4.0}, rope_theta=500.0),
    "llama-dynamic": llama(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    "llama-llama3": llama(rope_theta=500000.0, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}),
    "llama-yarn": llama(rope_parameters={
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0,
        "original_max_position_embeddings": 256}),
    "llama-sequence": Case("LlamaForSequenceClassification", "sequence",
        SIZES | {"model_type": "llama"}, 3),
    "llama-hidden": Case("LlamaModel", "hidden", SIZES | {"model_type": "llama"}),
    "mistral": of("MistralForCausalLM", "mistral", sliding_window=6, head_dim=16),
    "smollm3": of("SmolLM3ForCausalLM", "smollm3", no_rope_layers=[1, 0]),
    "smollm3-window": of("SmolLM3ForCausalLM", "smollm3", no_rope_layer_interval=2,
        use_sliding_window=True, sliding_window=5, tie_word_embeddings=False),
    "qwen2": of("Qwen2ForCausalLM", "qwen2"),
    "qwen2-window": of("Qwen2ForCausalLM", "qwen2", use_sliding_window=True, sliding_window=5,
        max_window_layers=1, tie_word_embeddings=True),
    "qwen3": of("Qwen3ForCausalLM", "qwen3", head_dim=32),
    "gemma2": of("Gemma2ForCausalLM", "gemma2", sliding_window=6, head_dim=24,
        query_pre_attn_scalar=20, attn_logit_softcapping=5.0, final_logit_softcapping=4.0),
    "gemma3": of("Gemma3ForCausalLM", "gemma3_text", sliding_window=6, head_dim=24,
        num_hidden_layers=3, sliding_window_pattern=3, query_pre_attn_scalar=20,
        rope_theta=1e6, rope_local_base_freq=1e3,
        rope_scaling={"rope_type": "linear", "factor": 8.0}),
    "gpt2": Case("GPT2LMHeadModel", "causal-lm", GPT2),
    "gpt2-scaled": Case("GPT2LMHeadModel", "causal-lm", GPT2 | {
        "n_inner": 80, "activation_function": "relu", "scale_attn_by_inverse_layer_idx": True}),
    "gpt2-sequence": Case("GPT2ForSequenceClassification", "sequence", GPT2, 3),
}  # fmt: skip


def inputs(case, seed=1):
    """Three rows: a whole one, one whose positions start high, one with padding on the left."""
    rng = np.random.default_rng(seed)
    rows, length = 3, 20
    mask = np.ones((rows, length), np.int32)
    mask[2, :6] = 0
    ids = np.where(mask, rng.integers(3, 50, (rows, length)), 0).astype(np.int32)
    places = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
    places[1] += 10 if case.config["model_type"] == "gpt2" else HIGH
    return {"input_ids": ids, "attention_mask": mask, "position_ids": places}
