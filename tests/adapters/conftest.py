"""A tiny BERT and every kind of adapter that sits beside it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from sftjax.adapters import Kind, Plan, attach, dora, ia3, lora, plan_adapter
from sftjax.core import PyTree
from sftjax.models import Head, Model, bert, build

HEAD = ("classifier/kernel", "classifier/bias")

KINDS: dict[str, tuple[Kind, str | list[str]]] = {
    "lora": (lora(r=4, lora_alpha=8), "all-linear"),
    "rslora": (lora(r=4, use_rslora=True), ["query", "value"]),
    "gaussian": (lora(r=4, init_lora_weights="gaussian"), "all-linear"),
    "embedding": (lora(r=4), ["word_embeddings", "query"]),
    "pissa": (lora(r=4, init_lora_weights="pissa"), "all-linear"),
    "olora": (lora(r=4, init_lora_weights="olora"), "all-linear"),
    "dora": (dora(r=4, lora_alpha=8), "all-linear"),
    "ia3": (ia3(), ["key", "value"]),
    "ia3-input": (ia3(feedforward=True), ["output.dense"]),
}


class Tiny(NamedTuple):
    model: Model
    params: PyTree
    batch: dict[str, jax.Array]


class Beside(NamedTuple):
    """A plan, and params joined with leaves as training might leave them."""

    plan: Plan
    fresh: PyTree
    moved: PyTree


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    sizes = dict.fromkeys(bert.SIZES, 8) | {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    }
    model = build({"model_type": "bert", **sizes}, Head("sequence", ("bad", "good")))
    ids = jax.random.randint(jax.random.key(1), (3, 8), 1, 50)
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids).at[0, 5:].set(0)}
    return Tiny(model, model.init(jax.random.key(0)), batch)


@pytest.fixture(scope="session")
def beside(tiny: Tiny) -> Callable[[str], Beside]:
    """Make the named kind's plan and leaves."""

    def make(name: str) -> Beside:
        kind, targets = KINDS[name]
        plan = plan_adapter(tiny.params, kind, target_modules=targets, new=HEAD)
        adapter, base = attach(tiny.params, plan, jax.random.key(2))
        leaves, structure = jax.tree.flatten(adapter)
        keys = jax.random.split(jax.random.key(3), len(leaves))
        moved = [
            leaf + 0.01 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        return Beside(
            plan,
            {"adapter": adapter, "base": base},
            {"adapter": jax.tree.unflatten(structure, moved), "base": base},
        )

    return make
