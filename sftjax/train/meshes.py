"""A mesh of devices from one description, and how the rows of a batch lie on it.

`data=2,fsdp=4` are eight devices. What each axis is for:

- `data`: rows of the batch; every device holds all weights.
- `fsdp`: rows of the batch too, and the weights with all that belongs to them are cut over it.
- `tensor`: the weights of a layer are cut, and with them its work; rows are not.
- `sequence`: the tokens of a row.
- `sweep`: the runs of a sweep.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sftjax.core import target_devices
from sftjax.core.placing import AnyMesh, fitted, sharding_on

AXES = ("sweep", "data", "fsdp", "sequence", "tensor")
"""The axes that a mesh may have, the slowest links first: neighbours share `tensor`."""

ROWS = ("data", "fsdp")
"""The axes that rows are dealt out over."""


def make_mesh(description: str = "", devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh that a description asks for.

    The devices are ordered by `AXES`, whatever the order of the words: the axes that talk most lie
    between neighbours.

    Args:
      description: `axis=size`, comma-separated; a size of -1 takes the devices that are left. Empty
        is `data=-1`.
      devices: of which it is made; default all, of all processes.

    Raises:
      ValueError: for a word that is none, or sizes that do not use up the devices.

    >>> make_mesh("data=-1,tensor=1").axis_names
    ('data', 'tensor')
    """
    found = target_devices() if devices is None else list(devices)
    sizes = parse_mesh(description, len(found))
    names = tuple(name for name in AXES if name in sizes)
    shape = tuple(sizes[name] for name in names)
    return jax.make_mesh(shape, names, (AxisType.Auto,) * len(names), devices=found)


def parse_mesh(description: str, devices: int) -> dict[str, int]:
    """Return the size of each axis, in the description's order.

    Raises:
      ValueError: as `make_mesh`.

    >>> parse_mesh("data=-1, tensor=2", 8)
    {'data': 4, 'tensor': 2}
    >>> parse_mesh("data=3", 8)
    Traceback (most recent call last):
    ValueError: the mesh 'data=3' takes 3 devices and there are 8; let one axis take what is left,
    as in data=-1
    """
    text = description.strip() or "data=-1"
    sizes: dict[str, int] = {}
    for word in text.split(","):
        name, equals, number = (part.strip() for part in word.partition("="))
        if not equals or not number.removeprefix("-").isdigit():
            raise ValueError(
                f"cannot read {word.strip()!r} in the mesh {text!r}; write axis=size, as in "
                "data=2,fsdp=4"
            )
        if name not in AXES:
            raise ValueError(
                f"{name!r} in the mesh {text!r} is no axis; there are {', '.join(AXES)}"
            )
        if name in sizes:
            raise ValueError(f"{name} comes twice in the mesh {text!r}; give each axis one size")
        sizes[name] = int(number)
        if sizes[name] < 1 and sizes[name] != -1:
            raise ValueError(
                f"{name}={number} in the mesh {text!r}: a size is 1 or more, or -1 for the devices "
                "that are left"
            )
    open_ = [name for name, size in sizes.items() if size == -1]
    if len(open_) > 1:
        raise ValueError(
            f"{' and '.join(open_)} of the mesh {text!r} cannot both take what is left; write -1 "
            "for one of them, and a number for the others"
        )
    taken = math.prod(size for size in sizes.values() if size != -1)
    if open_:
        if devices % taken:
            raise ValueError(
                f"the mesh {text!r} cuts {devices} devices into groups of {taken}, which does not "
                f"come out even; choose sizes whose product divides {devices}"
            )
        sizes[open_[0]] = devices // taken
    elif taken != devices:
        raise ValueError(
            f"the mesh {text!r} takes {taken} devices and there are {devices}; let one axis take "
            f"what is left, as in {next(iter(sizes))}=-1"
        )
    return sizes


def whole(mesh: AnyMesh) -> NamedSharding:
    """Return the sharding of what lies whole on every device."""
    return sharding_on(mesh)


def row_axes(mesh: AnyMesh) -> tuple[str, ...]:
    """Return the axes that rows are dealt out over, those that the mesh has."""
    return tuple(name for name in ROWS if mesh.shape.get(name, 1) > 1)


def row_shards(mesh: AnyMesh) -> int:
    """Return over how many devices the rows of a batch are dealt out.

    >>> from jax.sharding import AbstractMesh
    >>> row_shards(AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor")))
    4
    """
    return math.prod(mesh.shape[name] for name in row_axes(mesh))


def row_sharding(mesh: AnyMesh, shape: tuple[int, ...]) -> NamedSharding:
    """Return how an entry of a batch, rows first, lies on a mesh.

    The tokens of a row, the second of two or three axes, are cut over `sequence` where the mesh has
    it and it divides them; pictures (four axes) are not.

    Raises:
      ValueError: if the rows cannot be dealt out evenly.

    >>> from jax.sharding import AbstractMesh
    >>> tuple(row_sharding(AbstractMesh((4, 2), ("data", "sequence")), (8, 128)).spec)
    ('data', 'sequence')
    """
    ways = row_shards(mesh)
    if not shape or shape[0] % ways:
        rows = shape[0] if shape else "no"
        raise ValueError(
            f"{rows} rows of a batch cannot be dealt out evenly over {ways} devices "
            f"({', '.join(f'{name}={mesh.shape[name]}' for name in row_axes(mesh))}); make the "
            "batch a multiple of that"
        )
    tokens = "sequence" if len(shape) in (2, 3) else None
    spec = PartitionSpec(*(row_axes(mesh) or None, tokens)[: len(shape)])
    return sharding_on(mesh, fitted(spec, shape, mesh))
