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

reference = SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "reference.py")))

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
}  # fmt: skip


def base_of(case: Case) -> Any:
    """Return the checkpoint's case."""
    return reference.CASES[case.base]


def adapter(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw an adapter as training might have left it: factors around 1, lengths above 0."""
    drawn = reference.weights(shapes, seed=2)
    for name, tensor in drawn.items():
        if name.endswith("ia3_l"):
            drawn[name] = 1 + tensor
        elif name.endswith("magnitude_vector"):
            drawn[name] = 1 + np.abs(tensor)
    return drawn


def labels(case: Case) -> np.ndarray:
    """Return the classes of the three rows."""
    return np.arange(3) % base_of(case).labels
