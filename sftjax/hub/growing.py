"""More words than a model was pretrained with: new rows in its tables, and in its head."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import PyTree, flatten, is_quantized, map_with_path
from sftjax.models import CausalModel, Seq2SeqModel, TextEncoder, build

Text = TextEncoder | CausalModel | Seq2SeqModel


class Grown(NamedTuple):
    """A model that knows more words."""

    model: Text
    params: PyTree
    changed: tuple[str, ...]
    """Paths of the leaves that have new rows, to be trained beside an adapter."""


def grow_words(model: Text, params: PyTree, count: int) -> Grown:
    """Return a model with room for more words; each new one starts as the mean of the others.

    That is where transformers' `resize_token_embeddings` starts them (but for noise of 1e-9 of
    their spread): a word at the mean takes the least from the others' probabilities. Train the
    changed leaves with the adapter and name them in `save_adapter(trained=...)`, which writes them
    whole, as PEFT's `modules_to_save`; to open that folder beside the base, grow the base as much.

    Args:
      model: of the params.
      params: plain ones; not changed. Quantize afterwards.
      count: new words.

    Returns:
      The model, its params, and the paths of the leaves that grew.

    Raises:
      ValueError: if there is nothing to add, or a table is quantized.

    >>> from sftjax.models import Head
    >>> config = {"model_type": "gpt2", "vocab_size": 4, "n_embd": 8, "n_layer": 1, "n_head": 2}
    >>> model = build(config | {"n_positions": 4}, Head("causal-lm"))
    >>> grown = grow_words(model, model.init(jax.random.key(0)), 2)
    >>> grown.changed, grown.model.config["vocab_size"]
    (('transformer/wte/embedding',), 6)
    """
    if count < 1:
        raise ValueError(f"{count} new words; at least 1 is needed")
    words = int(model.config["vocab_size"]) + count
    dtype = model.module.dtype if isinstance(model, TextEncoder) else model.dtype
    larger = build(dict(model.config) | {"vocab_size": words}, model.head, dtype=dtype)
    if isinstance(model, CausalModel):
        larger = dataclasses.replace(larger, remat=model.remat)  # type: ignore[type-var]
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(larger.shapes()).items()}
    found = jax.tree_util.tree_leaves(params, is_leaf=is_quantized)
    if any(is_quantized(leaf) for leaf in found):
        raise ValueError("a quantized base cannot grow; grow it first, and quantize it afterwards")
    changed = tuple(path for path, leaf in flatten(params).items() if leaf.shape != wanted[path])

    def grown(path: str, leaf: Array) -> Array:
        if path not in changed:
            return leaf
        axis = next(i for i, size in enumerate(leaf.shape) if size != wanted[path][i])
        # transformers adds nothing to the scores of new words, and means of all else.
        start = 0.0 if path == "final_logits_bias" else 1.0
        mean = start * jnp.mean(leaf.astype(jnp.float32), axis, keepdims=True).astype(leaf.dtype)
        return jnp.concatenate([leaf, jnp.repeat(mean, count, axis)], axis)

    return Grown(larger, map_with_path(grown, params), changed)  # type: ignore[arg-type]
