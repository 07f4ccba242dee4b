"""Small random checkpoints of unusual configs, and inputs for them, from NumPy alone.

Weights are drawn tensor by tensor in the order of their sorted names, so the same seed gives the
same checkpoint to torch (which makes the goldens) and to a test that has no torch.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from sftjax.hub import load

BERT = {
    "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": 20,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": 50, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96,
    "max_position_embeddings": 16,
}  # fmt: skip


class Case(NamedTuple):
    """One checkpoint: transformers' class for it and its config."""

    torch_class: str
    kind: str
    config: dict[str, Any]
    labels: int = 0


CASES = {
    "bert-sequence-gelu_new": Case("BertForSequenceClassification", "sequence", BERT | {
        "model_type": "bert", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5,
        "type_vocab_size": 3, "classifier_dropout": 0.4}, 3),
    "bert-regression-relu": Case("BertForSequenceClassification", "sequence", BERT | {
        "model_type": "bert", "hidden_act": "relu", "num_attention_heads": 1,
        "type_vocab_size": 1, "problem_type": "regression"}, 1),
    "bert-multilabel-tanh": Case("BertForSequenceClassification", "sequence", BERT | {
        "model_type": "bert", "hidden_act": "tanh", "hidden_size": 48,
        "problem_type": "multi_label_classification"}, 4),
    "bert-token-quick_gelu": Case("BertForTokenClassification", "token", BERT | {
        "model_type": "bert", "hidden_act": "quick_gelu", "pad_token_id": 7}, 5),
    "bert-masked-lm": Case("BertForMaskedLM", "masked-lm", BERT | {
        "model_type": "bert", "hidden_act": "gelu_pytorch_tanh"}),
    "bert-masked-lm-untied": Case("BertForMaskedLM", "masked-lm", BERT | {
        "model_type": "bert", "tie_word_embeddings": False}),
    "bert-pooled-silu": Case("BertModel", "pooled", BERT | {
        "model_type": "bert", "hidden_act": "silu", "layer_norm_eps": 0.1}),
    "roberta-sequence": Case("RobertaForSequenceClassification", "sequence", BERT | {
        "model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 3,
        "layer_norm_eps": 1e-5}, 3),
    "roberta-token-mish": Case("RobertaForTokenClassification", "token", BERT | {
        "model_type": "roberta", "hidden_act": "mish", "pad_token_id": 0}, 4),
    "roberta-masked-lm-relu": Case("RobertaForMaskedLM", "masked-lm", BERT | {
        "model_type": "roberta", "hidden_act": "relu", "type_vocab_size": 1}),
    "roberta-masked-lm-untied": Case("RobertaForMaskedLM", "masked-lm", BERT | {
        "model_type": "roberta", "tie_word_embeddings": False}),
    "roberta-pooled": Case("RobertaModel", "pooled", BERT | {
        "model_type": "roberta", "hidden_act": "gelu_fast"}),
    "xlm-roberta-sequence": Case("XLMRobertaForSequenceClassification", "sequence", BERT | {
        "model_type": "xlm-roberta", "type_vocab_size": 1, "hidden_act": "gelu_10"}, 2),
    "xlm-roberta-hidden": Case("XLMRobertaModel", "hidden", BERT | {
        "model_type": "xlm-roberta", "type_vocab_size": 1, "hidden_act": "leaky_relu"}),
    "distilbert-sequence": Case("DistilBertForSequenceClassification", "sequence", DISTILBERT | {
        "model_type": "distilbert", "seq_classif_dropout": 0.5}, 3),
    "distilbert-token-relu": Case("DistilBertForTokenClassification", "token", DISTILBERT | {
        "model_type": "distilbert", "activation": "relu"}, 4),
    "distilbert-masked-lm": Case("DistilBertForMaskedLM", "masked-lm", DISTILBERT | {
        "model_type": "distilbert", "activation": "relu6"}),
    "distilbert-masked-lm-untied": Case("DistilBertForMaskedLM", "masked-lm", DISTILBERT | {
        "model_type": "distilbert", "tie_word_embeddings": False}),
    "distilbert-hidden-sinusoidal": Case("DistilBertModel", "hidden", DISTILBERT | {
        "model_type": "distilbert", "sinusoidal_pos_embds": True}),
}  # fmt: skip


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Draw a checkpoint; norms lie around 1 so that hidden states neither vanish nor blow up."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in sorted(shapes):
        center = float("norm" in name.lower() and name.endswith("weight"))
        draw = rng.standard_normal(shapes[name], dtype=np.float32)
        drawn[name] = (center + 0.15 * draw).astype(np.float32)
    return drawn


def inputs(case: Case, seed: int = 1) -> dict[str, np.ndarray]:
    """Three rows, two of them padded on the right, with token types where the model has them."""
    rng = np.random.default_rng(seed)
    rows, length = 3, 11
    padding = case.config.get("pad_token_id", 1 if "roberta" in case.config["model_type"] else 0)
    mask = (np.arange(length) < np.array([[11], [7], [4]])).astype(np.int32)
    ids = rng.integers(8, 50, (rows, length), dtype=np.int32)
    batch = {"input_ids": np.where(mask, ids, padding).astype(np.int32), "attention_mask": mask}
    types = case.config.get("type_vocab_size", 2)
    if case.config["model_type"] != "distilbert" and types > 1:
        batch["token_type_ids"] = (np.arange(length) >= 3).astype(np.int32)[None] * mask
    return batch


def config_of(case: Case) -> dict[str, Any]:
    """Return the config.json that belongs to a case."""
    labels = {str(i): f"class {i}" for i in range(case.labels)}
    named = {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
    return {**case.config, "architectures": [case.torch_class], **(named if labels else {})}


def ours(case: Case, tensors: Mapping[str, np.ndarray], folder: pathlib.Path):
    """Write the checkpoint, load it as a user would, and return (model, params)."""
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(case)))
    head = None if case.labels else case.kind
    model, params, report = load(folder, head=head)
    assert report.new == ()
    assert model.head.kind == case.kind
    return model, params
