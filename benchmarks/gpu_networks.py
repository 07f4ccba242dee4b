"""The networks of `gpu_steps.py`: their shapes, random weights, and a batch of noise."""

from typing import Any

RESNET = {
    "model_type": "resnet", "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3], "layer_type": "bottleneck",
}  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "image_size": 224, "patch_size": 16, "num_channels": 3,
    "qkv_bias": True, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12,
}  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
    "type_vocab_size": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12,
}  # fmt: skip
NETWORKS = {"ResNet-50": RESNET, "ViT-B/16": VIT, "BERT-base": BERT}
TINY = {
    "ResNet-50": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "embedding_size": 16},
    "ViT-B/16": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "intermediate_size": 64, "image_size": 32},
    "BERT-base": {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 3,
                  "num_attention_heads": 2, "intermediate_size": 64},
}  # fmt: skip
"""What differs where the paths alone are tried."""
LABELS = 10


def network(name: str, tiny: bool) -> tuple[Any, Any]:
    """Return a network that computes in bfloat16, and float32 weights drawn at random."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sftjax.core import map_with_path
    from sftjax.models import Head, build

    config = NETWORKS[name] | (TINY[name] if tiny else {})
    labels = tuple(f"class {number}" for number in range(LABELS))
    head = Head("sequence" if name == "BERT-base" else "image", labels)
    model = build(config, head, dtype=jnp.bfloat16)
    rng = np.random.default_rng(0)

    def draw(path: str, leaf: Any) -> np.ndarray:
        if path.endswith("kernel") and len(leaf.shape) == 4 and name == "ResNet-50":
            fan_in = int(np.prod(leaf.shape[:-1]))
            draws = rng.standard_normal(leaf.shape, dtype=np.float32)
            return draws * np.float32((1 / fan_in) ** 0.5)
        if path.endswith(("scale", "var")):
            return np.ones(leaf.shape, np.float32)
        if path.endswith(("bias", "mean")):
            return np.zeros(leaf.shape, np.float32)
        return np.float32(0.02) * rng.standard_normal(leaf.shape, dtype=np.float32)

    return model, jax.device_put(map_with_path(draw, model.shapes()))


def batch_of(name: str, tiny: bool) -> dict[str, Any]:
    """Return a batch of noise: pictures, or full rows of tokens."""
    import numpy as np

    config = NETWORKS[name] | (TINY[name] if tiny else {})
    rng = np.random.default_rng(1)
    if name == "BERT-base":
        rows, length = (4, 16) if tiny else (32, 128)
        ids = rng.integers(1000 % config["vocab_size"], config["vocab_size"], (rows, length))
        return {
            "input_ids": ids.astype(np.int32),
            "attention_mask": np.ones((rows, length), np.int32),
            "labels": rng.integers(0, LABELS, rows).astype(np.int32),
        }
    rows, side = (4, 32) if tiny else (64, 224)
    return {
        "pixel_values": rng.standard_normal((rows, side, side, 3), dtype=np.float32),
        "labels": rng.integers(0, LABELS, rows).astype(np.int32),
    }
