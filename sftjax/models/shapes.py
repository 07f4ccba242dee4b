"""What leaves a model has, found without allocating any."""

from abc import ABC, abstractmethod
from functools import cached_property

import jax
from jax import Array

from sftjax.core import PyTree


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
        return jax.eval_shape(self.init, jax.random.key(0))
