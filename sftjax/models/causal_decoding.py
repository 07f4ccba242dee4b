"""Reading a prompt and taking tokens one by one, with the keys and values of all before kept.

A cache is a dictionary whose every leaf has the rows first: `keys` and `values` of each layer
(B, J, S, K), where S is the prompt's length and the room for new tokens; `seen` (B, S) booleans,
which places hold tokens; `places` (B, S) int32, their positions; `next` (B,) int32, the position of
each row's next token; `slot` (B,) int32, the place it goes to, the same for all rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch, PyTree
from sftjax.models.causal import Inputs, Past
from sftjax.models.decoding import Cache, Decoder


def decoder_of(
    model: Any, inputs_of: Callable[[Batch], Inputs], run: Callable[..., Any]
) -> Decoder:
    """Return a causal model's two functions of generation.

    Args:
      model: gives the architecture.
      inputs_of: `batch -> Inputs`.
      run: `(kind, params, inputs, last=, keep=) -> (logits, kept)`.
    """
    windows = model.architecture.windows

    def start(params: PyTree, batch: Batch, new_tokens: int) -> tuple[Array, Cache]:
        """Read prompts with padding on either side, (B, T)."""
        inputs = inputs_of({k: v for k, v in batch.items() if k != "segment_ids"})
        rows, length = inputs.input_ids.shape
        real = inputs.segment_ids
        real = jnp.ones((rows, length), bool) if real is None else real != 0
        last = jnp.max(jnp.where(real, jnp.arange(length), 0), axis=1)
        logits, kept = run("causal-lm", params, inputs, last=last, keep=True)
        places = jnp.broadcast_to(inputs.position_ids, (rows, length))
        room = ((0, 0), (0, new_tokens))
        spare = ((0, 0), (0, 0), (0, new_tokens), (0, 0))
        cache = {
            "keys": tuple(jnp.pad(k, spare) for k, _ in kept),
            "values": tuple(jnp.pad(v, spare) for _, v in kept),
            "seen": jnp.pad(real, room),
            "places": jnp.pad(places, room),
            "next": jnp.take_along_axis(places, last[:, None], axis=1)[:, 0] + 1,
            "slot": jnp.full(rows, length, jnp.int32),
        }
        return logits, cache

    def step(params: PyTree, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
        """Take one token in each row, (B,)."""
        slot, places = cache["slot"][0], cache["next"][:, None]
        put = jax.lax.dynamic_update_slice_in_dim
        seen = put(cache["seen"], jnp.ones_like(places, bool), slot, 1)
        where = put(cache["places"], places, slot, 1)
        # By positions, not by places in the cache: between a prompt that is padded on the right
        # and its next token there is padding.
        masks = {
            window: seen if window is None else seen & (places - where < window)
            for window in {*windows}
        }
        past = tuple(
            Past(k, v, slot, masks[window][:, None])
            for k, v, window in zip(cache["keys"], cache["values"], windows, strict=True)
        )
        inputs = Inputs(tokens[:, None], places, None, past)
        first = jnp.zeros_like(tokens)
        logits, kept = run("causal-lm", params, inputs, last=first, keep=True)
        return logits, {
            "keys": tuple(k for k, _ in kept),
            "values": tuple(v for _, v in kept),
            "seen": seen,
            "places": where,
            "next": cache["next"] + 1,
            "slot": cache["slot"] + 1,
        }

    return Decoder(start, step)
