"""How a leaf gets from a mapped file to the devices, each of which takes its own part."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding


def put(values: np.ndarray, dtype: Any, sharding: Sharding) -> jax.Array:
    """Return an array of which each device gets its own part of `values`, cast on the way.

    Nothing larger than one device's part is made on the host.

    >>> one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> put(np.ones((2, 2)), np.float32, one).dtype
    dtype('float32')
    """
    return jax.make_array_from_callback(
        values.shape,
        sharding,
        # `array`, not `asarray`: a part that aliased the mapped file could be donated.
        lambda index: np.array(values[index], dtype=dtype, order="C"),
    )
