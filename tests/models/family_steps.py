"""A step of every kind of model in shapes, small enough to be compiled for any device."""

import jax
import jax.numpy as jnp
import optax

from sftjax.core import Aux, Loss
from sftjax.models import Head, build
from sftjax.train import init, make_step

ENCODER = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 16,
}  # fmt: skip
BART = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 16, "decoder_start_token_id": 2,
}  # fmt: skip
VIT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
CONFIGS = {
    "bert": ENCODER,
    "distilbert": {"vocab_size": 64, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64,
                   "max_position_embeddings": 16},
    "llama": ENCODER | {"num_key_value_heads": 2},
    "gemma2": ENCODER | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4,
                         "query_pre_attn_scalar": 8},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16},
    "t5": {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4,
           "decoder_start_token_id": 0, "pad_token_id": 0},
    "bart": BART,
    "resnet": {"embedding_size": 8, "hidden_sizes": [16], "depths": [1], "layer_type": "basic"},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320,
                     "num_block_repeats": [1], "kernel_sizes": [3], "strides": [1],
                     "in_channels": [32], "out_channels": [16], "expand_ratios": [6]},
    "convnext": {"num_stages": 1, "hidden_sizes": [8], "depths": [1]},
    "vgg": {"hidden_sizes": [8], "depths": [1], "dense_sizes": [16, 16], "batch_norm": True,
            "pooled_size": 2},
    "vit": VIT,
    "dinov2": VIT | {"mlp_ratio": 2},
}  # fmt: skip
"""A model of every module; other families are these with other numbers."""

SAME = {
    "roberta": "bert", "xlm-roberta": "bert", "mt5": "t5", "mbart": "bart", "pegasus": "bart",
    "marian": "bart", "deit": "vit", "mistral": "llama", "smollm3": "llama", "qwen2": "llama",
    "qwen3": "gemma2", "gemma3_text": "gemma2",
}  # fmt: skip


KINDS = {"bert": "sequence", "distilbert": "sequence", "t5": "seq2seq-lm", "bart": "seq2seq-lm"}
KINDS |= dict.fromkeys(("llama", "gemma2", "gpt2"), "causal-lm")


def model_of(family):
    kind = KINDS.get(family, "image")
    labels = ("a", "b", "c") if kind in ("sequence", "image") else ()
    return build({"model_type": family, **CONFIGS[family]}, Head(kind, labels))


def run_of(family):
    """Return a step, its state in shapes, and a batch in shapes."""
    model = model_of(family)

    def objective(params, model_state, batch, key):
        return Loss(jnp.square(model.apply(params, batch, key)).sum(), 8.0), Aux({})

    shapes, tx = model.shapes(), optax.sgd(0.1)
    moves = jax.tree.map(lambda _: True, shapes)
    key = jax.random.key(0)
    state, fixed = jax.eval_shape(lambda params, key: init(params, moves, tx, key), shapes, key)
    words = jax.ShapeDtypeStruct((8, 8), jnp.int32)
    if model.head.kind == "image":
        batch = {"pixel_values": jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32)}
    else:
        batch = {"input_ids": words, "attention_mask": words}
    if model.head.kind == "seq2seq-lm":
        batch["decoder_input_ids"] = words
    return make_step(objective, tx), state, fixed, batch
