"""Normalization over the last axis, computed in float32."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


@jax.custom_jvp
def standardize(x: Array, epsilon: Array) -> Array:
    """Return `(x - mean) / sqrt(variance + epsilon)` over the last axis.

    The derivative is written in terms of the result, so that the backward pass needs nothing else
    of x's size: `dx = (dy - mean(dy) - y * mean(y * dy)) / sqrt(variance + epsilon)`.

    Args:
      x: (..., D), floating.
      epsilon: (), added to the variance; no derivative is taken with respect to it.

    Returns:
      (..., D), with mean 0 and variance almost 1.

    >>> standardize(jnp.array([1.0, 3.0]), 0.0).tolist()
    [-1.0, 1.0]
    """
    return _standardize(x, epsilon)[0]


def _standardize(x: Array, epsilon: Array) -> tuple[Array, Array]:
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred * scale, scale


@standardize.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    x, epsilon = primals
    dx, _ = tangents
    y, scale = _standardize(x, epsilon)
    return y, scale * (dx - dx.mean(-1, keepdims=True) - y * (y * dx).mean(-1, keepdims=True))


class LayerNorm(nn.Module):
    """`scale * standardize(x) + bias` (Ba et al. 2016)."""

    epsilon: float
    dtype: DTypeLike
    """Of the result; the statistics are float32 whatever it is."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (..., D) from (..., D)."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return _normalized(x, scale, bias, self.epsilon).astype(self.dtype)


@partial(jax.jit, static_argnums=3)  # layers that look alike are traced once
def _normalized(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return standardize(x.astype(jnp.float32), jnp.float32(epsilon)) * scale + bias


@partial(jax.jit, static_argnums=2)
def over_root_mean_square(x: Array, scale: Array, epsilon: float) -> Array:
    """Return `scale * x / sqrt(mean(x^2) + epsilon)` over the last axis.

    No mean is taken off, and no bias added (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
      x: (..., D).
      scale: (D,) float32.
      epsilon: added to the mean.

    Returns:
      (..., D) float32.

    >>> over_root_mean_square(jnp.array([2.0, -2.0]), jnp.ones(2), 0.0).tolist()
    [1.0, -1.0]
    """
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon) * scale
