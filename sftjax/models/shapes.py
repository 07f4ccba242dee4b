"""What leaves a model has, found without allocating any."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import cached_property

import jax
from jax import Array

from sftjax.core import PyTree, flatten
from sftjax.models.alike import shapes_alone


def fresh(init: Callable[[Array], PyTree], key: Array, paths: Collection[str]) -> dict[str, Array]:
    """Return some leaves of what a model starts from, to be compiled: no other one is made.

    Blocks that are like others are traced only if one of the leaves is in them.

    >>> from sftjax.models import Head, bert, build
    >>> model = build({"model_type": "bert", **dict.fromkeys(bert.SIZES, 2)}, Head("hidden"))
    >>> fresh(model.init, jax.random.key(0), ["bert/encoder/layer/1/output/dense/bias"])
    {'bert/encoder/layer/1/output/dense/bias': Array([0., 0.], dtype=float32)}
    """
    with shapes_alone() as copied:
        made = flatten(init(key))
    blocks = tuple(f"{block}/" for block in copied)
    if any(path.startswith(blocks) for path in paths):
        made = flatten(init(key))
    return {path: made[path] for path in paths}


class Shaped(ABC):
    """A model whose `init` is traced once, however often its leaves are asked for."""

    @abstractmethod
    def init(self, key: Array) -> PyTree:
        """Return fresh params."""

    def shapes(self) -> PyTree:
        """Return the params as `jax.ShapeDtypeStruct`s; nothing is allocated."""
        return jax.tree.map(lambda shape: shape, self._shapes)  # a tree of the caller's own

    @cached_property
    def _shapes(self) -> PyTree:
        with shapes_alone():
            return jax.eval_shape(self.init, jax.random.key(0))
