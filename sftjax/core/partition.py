"""Split a tree in two and put it together again: the vocabulary of what moves and what does not.

Both halves keep the structure of the whole, with `None` where a leaf belongs to the other half
(a *hole*). `jax.tree.map`, optax and Orbax skip holes without being told.
"""

import math

import jax

from sftjax.core.paths import PyTree, path_of
from sftjax.core.quantized import is_quantized


def holes(leaf: object) -> bool:
    """`is_leaf` for functions that must see holes: true for `None`."""
    return leaf is None


def partition(tree: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """Split `tree` into the leaves where `mask` is true and the rest, with holes in between.

    Args:
      tree: any pytree.
      mask: a tree of booleans of the same structure.

    Returns:
      `(selected, rest)`; `combine(selected, rest)` is `tree` again, the very same leaves.

    Raises:
      ValueError: if the structures differ.

    >>> partition({"head": 1, "trunk": 2}, {"head": True, "trunk": False})
    ({'head': 1, 'trunk': None}, {'head': None, 'trunk': 2})
    """
    selected = jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, tree)
    rest = jax.tree.map(lambda keep, leaf: None if keep else leaf, mask, tree)
    return selected, rest


def combine(*trees: PyTree) -> PyTree:
    """Fill the holes of the first tree from the second, then the third, and so on.

    Raises:
      ValueError: if two trees hold a leaf at the same path.

    >>> combine({"head": 1, "trunk": None}, {"head": None, "trunk": 2})
    {'head': 1, 'trunk': 2}
    """

    def only(path: str, *leaves: object) -> object:
        present = [leaf for leaf in leaves if leaf is not None]
        if len(present) > 1:
            raise ValueError(f"two of the combined trees hold a leaf at {path!r}")
        return present[0] if present else None

    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: only(path_of(keys), *leaves),
        *trees,
        is_leaf=holes,
    )


def count(tree: PyTree) -> int:
    """Return the number of scalars in a tree of arrays or shapes, a quantized one's included.

    >>> import jax.numpy as jnp
    >>> count({"kernel": jnp.zeros((2, 3)), "bias": None})
    6
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree, is_leaf=is_quantized))


def nbytes(tree: PyTree) -> int:
    """Return the bytes that a tree of arrays or shapes takes.

    >>> import jax.numpy as jnp
    >>> nbytes({"kernel": jnp.zeros((2, 3), jnp.bfloat16)})
    12
    """
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
