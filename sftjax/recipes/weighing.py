r"""How a run weighs its anchor by a Fisher: three numbers, so that runs can share the Fisher.

$$ I_i = 1 - \omega + \omega \min(s F_i, c) $$

$s$ makes the mean 1 below the cap $c$ (`anchor.normalized`), and $\omega$ goes from L2-SP, where
every scalar counts alike, to EWC; the mean, and so the dose, is the same at every $\omega$.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.anchor import normalized
from sftjax.core import PyTree


class Weighing(NamedTuple):
    """The numbers; in a sweep, one of each for every run."""

    scale: Any
    """$s$."""
    cap: Any
    """$c$: the greatest importance that a decoupled pull can carry."""
    weight: Any
    """$\\omega$, from 0 to 1."""


def weighing_of(fisher: PyTree, cap: float | None, weight: float) -> Weighing:
    """Return the numbers that `normalized(fisher, cap=cap)` comes to, and the weight.

    >>> weighing_of({"w": jnp.array([1.0, 3.0])}, None, 0.5)[::2]
    (0.5, 0.5)
    """
    greatest = float(np.finfo(np.float32).max)
    top = greatest if cap is None else min(cap, greatest)
    found = jax.tree.leaves(normalized(fisher, cap=cap))
    raw = jax.tree.leaves(fisher)

    def largest(leaves: list[Any]) -> float:
        free = (
            jnp.max(jnp.where(done < (1 - 1e-6) * top, leaf, 0))
            for leaf, done in zip(leaves, found, strict=True)
        )
        return max(map(float, free))

    # Both grow together, so the largest below the cap are of the same scalar.
    return Weighing(largest(found) / largest(raw), top, weight)


def weighed(fisher: PyTree, by: Weighing) -> PyTree:
    """Return the importance; the numbers may be traced.

    >>> weighed({"w": jnp.array([1.0, 3.0])}, Weighing(0.5, 1e9, 0.5))["w"]
    Array([0.75, 1.25], dtype=float32)
    """
    return jax.tree.map(
        lambda leaf: 1.0 - by.weight + by.weight * jnp.minimum(by.scale * leaf, by.cap), fisher
    )
