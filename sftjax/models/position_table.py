"""Learned positions of image patches, read at another resolution."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def bicubic(old: int, new: int) -> np.ndarray:
    """Return the (new, old) weights of bicubic interpolation as torch has them.

    Keys' kernel with a = -0.75, pixel centres at halves (`align_corners=False`), borders repeated,
    and no smoothing when shrinking.

    >>> bicubic(2, 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    weights = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        first = math.floor(centre) - 1
        for place in range(first, first + 4):
            weights[row, min(max(place, 0), old - 1)] += _keys(abs(centre - place))
    return weights


def _keys(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    if distance < 2:
        return ((distance - 5) * distance + 8) * distance * a - 4 * a
    return 0.0


def interpolate(table: Array, grid: tuple[int, int]) -> Array:
    """Read a square table of positions on another grid.

    Args:
      table: (N, D), rows of a square grid.
      grid: rows and columns wanted.

    Returns:
      (rows * columns, D); the table itself where the grid is its own.

    >>> interpolate(jnp.arange(4.0)[:, None], (2, 1))[:, 0].tolist()
    [0.5, 2.5]
    """
    side = math.isqrt(table.shape[0])
    if grid == (side, side):
        return table
    rows, columns = (jnp.asarray(bicubic(side, new), jnp.float32) for new in grid)
    square = table.astype(jnp.float32).reshape(side, side, -1)
    wide = jnp.einsum("yh,xw,hwd->yxd", rows, columns, square, precision=jax.lax.Precision.HIGHEST)
    return wide.reshape(-1, table.shape[-1]).astype(table.dtype)
