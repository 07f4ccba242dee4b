"""Dropout that happens only when there is a key to draw from."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from sftjax.models.alike import draw


class Dropout(nn.Module):
    """Zero each entry with probability `rate` and divide the others by `1 - rate`.

    Without a `dropout` key among the `rngs` of `apply` it is the identity. Every place in a model
    draws a mask of its own, because linen folds the path of the place into the key.
    """

    rate: float
    """Probability of a zero, in [0, 1); honoured to 1/65536."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return `x`, any shape and dtype, with entries dropped.

        >>> Dropout(0.5).apply({}, jnp.ones(3)).tolist()
        [1.0, 1.0, 1.0]
        >>> x = Dropout(0.5).apply({}, jnp.ones(1000), rngs={"dropout": jax.random.key(0)})
        >>> sorted(set(x.tolist()))
        [0.0, 2.0]
        """
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        kept = round((1.0 - self.rate) * 65536)
        keep = _random_halves(draw(self), x.shape) < kept
        return jnp.where(keep, x * jnp.asarray(65536 / kept, x.dtype), 0)


class DropPath(nn.Module):
    """Drop a residual branch of whole examples (stochastic depth, Huang et al. 2016).

    As `Dropout`, but one draw decides for a row.
    """

    rate: float
    """Probability that a row's branch is zero, in [0, 1)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return `x`, (B, ...), with rows dropped.

        >>> DropPath(0.5).apply({}, jnp.ones((2, 3))).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
        """
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(draw(self), 1.0 - self.rate, shape)
        return jnp.where(keep, x / jnp.asarray(1.0 - self.rate, x.dtype), 0)


def _random_halves(key: Array, shape: tuple[int, ...]) -> Array:
    """Return uniform 16-bit integers, two from each 32-bit word: half the cost of a mask on CPU."""
    *rows, width = shape
    words = jax.random.bits(key, (*rows, -(-width // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
    return halves.reshape(*rows, -1)[..., :width].astype(jnp.int32)
