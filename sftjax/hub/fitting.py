"""Leaves that fit a model of another input: other channels, or another grid of patches."""

import math

import jax.numpy as jnp
import numpy as np

from sftjax.models.position_table import interpolate

_POSITIONS = "embeddings/position_embeddings"


def can_fit(path: str, pixels: str, has: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Tell whether `fitted` can give a leaf another shape.

    Args:
      path: of the leaf.
      pixels: path of the kernel that reads the images.
      has: the leaf's shape in the file, in our order of axes.
      wanted: the model's.
    """
    if path == pixels:
        return len(has) == 4 and (*has[:2], has[3]) == (*wanted[:2], wanted[3])
    if not path.endswith(_POSITIONS) or len(has) != 3:
        return False
    return has[2] == wanted[2] and _tokens(has[1]) == _tokens(wanted[1]) is not None


def fitted(values: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """Return a kernel for other channels, or a table of positions for another grid.

    One channel from several is their sum, so that a grey image gives what three equal channels
    gave; other numbers repeat the channels in turn, scaled by old / new, so that the sum stays the
    same where all channels are equal. Positions are interpolated as torch does (bicubic).

    >>> kernel = np.arange(3.0).reshape(1, 1, 3, 1)
    >>> fitted(kernel, (1, 1, 1, 1)).ravel().tolist()
    [3.0]
    >>> fitted(kernel, (1, 1, 4, 1)).ravel().tolist()
    [0.0, 0.75, 1.5, 0.0]
    """
    if values.ndim == 4:
        old, new = values.shape[2], wanted[2]
        if new == 1:
            return values.sum(axis=2, keepdims=True)
        return values[:, :, np.arange(new) % old] * np.asarray(old / new, values.dtype)
    tokens = _tokens(values.shape[1])
    assert tokens is not None
    side = math.isqrt(wanted[1] - tokens)
    patches = np.asarray(interpolate(jnp.asarray(values[0, tokens:]), (side, side)))
    return np.concatenate([values[:, :tokens], patches[None].astype(values.dtype)], axis=1)


def _tokens(rows: int) -> int | None:
    """Return how many rows of a table are no patch: 1 or 2 beside a square.

    >>> _tokens(197), _tokens(198), _tokens(200)
    (1, 2, None)
    """
    return next((n for n in (1, 2) if math.isqrt(rows - n) ** 2 == rows - n), None)
