"""A loss is a sum and a count, so that it can be added up anywhere and divided once."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from sftjax.core.paths import PyTree


class Loss(NamedTuple):
    """The total of something over the examples (or tokens) that count, and how many those are.

    Micro-batches, devices and batches of an evaluation are joined by `+`; the mean is taken once,
    at the end. That makes the result independent of how the examples were cut into batches.

    >>> (Loss(3.0, 2.0) + Loss(5.0, 2.0)).mean
    Array(2., dtype=float32)
    """

    sum: ArrayLike
    """(), float32: total over the examples that count."""
    weight: ArrayLike
    """(), float32: how many examples count."""

    @property
    def mean(self) -> Array:
        """`sum / weight`, and 0 where nothing counts (the caller can see that in `weight`)."""
        weight = jnp.asarray(self.weight, jnp.float32)
        return jnp.asarray(self.sum, jnp.float32) / jnp.where(weight > 0, weight, 1.0)

    def __add__(self, other: "Loss") -> "Loss":  # type: ignore[override]
        """Join the totals of two disjoint sets of examples."""
        return Loss(self.sum + other.sum, self.weight + other.weight)


class Aux(NamedTuple):
    """What an objective reports beside its loss."""

    metrics: dict[str, Loss]
    """Named totals, averaged the way the loss is (`{"accuracy": Loss(correct, rows)}`)."""
    model_state: PyTree = None
    """The new model state (batch statistics); `None` leaves it as it was."""
