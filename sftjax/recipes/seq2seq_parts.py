"""The parts of an encoder-decoder that methods of holding on need, whole or above its encoder."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch, Objective, PyTree, flatten
from sftjax.models import Seq2SeqModel, encoder_apart
from sftjax.objectives import Apply, counted_tokens
from sftjax.recipes.methods import Parts
from sftjax.recipes.streams import Stream


def seq2seq_parts(
    model: Seq2SeqModel,
    objective: Callable[[Apply], Objective],
    *,
    kept: bool = False,
    held_out: Stream | None = None,
) -> Parts:
    """Return the parts of an encoder-decoder.

    What a row is to the model (`features`) is the mean of the decoder's last states over the tokens
    that count, of mean square 1.

    Args:
      model: the model.
      objective: the task's objective of any function that gives logits.
      kept: batches hold what the encoder gives as `hidden`.
      held_out: batches of rows that are not trained on, for methods that learn from such.
    """
    logits, hidden = model.apply, model.hidden
    if kept:
        logits, hidden = (encoder_apart(model, of).upper for of in (model.apply, model.hidden))

    def features(params: PyTree, batch: Batch, key: Array | None) -> Array:
        return row_features(hidden(params, batch, key), batch)

    def embed(params: PyTree, batch: Batch) -> Array:
        raise ValueError(
            "anchors r3f and smart disturb the embeddings of one sequence, and an encoder-decoder "
            "has two; use another anchor"
        )

    def rest(params: PyTree, h: Array, batch: Batch, key: Array | None) -> Array:
        return embed(params, batch)

    return Parts(objective, logits, features, embed, rest, counts=counted_tokens, held_out=held_out)


def row_features(hidden: Array, batch: Batch) -> Array:
    """Return (B, D) of (B, U, D): means over the tokens that count, of mean square 1."""
    counts = (batch["loss_weights"] > 0).astype(jnp.float32)[..., None]
    mean = jnp.sum(hidden.astype(jnp.float32) * counts, 1) / jnp.maximum(jnp.sum(counts, 1), 1.0)
    return mean / jnp.sqrt(jnp.square(mean).mean(-1, keepdims=True) + 1e-12)


def encoder_stands(trainable: PyTree) -> bool:
    """Tell whether nothing moves that the encoder's output depends on.

    >>> encoder_stands({"decoder": {"w": True}, "encoder": {"w": False}, "shared": False})
    True
    """

    def read(path: str) -> bool:
        return not ("decoder" in path.split("/") or path.split("/")[0] in _ABOVE)

    return not any(moves for path, moves in flatten(trainable).items() if read(path))


_ABOVE = ("lm_head", "final_logits_bias")
"""Leaves that are read after the decoder and nowhere else."""
