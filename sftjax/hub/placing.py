"""Where on a mesh of devices each leaf goes, and how it gets there from a mapped file."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from sftjax.core import matches

ShardingOf = Callable[[str, tuple[int, ...]], Sharding]
"""`(path, shape) -> ` where a leaf lies."""


def by_rules(mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]]) -> ShardingOf:
    """Return a function that lays leaves out by path: the first pattern that matches decides.

    A leaf that none matches lies whole on every device, and so does one whose axis the mesh does
    not divide (a head of 3 classes over 2 devices).

    Args:
      mesh: the devices, its axes named.
      rules: `(pattern, spec)`; patterns as in `select`.

    >>> mesh = Mesh(np.array(jax.devices()[:1]), ("model",))
    >>> place = by_rules(mesh, [("**/q_proj/kernel", PartitionSpec(None, "model"))])
    >>> place("layers/0/q_proj/kernel", (4, 4)).spec == PartitionSpec(None, "model")
    True
    >>> place("norm/scale", (4,)).spec == PartitionSpec()
    True
    """

    def place(path: str, shape: tuple[int, ...]) -> Sharding:
        spec = next((spec for pattern, spec in rules if matches(pattern, path)), PartitionSpec())
        sharding = NamedSharding(mesh, spec)
        fits = len(spec) <= len(shape) and all(
            size % _devices(mesh, axes) == 0 for size, axes in zip(shape, spec, strict=False)
        )
        return sharding if fits else NamedSharding(mesh, PartitionSpec())

    return place


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


def _devices(mesh: Mesh, axes: Any) -> int:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return int(np.prod([mesh.shape[name] for name in names], dtype=int))
