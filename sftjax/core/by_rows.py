"""A product of matrices where an image's axes would stand in the way."""

from jax import Array


def by_rows(x: Array, kernel: Array) -> Array:
    """Return `x @ kernel`, computed as one product of matrices: a row for each position.

    Args:
      x: (..., K).
      kernel: (K, F).

    Returns:
      (..., F).

    >>> import jax.numpy as jnp
    >>> by_rows(jnp.ones((1, 2, 2, 3)), jnp.ones((3, 4))).shape
    (1, 2, 2, 4)
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
