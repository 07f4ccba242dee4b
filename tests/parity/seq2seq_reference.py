"""Small random encoder-decoders of every family, and rows for them, from NumPy alone."""

import pathlib
import runpy
from types import SimpleNamespace

import numpy as np

reference = SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "reference.py")))
Case = reference.Case

T5 = {
    "model_type": "t5", "vocab_size": 40, "d_model": 64, "d_kv": 12, "d_ff": 96, "num_layers": 1,
    "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
BART = {
    "vocab_size": 40, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 80, "max_position_embeddings": 32, "decoder_start_token_id": 2,
    "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MARIAN = {
    "pad_token_id": 39, "eos_token_id": 0, "forced_eos_token_id": 0, "decoder_start_token_id": 39,
}  # fmt: skip


def t5(**more):
    return Case("T5ForConditionalGeneration", "seq2seq-lm", T5 | more)


def bart(stem, suffix="ForConditionalGeneration", **more):
    return Case(stem + suffix, "seq2seq-lm", BART | {"model_type": stem.lower()} | more)


CASES = {
    "t5": t5(),
    "t5-1.1": t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "t5-gated-tied": t5(feed_forward_proj="gated-silu", num_decoder_layers=2),
    "mt5": Case("MT5ForConditionalGeneration", "seq2seq-lm", T5 | {
        "model_type": "mt5", "feed_forward_proj": "gated-gelu"}),
    "bart": bart("Bart", scale_embedding=True),
    "mbart": bart("MBart", activation_function="relu"),
    "pegasus": bart("Pegasus", scale_embedding=True, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1),
    "marian": bart("Marian", "MTModel", activation_function="swish", **MARIAN),
}  # fmt: skip


WRITTEN = {
    "greedy": ("t5-1.1", {}),
    "beams-early": ("t5-1.1", {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0,
        "no_repeat_ngram_size": 2, "min_new_tokens": 5, "eos_token_id": [1, 8, 21]}),
    "beams-never": ("t5-1.1", {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5,
        "eos_token_id": [1, 5, 9]}),
    "greedy-rules": ("t5-1.1", {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3,
        "min_length": 4, "forced_bos_token_id": 7, "forced_eos_token_id": 1,
        "bad_words_ids": [[4]]}),
    "bart": ("bart", {"num_beams": 4, "forced_bos_token_id": 3, "no_repeat_ngram_size": 2}),
    "marian": ("marian", {"num_beams": 2, "no_repeat_ngram_size": 1}),
    "pegasus": ("pegasus", {"no_repeat_ngram_size": 2}),
}  # fmt: skip
"""Name -> the model that writes, and what is asked of transformers' `generate`."""
ROOM = 12
"""Most tokens that are written."""


def sources(case):
    """Return what a model writes about: the first tokens of `inputs`."""
    return {name: inputs(case)[name][:, :9] for name in ("input_ids", "attention_mask")}


def inputs(case, seed=0):
    """Three rows: a whole one, one padded on the right, one on the left."""
    del case
    rng = np.random.default_rng(seed)
    ids, targets = (rng.integers(3, 38, (3, n)).astype(np.int32) for n in (20, 17))
    mask, target_mask = np.ones_like(ids), np.ones_like(targets)
    mask[1, 9:], mask[2, :4], target_mask[1, 7:] = 0, 0, 0
    return {
        "input_ids": ids, "attention_mask": mask, "decoder_input_ids": targets,
        "decoder_attention_mask": target_mask,
    }  # fmt: skip


def labels(case, seed=0):
    """Return what is to be said after each token of the targets, -100 where nothing is."""
    batch = inputs(case, seed)
    return np.where(batch["decoder_attention_mask"], batch["decoder_input_ids"], -100)
