"""A digest of each leaf, computed where the leaf lies, so that a checkpoint can be checked."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sftjax.core import PyTree, flatten

_ODD = 0x9E3779B1, 0x85EBCA6B
"""One odd factor for each half of a digest."""
_SMALL = 1 << 20
"""Up to so many entries the host adds up as fast as a device, and compiles nothing."""


def digests(tree: PyTree) -> dict[str, str]:
    r"""Return 16 hexadecimal digits for each leaf, the same however it is sharded.

    With the leaf's bits as words $x_i$ of 32 bits, the halves are

    $$\sum_i (2 i + 1) a \, x_i, \qquad \sum_i (2 i + 1) b \, x_i + i (x_i \oplus (x_i \gg 15))
    \mod 2^{32}$$

    with odd $a$, $b$. A change within one word always shows, since odd factors have an inverse;
    other damage escapes with a chance of about $2^{-64}$. It guards against disks and cut files,
    not against somebody who wants to deceive. Only the sums leave the device.

    Args:
      tree: arrays; PRNG keys too.

    >>> one = digests({"w": jnp.arange(3.0)})
    >>> one == digests({"w": jnp.arange(3.0)}), one == digests({"w": jnp.arange(3.0).at[1].set(2)})
    (True, False)
    """
    halves = jax.device_get({path: _halves(leaf) for path, leaf in flatten(tree).items()})
    return {path: f"{int(one):08x}{int(two):08x}" for path, (one, two) in halves.items()}


def forms(tree: PyTree) -> dict[str, str]:
    """Return the dtype and shape of each leaf, as `float32[3,4]`.

    >>> forms({"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)})
    {'w': 'float32[3,4]'}
    """
    return {
        path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in flatten(tree).items()
    }


def _halves(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.is_fully_addressable and leaf.size <= _SMALL:
        values = np.atleast_1d(np.asarray(leaf))
        return _sums(values.view(f"uint{8 * min(values.itemsize, 4)}").astype(np.uint32), np)
    return _on_device(leaf)


@jax.jit
def _on_device(leaf: Array) -> tuple[Array, Array]:
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = f"uint{8 * min(leaf.dtype.itemsize, 4)}"
    words = jax.lax.bitcast_convert_type(jnp.atleast_1d(leaf), bits).astype(jnp.uint32)
    if leaf.dtype.itemsize == 8:  # two words each, along the last axis as on the host
        words = words.reshape(*words.shape[:-2], -1)
    return _sums(words, jnp)


def _sums(words: Any, xp: Any) -> Any:
    """Of (...) uint32 words, by numpy or jax.numpy; the place of a word is row-major."""
    place = xp.zeros(words.shape, xp.uint32)
    for axis, size in enumerate(words.shape):
        along = xp.arange(size, dtype=xp.uint32)
        shape = [1] * words.ndim
        shape[axis] = size
        place = place * xp.uint32(size) + along.reshape(shape)
    odd, mixed = 2 * place + 1, place * (words ^ (words >> 15))
    first = xp.sum(odd * xp.uint32(_ODD[0]) * words, dtype=xp.uint32)
    return first, xp.sum(odd * xp.uint32(_ODD[1]) * words + mixed, dtype=xp.uint32)
