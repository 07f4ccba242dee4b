"""What a token is before the first layer: its word, its place, and its sentence."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from sftjax.models.architecture import Architecture
from sftjax.models.dropout import Dropout
from sftjax.models.norm import LayerNorm


def positions(tokens: Array, segment_ids: Array | None = None) -> Array:
    """Number the tokens that count, 1, 2, ..., in each row or each segment of it; 0 for the others.

    Args:
      tokens: (B, T) booleans, true where a token counts.
      segment_ids: (B, T) integers; neighbours with different ones belong to different examples.

    Returns:
      (B, T) int32.

    >>> tokens = jnp.array([[True, True, False, True, True]])
    >>> positions(tokens).tolist()
    [[1, 2, 0, 3, 4]]
    >>> positions(tokens, jnp.array([[1, 1, 1, 2, 2]])).tolist()
    [[1, 2, 0, 1, 2]]
    """
    one = tokens.astype(jnp.int32)
    counted = jnp.cumsum(one, axis=1)
    if segment_ids is not None:
        first = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
        before = jax.lax.cummax(jnp.where(first, counted - one, 0), axis=1)
        counted = counted - before
    return counted * one


def sinusoids(positions: int, width: int) -> np.ndarray:
    """Return the (positions, width) table of sines (even columns) and cosines (odd columns).

    Vaswani et al. 2017, section 3.5, in the interleaved order that DistilBERT uses.

    >>> sinusoids(2, 4)[1].tolist()
    [0.841..., 0.540..., 0.00999..., 0.9999...]
    """
    column = np.arange(width)
    angle = np.arange(positions)[:, None] / 10000.0 ** (2 * (column // 2) / width)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


class Embeddings(nn.Module):
    """`LayerNorm(word + token type + position)`, as (B*T, D), and the (V, D) word table."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, input_ids: Array, token_type_ids: Array | None, position_ids: Array
    ) -> tuple[Array, Array]:
        """Look tokens up; an id outside its table gives NaN."""
        a = self.architecture
        normal = nn.initializers.normal(a.initializer_range)

        def table(name: str, size: int, init: Initializer = normal) -> nn.Embed:
            # No dtype: it would cast the whole table at every step, not the rows that are read.
            return nn.Embed(size, a.hidden_size, embedding_init=init, name=name)

        words = table("word_embeddings", a.vocab_size)
        x_BTD = words(input_ids)
        if a.type_vocab_size:
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x_BTD += table("token_type_embeddings", a.type_vocab_size)(types)
        place = _sinusoids if a.sinusoidal else normal
        x_BTD += table("position_embeddings", a.max_positions, place)(position_ids)
        x_ND = x_BTD.reshape(-1, a.hidden_size)
        x_ND = LayerNorm(epsilon=a.layer_norm_eps, dtype=self.dtype, name="LayerNorm")(x_ND)
        return Dropout(a.hidden_dropout)(x_ND), words.embedding


def _sinusoids(
    key: Array, shape: Sequence[int], dtype: DTypeLike | None = None, out_sharding: Any = None
) -> Array:
    del key, out_sharding
    return jnp.asarray(sinusoids(*shape), dtype)
