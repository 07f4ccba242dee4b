"""Supervised fine-tuning as pure JAX functions.

load -> select -> anchor -> step -> fit -> evaluate -> save. Every piece can be imported alone:
`sftjax.core`, `select`, `anchor`, `objectives`, `models`, `train`, `hub`, `data`, `evaluate` and
`recipes` are the rooms; the names of daily use stand here.
"""

from sftjax.anchor import adamw, anchor_of
from sftjax.core import (
    Aux,
    Fixed,
    Loss,
    TrainState,
    combine,
    flatten,
    partition,
    unflatten,
)
from sftjax.hub import load, load_tokenizer, save
from sftjax.models import Head
from sftjax.objectives import classification, multi_label, regression, token_classification
from sftjax.select import Selection, describe, select
from sftjax.train import compile_step, fit, init, linear_schedule, make_step

__version__ = "0.1.0"

__all__ = [
    "Aux",
    "Fixed",
    "Head",
    "Loss",
    "Selection",
    "TrainState",
    "adamw",
    "anchor_of",
    "classification",
    "combine",
    "compile_step",
    "describe",
    "fit",
    "flatten",
    "init",
    "linear_schedule",
    "load",
    "load_tokenizer",
    "make_step",
    "multi_label",
    "partition",
    "regression",
    "save",
    "select",
    "token_classification",
    "unflatten",
]
