"""Three small runs that mesh and process tests share: what a step is made of, and its batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sftjax.adapters import lora, plan_adapter, side_branch, with_adapter
from sftjax.anchor import adamw, anchor_of
from sftjax.core import Aux, Loss, flatten, unflatten
from sftjax.data import Audit, Chat, ChatBatches
from sftjax.data.augment import augmentation
from sftjax.data.processor import Processor
from sftjax.models import (
    TENSOR_RULES,
    Head,
    build,
    statistics_of,
    statistics_policy,
    take_statistics,
)
from sftjax.objectives import augmented, classification, cross_entropy, next_token
from sftjax.select import select
from sftjax.train import automatic, init, make_step

BERT = {
    "model_type": "bert", "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 32,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16], "depths": [1],
    "layer_type": "basic",
}  # fmt: skip
SEED, STEPS = 0, 3


class Case(NamedTuple):
    """A run, small."""

    step: Any
    state: Any
    fixed: Any
    batches: Any
    """`at(step, share)`."""
    step_of: Any = None
    """The step of another optimizer."""

    def again(self):
        """Return a state of its own to donate."""
        return jax.tree.map(jnp.copy, self.state)


def rules(mesh):
    """Tensor rules, and `fsdp` for everything that is not tiny."""
    return automatic(mesh, TENSOR_RULES, smallest=256)


def drawn(shapes):
    """Draw params without a compile: around 1 in norms, small in kernels."""
    rng = np.random.default_rng(SEED)
    return unflatten({
        path: jnp.asarray(
            float(path.endswith(("scale", "var"))) + 0.1 * rng.normal(size=leaf.shape) * (
                0.0 if path.endswith("var") else 1.0
            ),
            jnp.float32,
        )
        for path, leaf in flatten(shapes).items()
    })  # fmt: skip


def bert(accumulate=1):
    """Its last block and new head, held to the pretrained weights by a Fisher importance."""
    model = build(BERT, Head("sequence", ("a", "b", "c"), "single_label_classification"))
    params = drawn(model.shapes())
    new = ["classifier/kernel", "classifier/bias"]
    # A key's bias moves no attention weight: its gradient is rounding, which Adam would make large.
    rules = [("**/key/bias", 0.0), "bert/encoder", "bert/pooler", "new"]
    chosen = select(params, rules, new=new).trainable
    anchor = anchor_of(params, chosen, new=new)
    importance = jax.tree.map(lambda leaf: 1.0 + jnp.abs(leaf), anchor)
    tx = adamw(0.005, strength=0.5, weight_decay=0.1, max_grad_norm=1.0)
    state, fixed = init(params, chosen, tx, jax.random.key(1), anchor=anchor, importance=importance)
    step = make_step(classification(model.apply), tx, accumulate=accumulate)
    return Case(step, state, fixed, Rows(16))


class Rows:
    """Rows of words with labels; some are padded, some do not count."""

    def __init__(self, rows):
        self.rows = rows

    def at(self, step, share=None):
        rng = np.random.default_rng([SEED, step])
        batch = {
            "input_ids": rng.integers(1, 64, (self.rows, 16), dtype=np.int32),
            "attention_mask": (np.arange(16) < rng.integers(4, 17, (self.rows, 1))).astype(
                np.int32
            ),
            "labels": rng.integers(0, 3, self.rows, dtype=np.int32),
            "valid": (rng.random(self.rows) < 0.8).astype(np.float32),
        }
        if share is None:
            return batch
        return {name: leaf[share.of(self.rows)] for name, leaf in batch.items()}


def llama(accumulate=1):
    """A LoRA on packed conversations."""
    model = build(LLAMA, Head("causal-lm"))
    base = drawn(model.shapes())
    plan = plan_adapter(base, lora(r=4))
    params = with_adapter(base, plan, jax.random.key(2))
    chosen = select(params, [("adapter", 1.0)]).trainable
    tx = optax.adamw(0.02)
    state, fixed = init(params, chosen, tx, jax.random.key(1))
    beside = side_branch(model.hidden, plan)
    objective = next_token(beside, lambda params: model.words(params["base"]), chunk=32)
    rng = np.random.default_rng(SEED)
    lengths = rng.integers(2, 20, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(1, 64, offsets[-1]).astype(np.int32)
    weights = rng.integers(0, 2, offsets[-1]).astype(np.float32)
    weights[offsets[:-1] + 1] = 1.0
    chat = Chat(ids, weights, offsets, np.arange(len(lengths)), 0, 32, Audit(), None)
    batches = ChatBatches(chat, 8, length=32)
    return Case(make_step(objective, tx, accumulate=accumulate), state, fixed, batches)


def tiny_llama(place=None):
    """Return a model and its drawn params, laid out by `place`."""
    model = build(LLAMA, Head("causal-lm"))
    leaves = flatten(drawn(model.shapes()))
    if place is not None:
        leaves = {
            path: jax.make_array_from_callback(
                leaf.shape, place(path, leaf.shape), np.asarray(leaf).__getitem__
            )
            for path, leaf in leaves.items()
        }
    return model, unflatten(leaves)


def resnet(accumulate=1):
    """All of a convolutional network; its batch norms follow the batches, pictures are mixed."""
    model = build(RESNET, Head("image", ("a", "b", "c")))
    params = drawn(model.shapes())
    chosen = select(params, "all", still=statistics_of(params))
    policy = statistics_policy(params, chosen.trainable)
    rest, statistics = take_statistics(params, policy.adapt)
    tx = optax.sgd(0.05, momentum=0.9)
    moves = select(rest, "all").trainable
    state, fixed = init(rest, moves, tx, jax.random.key(1), model_state=statistics)

    def objective(params, model_state, batch, key):
        logits, moved = model.apply_moving(params, model_state, batch, key)
        return cross_entropy(logits, batch["labels"]), Aux({}, moved)

    mixed = augmented(objective, augmentation(["flip", "mixup:0.4"], Processor((16, 16)), 3))
    return Case(make_step(mixed, tx, accumulate=accumulate), state, fixed, Pictures(16))


class Pictures:
    """Random pictures with labels."""

    def __init__(self, rows):
        self.rows = rows

    def at(self, step, share=None):
        rng = np.random.default_rng([SEED, step])
        batch = {
            "pixel_values": rng.integers(0, 256, (self.rows, 16, 16, 3)).astype(np.uint8),
            "labels": rng.integers(0, 3, self.rows, dtype=np.int32),
        }
        if share is None:
            return batch
        return {name: leaf[share.of(self.rows)] for name, leaf in batch.items()}


def mlp(accumulate=1, axis=None, quiet=False):
    """A plain tree and function, which compile at once; `quiet` drops nothing."""
    rng = np.random.default_rng(SEED)
    params = {
        name: jnp.asarray(0.2 * rng.normal(size=shape), jnp.float32)
        for name, shape in {"in": (16, 64), "out": (64, 8)}.items()
    }

    def objective(params, model_state, batch, key):
        error = jnp.tanh(batch["x"] @ params["in"]) @ params["out"] - batch["y"]
        kept = batch["valid"][:, None]
        if not quiet:
            kept = kept * jax.random.bernoulli(key, 0.9, error.shape)
        return Loss(jnp.sum(kept * error**2), batch["valid"].sum()), Aux({})

    def step_of(tx):
        return make_step(objective, tx, accumulate=accumulate, axis=axis)

    tx = optax.adam(0.01)
    state, fixed = init(params, {"in": True, "out": True}, tx, jax.random.key(1))
    return Case(step_of(tx), state, fixed, Numbers(16), step_of)


class Numbers:
    """Random numbers, some of which do not count."""

    def __init__(self, rows):
        self.rows = rows

    def at(self, step, share=None):
        rng = np.random.default_rng([SEED, step])
        batch = {
            "x": rng.normal(size=(self.rows, 16)).astype(np.float32),
            "y": rng.normal(size=(self.rows, 8)).astype(np.float32),
            "valid": (rng.random(self.rows) < 0.8).astype(np.float32),
        }
        if share is None:
            return batch
        return {name: leaf[share.of(self.rows)] for name, leaf in batch.items()}


CASES = {"mlp": mlp, "bert": bert, "llama": llama, "resnet": resnet}
