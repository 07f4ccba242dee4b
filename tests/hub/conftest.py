"""Small checkpoints as transformers writes them, from name lists that are not ours."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

D, F, V, P, LAYERS = 8, 16, 20, 12, 2


def linear(name: str, inside: int, outside: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outside, inside), f"{name}.bias": (outside,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def trunk(family: str, pooler: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of transformers' bare encoder."""
    shapes = {
        "embeddings.word_embeddings.weight": (V, D),
        "embeddings.position_embeddings.weight": (P, D),
        **norm("embeddings.LayerNorm"),
    }
    if family == "distilbert":
        for i in range(LAYERS):
            block = f"transformer.layer.{i}"
            for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
                shapes |= linear(f"{block}.attention.{name}", D, D)
            shapes |= norm(f"{block}.sa_layer_norm") | norm(f"{block}.output_layer_norm")
            shapes |= linear(f"{block}.ffn.lin1", D, F) | linear(f"{block}.ffn.lin2", F, D)
        return shapes
    shapes["embeddings.token_type_embeddings.weight"] = (2 if family == "bert" else 1, D)
    for i in range(LAYERS):
        block = f"encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{block}.attention.{name}", D, D)
        shapes |= norm(f"{block}.attention.output.LayerNorm") | norm(f"{block}.output.LayerNorm")
        shapes |= linear(f"{block}.intermediate.dense", D, F)
        shapes |= linear(f"{block}.output.dense", F, D)
    return shapes | (linear("pooler.dense", D, D) if pooler else {})


def head(family: str, kind: str, labels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the layers that transformers puts on the encoder."""
    if kind == "ForTokenClassification":
        return linear("classifier", D, labels)
    if kind == "ForSequenceClassification":
        if family == "bert":
            return linear("classifier", D, labels)
        if family == "distilbert":
            return linear("pre_classifier", D, D) | linear("classifier", D, labels)
        return linear("classifier.dense", D, D) | linear("classifier.out_proj", D, labels)
    if kind == "ForMaskedLM":
        if family == "bert":
            predictions = "cls.predictions"
            return {
                f"{predictions}.bias": (V,),
                **linear(f"{predictions}.transform.dense", D, D),
                **norm(f"{predictions}.transform.LayerNorm"),
            }
        if family == "distilbert":
            return {
                "vocab_projector.bias": (V,),
                **linear("vocab_transform", D, D),
                **norm("vocab_layer_norm"),
            }
        return {"lm_head.bias": (V,), **linear("lm_head.dense", D, D), **norm("lm_head.layer_norm")}
    return {}


def config_of(family: str, kind: str, labels: int) -> dict[str, Any]:
    """Return a config.json with a field that nobody knows."""
    stem = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta"}
    stem["xlm-roberta"] = "XLMRoberta"
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [stem[family] + kind],
        "vocab_size": V,
        "max_position_embeddings": P,
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": F,
        "type_vocab_size": 2 if family == "bert" else 1,
        "pad_token_id": 1 if "roberta" in family else 0,
        "field_of_the_future": {"kept": True},
    }
    if family == "distilbert":
        config |= {"dim": D, "hidden_dim": F, "n_layers": LAYERS, "n_heads": 2}
    if kind.endswith("Classification"):
        config["id2label"] = {str(i): f"class {i}" for i in range(labels)}
        config["label2id"] = {f"class {i}": i for i in range(labels)}
    return config


def written(
    folder: pathlib.Path,
    family: str = "bert",
    kind: str = "Model",
    *,
    labels: int = 3,
    prefix: bool | None = None,
    dtype: Any = np.float32,
    extra: dict[str, np.ndarray] | None = None,
    without: tuple[str, ...] = (),
    settings: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Write a checkpoint and return its tensors."""
    pooler = kind == "Model" or (family == "bert" and kind == "ForSequenceClassification")
    stem = "roberta" if "roberta" in family else family
    prefixed = kind != "Model" if prefix is None else prefix
    shapes = {
        (f"{stem}.{name}" if prefixed else name): shape
        for name, shape in trunk(family, pooler).items()
    } | head(family, kind, labels)
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.normal(scale=0.5, size=shape) + 0.1).astype(dtype)
        for name, shape in shapes.items()
    }
    tensors = {name: t for name, t in tensors.items() if name not in without} | (extra or {})
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = config_of(family, kind, labels) | (settings or {})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "vocab.txt").write_text("[PAD]\n")
    return tensors


@pytest.fixture
def checkpoint() -> Callable[..., dict[str, np.ndarray]]:
    """Return the function that writes a checkpoint."""
    return written
