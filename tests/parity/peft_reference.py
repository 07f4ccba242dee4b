"""Adapters of every kind that PEFT and we share, their tensors, data, and five steps of SGD.

Base weights and adapter tensors are drawn from NumPy alone (see `reference`): the goldens hold
only names, shapes, configs and results.
"""

import pathlib
import runpy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

HERE = pathlib.Path(__file__).parent
reference, causal, seq2seq = (
    SimpleNamespace(**runpy.run_path(str(HERE / f"{name}reference.py")))
    for name in ("", "causal_", "seq2seq_")
)

BERT, ROBERTA, DISTILBERT = "bert-sequence-gelu_new", "roberta-sequence", "distilbert-sequence"
STEPS, RATE = 5, 0.05


class Case(NamedTuple):
    """One adapter: the checkpoint it sits beside, PEFT's config class and its arguments."""

    base: str
    config: str
    settings: dict[str, Any]


CASES = {
    "lora": Case(BERT, "LoraConfig", {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
    "lora-ranks": Case(BERT, "LoraConfig", {
        "r": 4, "lora_alpha": 6, "target_modules": ["query", "output.dense", "word_embeddings"],
        "rank_pattern": {"query": 2}, "alpha_pattern": {"layer.1.output.dense": 3}}),
    "rslora": Case(BERT, "LoraConfig", {
        "r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["query", "value"]}),
    "dora": Case(BERT, "LoraConfig", {
        "r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["query", "output.dense"]}),
    "ia3": Case(BERT, "IA3Config", {
        "target_modules": ["key", "value", "output.dense"],
        "feedforward_modules": ["output.dense"]}),
    "roberta-lora": Case(ROBERTA, "LoraConfig", {
        "r": 3, "lora_alpha": 6, "target_modules": ["query", "value"]}),
    "distilbert-dora": Case(DISTILBERT, "LoraConfig", {
        "r": 3, "use_dora": True, "target_modules": ["q_lin", "lin2"]}),
    "t5-lora": Case("t5-1.1", "LoraConfig", {
        "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
    "t5-rslora": Case("t5", "LoraConfig", {
        "r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q", "v"]}),
    "t5-dora": Case("t5", "LoraConfig", {
        "r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q", "wo"]}),
    "t5-ia3": Case("t5-1.1", "IA3Config", {
        "target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}),
    "bart-lora": Case("bart", "LoraConfig", {
        "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
    "bart-ia3": Case("bart", "IA3Config", {
        "target_modules": ["k_proj", "v_proj", "fc2"], "feedforward_modules": ["fc2"]}),
    "llama-lora": Case("llama-untied-biases", "LoraConfig", {
        "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
    "llama-rslora": Case("llama", "LoraConfig", {
        "r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]}),
    "llama-dora": Case("llama", "LoraConfig", {
        "r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj", "down_proj"]}),
    "llama-ia3": Case("llama", "IA3Config", {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"]}),
    "gpt2-lora": Case("gpt2", "LoraConfig", {
        "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
}  # fmt: skip


TASKS = {"sequence": "SEQ_CLS", "causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM"}
"""Head kind -> PEFT's word for it."""


def base_of(case: Case) -> Any:
    """Return the checkpoint's case."""
    return (reference.CASES | causal.CASES | seq2seq.CASES)[case.base]


def adapter(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw an adapter as training might have left it: factors around 1, lengths above 0."""
    drawn = reference.weights(shapes, seed=2)
    for name, tensor in drawn.items():
        if name.endswith("ia3_l"):
            drawn[name] = 1 + tensor
        elif name.endswith("magnitude_vector"):
            drawn[name] = 1 + np.abs(tensor)
    return drawn


def batch_of(case: Case) -> dict[str, np.ndarray]:
    """Return inputs and `labels`, which torch reads as they are: -100 is not counted."""
    base = base_of(case)
    if base.kind == "sequence":
        return {**reference.inputs(base), "labels": np.arange(3) % base.labels}
    if base.kind == "seq2seq-lm":
        return {
            **{k: v for k, v in seq2seq.inputs(base).items() if not k.startswith("decoder")},
            "labels": seq2seq.labels(base),
        }
    batch = causal.inputs(base)
    # A row's first token is said by nobody: what padding on its left says means nothing.
    said = batch["attention_mask"] * np.pad(batch["attention_mask"][:, :-1], ((0, 0), (1, 0)))
    return {**batch, "labels": np.where(said, batch["input_ids"], -100)}


def kept(case: Case, logits: np.ndarray) -> np.ndarray:
    """Return the logits that mean something; of those of tokens every fourth."""
    labels = batch_of(case)["labels"]
    if logits.ndim == 2:
        return logits
    if base_of(case).kind == "causal-lm":
        labels = np.where(batch_of(case)["attention_mask"], 1, -100)
    return logits[labels >= 0][::4]
