"""The asset `flan-t5-titles`: int8 ONNX files turned into a folder of the Hub's layout."""

import json
import re
from pathlib import Path

import numpy as np

from sftjax.data.onnx_tensors import Graph, read_onnx

CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
"""Of Flan-T5-small; the package has none, the shapes of the tensors are checked against it."""
GENERATION = {name: CONFIG[name] for name in ("pad_token_id", "eos_token_id")} | {
    "decoder_start_token_id": 0
}
TOKENIZER = {
    "tokenizer_class": "T5TokenizerFast",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "model_max_length": 512,
}


def write_folder(folder: Path) -> None:
    """Replace `encoder.onnx` and `decoder.onnx` by `model.safetensors`, `config.json` and kin.

    Each weight is `(int8 - zero_point) * scale`, float32. The head is one of its own.

    Raises:
      ValueError: if a file is damaged or holds another model.
    """
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for name in ("encoder.onnx", "decoder.onnx"):
        tensors |= _tensors(read_onnx(folder / name))
    table, head = tensors.get("shared.weight"), tensors.get("lm_head.weight")
    size = (CONFIG["vocab_size"], CONFIG["d_model"])
    if table is None or head is None or table.shape != size or head.shape != size:
        raise ValueError(
            f"{folder} holds no T5 of {size[0]} words and width {size[1]}: {len(tensors)} tensors, "
            f"such as {sorted(tensors)[:4]}"
        )
    for alias in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if alias in tensors and np.array_equal(tensors[alias], table):
            del tensors[alias]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION),
        ("tokenizer_config.json", TOKENIZER),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in ("encoder.onnx", "decoder.onnx"):
        (folder / name).unlink()


def _tensors(graph: Graph) -> dict[str, np.ndarray]:
    stored, found = graph.tensors, {}

    def exact(name: str) -> np.ndarray:
        zero, scale = stored[f"{name}_zero_point"], stored[f"{name}_scale"]
        values = stored[f"{name}_quantized"].astype(np.float32)
        return ((values - zero.astype(np.float32)) * scale).astype(np.float32)

    for name, values in stored.items():
        if name.endswith("_quantized") and not name.startswith("onnx::"):  # tables
            found[_spelled(name.removesuffix("_quantized"))] = exact(
                name.removesuffix("_quantized")
            )
        elif name.endswith("layer_norm.weight"):
            found[_spelled(name)] = np.ascontiguousarray(values)
    for node in graph.nodes:
        # A product's weight has lost its name; the node that reads it has kept it.
        if node.operation == "MatMulInteger" and node.inputs[1] in stored:
            module = node.name.strip("/").replace("/", ".").replace(".MatMul_quant", "")
            weight = exact(node.inputs[1].removesuffix("_quantized"))
            found[f"{_spelled(module)}.weight"] = np.ascontiguousarray(weight.T)
    return found


def _spelled(name: str) -> str:
    return re.sub(r"^enc\.", "encoder.", re.sub(r"^m\.", "", name))
