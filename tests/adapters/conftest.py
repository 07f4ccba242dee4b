"""A tiny BERT and every kind of adapter that sits beside it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from sftjax.adapters import Kind, Plan, attach, dora, ia3, lora, plan_adapter
from sftjax.core import PyTree
from sftjax.models import Head, TextEncoder, bert, build

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
    model: TextEncoder
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


def move(adapter: PyTree, seed: int = 3, by: float = 0.01) -> PyTree:
    """Return leaves as training might leave them, each by a draw of its own."""
    leaves, structure = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        leaf + by * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    )


@pytest.fixture(scope="session")
def moved() -> Callable[..., PyTree]:
    return move


@pytest.fixture(scope="session")
def small() -> Callable[[str, str], Tiny]:
    """Make a small model of a family with a head, and a batch with padding in its first row."""

    @functools.cache
    def make(family: str, kind: str) -> Tiny:
        sizes = {
            "vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
            "num_hidden_layers": 1, "max_position_embeddings": 16,
        }  # fmt: skip
        if family == "distilbert":
            sizes = {
                "vocab_size": 50, "dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 1,
                "max_position_embeddings": 16,
            }  # fmt: skip
        labels = ("a", "b", "c") if kind in ("sequence", "token") else ()
        # Ten times the usual spread: attention then prefers some tokens to others.
        config = {"model_type": family, **sizes, "initializer_range": 0.2}
        model = build(config, Head(kind, labels))
        ids = jax.random.randint(jax.random.key(1), (3, 8), 2, 50)
        mask = jnp.ones_like(ids).at[0, 5:].set(0)
        pad = model.architecture.pad_token_id or 0
        batch = {"input_ids": jnp.where(mask == 1, ids, pad), "attention_mask": mask}
        if family == "bert":
            batch["token_type_ids"] = jnp.zeros_like(ids).at[:, 4:].set(1)
        return Tiny(model, model.init(jax.random.key(0)), batch)

    return make


@pytest.fixture(scope="session")
def beside(tiny: Tiny) -> Callable[[str], Beside]:
    """Make the named kind's plan and leaves."""

    def make(name: str) -> Beside:
        kind, targets = KINDS[name]
        plan = plan_adapter(tiny.params, kind, target_modules=targets, new=HEAD)
        adapter, base = attach(tiny.params, plan, jax.random.key(2))
        return Beside(
            plan,
            {"adapter": adapter, "base": base},
            {"adapter": move(adapter), "base": base},
        )

    return make
