"""The whole of one array on this host, wherever its parts lie, and no copy that stays."""

from typing import Any

import jax
import numpy as np


def gathered(leaf: Any) -> np.ndarray:
    """Return the whole of an array as numpy; of one that is cut over hosts, on each of them.

    Then every process must call it, in the same order.

    Args:
      leaf: a jax array, or one of numpy.

    >>> gathered(jax.numpy.ones(2))
    array([1., 1.], dtype=float32)
    """
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    if leaf.is_fully_addressable:
        # An array of several parts keeps the host's copy of itself as long as it lives: of all
        # leaves of a model that would be the model. This one lives no longer than this line.
        return np.asarray(jax.device_put(leaf, leaf.sharding, may_alias=False))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
