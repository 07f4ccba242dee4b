"""The entries of a batch of tokens, checked before a model reads them."""

import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch

ENTRIES = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "segment_ids")
"""The entries that models of text read, each (B, T)."""


def token_ids(batch: Batch, entries: tuple[str, ...]) -> Array:
    """Return the `input_ids` (B, T) of a batch whose entries fit them.

    Args:
      batch: named arrays; entries that are not named are not looked at.
      entries: those that the model reads.

    Raises:
      ValueError: if there are no `input_ids`, or an entry is not (B, T) or holds no integers (an
        `attention_mask` may hold anything).

    >>> token_ids({"input_ids": jnp.ones((1, 2), int)}, ENTRIES).shape
    (1, 2)
    """
    if batch.get("input_ids") is None:
        raise ValueError(
            f"the batch has no input_ids, only {sorted(batch)}; tokenize the text first"
        )
    shape = jnp.shape(batch["input_ids"])
    if len(shape) != 2:
        raise ValueError(f"input_ids have shape {shape}; a batch is (rows, tokens)")
    for name in entries:
        if batch.get(name) is None:
            continue
        if jnp.shape(batch[name]) != shape:
            raise ValueError(
                f"{name} has shape {jnp.shape(batch[name])} and input_ids {shape}; every entry "
                "that the model reads is (rows, tokens)"
            )
        dtype = jnp.result_type(batch[name])
        if name != "attention_mask" and not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(f"{name} must hold integers, not {dtype}")
    return jnp.asarray(batch["input_ids"])
