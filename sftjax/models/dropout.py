"""Dropout that happens only when there is a key to draw from."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class Dropout(nn.Module):
    """Zero each entry with probability `rate` and divide the others by `1 - rate`.

    Without a `dropout` key among the `rngs` of `apply`, the identity. Every place in a model draws
    its own mask, because linen folds the place's path into the key.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), 0).astype(x.dtype)
