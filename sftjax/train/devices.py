"""Spread the rows of a batch over every device there is; on one device, nothing happens."""

from collections.abc import Callable

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.core import Batch, PyTree


def replicate(tree: PyTree) -> PyTree:
    """Put a copy of every array on every device.

    >>> import jax.numpy as jnp
    >>> replicate({"w": jnp.ones(2)})
    {'w': Array([1., 1.], dtype=float32)}
    """
    return jax.device_put(tree, _sharding()) if jax.device_count() > 1 else tree


def spread(batch_at: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """Return `batch_at` with the rows of each batch dealt out over the devices.

    A compiled step takes such batches as they are: the gradient is that of the whole batch. The
    rows must be divisible by the number of devices.

    >>> import numpy as np
    >>> spread(lambda step: {"x": np.full(8, step)})(3)["x"].shape
    (8,)
    """
    if jax.device_count() == 1:
        return batch_at
    rows = _sharding("data")
    return lambda step: jax.device_put(batch_at(step), rows)


def laid_out(shapes: PyTree, *axes: str) -> PyTree:
    """Return shapes as `replicate` (no axes) or `spread` (axis "data") would lay arrays out.

    >>> import jax.numpy as jnp
    >>> laid_out({"w": jax.ShapeDtypeStruct((2,), jnp.float32)})["w"].shape
    (2,)
    """
    if jax.device_count() == 1:
        return shapes
    where = _sharding(*axes)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes
    )


def _sharding(*axes: str) -> NamedSharding:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(*axes))
