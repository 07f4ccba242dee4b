"""The model and the batch that the benchmarks of one step share: MiniLM-L6, 22.7 M parameters.

Speed does not depend on the values of the weights, so that nothing is downloaded.
"""

from typing import Any

import numpy as np

CONFIG = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LEARNING_RATE = 2e-5


def batch_of(rows: int, length: int, vocab_size: int = 30522) -> dict[str, np.ndarray]:
    """Return a full batch of random tokens and two classes, the same in every process."""
    draw = np.random.default_rng(0)
    return {
        "input_ids": draw.integers(1, vocab_size, (rows, length), dtype=np.int32),
        "attention_mask": np.ones((rows, length), np.int32),
        "token_type_ids": np.zeros((rows, length), np.int32),
        "labels": draw.integers(0, 2, rows, dtype=np.int32),
    }


def model_of(**changes: Any) -> Any:
    """Return our model of that config, with a head for two classes."""
    from sftjax.models import Head, build

    return build({**CONFIG, **changes}, Head("sequence", ("negative", "positive")))
