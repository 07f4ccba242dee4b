"""Where on a mesh of devices each leaf lies: a pure function of its path and shape.

A *spec* says for each axis of a leaf over which axes of the mesh it is cut. Two kinds of rule make
one: patterns (`by_rules`), where the first that matches decides, and size (`cut_largest`), which
needs to know nothing of the model. Nothing here touches a value.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from sftjax.core.paths import matches

ShardingOf = Callable[[str, tuple[int, ...]], Sharding]
"""`(path, shape) -> ` where a leaf lies."""

Rules = Sequence[tuple[str, PartitionSpec]]
"""`(pattern, spec)`, patterns as in `select`; the first that matches decides."""

AnyMesh = Mesh | AbstractMesh
"""Devices, or how many there would be."""


def left_to_compiler(mesh: AnyMesh) -> AnyMesh:
    """Return the mesh with axes along which the compiler may lay out what it makes.

    From jax 0.11 on `jax.make_mesh` and `AbstractMesh` have explicit axes where nothing is said:
    there every operation would have to say where its result lies, and a model's do not.

    >>> explicit = AbstractMesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    >>> left_to_compiler(explicit).axis_types == (AxisType.Auto,)
    True
    """
    auto = (AxisType.Auto,) * len(mesh.axis_names)
    if mesh.axis_types == auto:
        return mesh
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=auto)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=auto)


def sharding_on(mesh: AnyMesh, spec: PartitionSpec | None = None) -> NamedSharding:
    """Return where a leaf lies on a mesh, `left_to_compiler`; whole on each device if None.

    >>> sharding_on(AbstractMesh((2,), ("data",))).spec == PartitionSpec()
    True
    """
    return NamedSharding(left_to_compiler(mesh), spec or PartitionSpec())


def by_rules(mesh: AnyMesh, rules: Rules) -> ShardingOf:
    """Return a function that lays leaves out by path: the first pattern that matches decides.

    A leaf that none matches lies whole on every device, and so does one whose axis the mesh does
    not divide (a head of 3 classes over 2 devices).

    Args:
      mesh: the devices, its axes named.
      rules: `(pattern, spec)`; patterns as in `select`.

    >>> import jax, numpy as np
    >>> mesh = Mesh(np.array(jax.devices()[:1]), ("model",))
    >>> place = by_rules(mesh, [("**/q_proj/kernel", PartitionSpec(None, "model"))])
    >>> place("layers/0/q_proj/kernel", (4, 4)).spec == PartitionSpec(None, "model")
    True
    >>> place("norm/scale", (4,)).spec == PartitionSpec()
    True
    """

    def place(path: str, shape: tuple[int, ...]) -> Sharding:
        spec = spec_of(path, rules)
        fits = len(spec) <= len(shape) and all(
            size % devices(mesh, axes) == 0 for size, axes in zip(shape, spec, strict=False)
        )
        return sharding_on(mesh, spec if fits else PartitionSpec())

    return place


def spec_of(path: str, rules: Rules) -> PartitionSpec:
    """Return the spec of the first rule that matches; of none, the empty one.

    >>> spec_of("head/kernel", [("head", PartitionSpec("data"))]) == PartitionSpec("data")
    True
    """
    return next((spec for pattern, spec in rules if matches(pattern, path)), PartitionSpec())


def fitted(spec: PartitionSpec, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """Return what of a spec can be had: axes that the mesh has, and that divide the leaf's.

    An axis of the leaf that cannot be cut as asked lies whole; the others are cut nevertheless.
    Of a leaf with fewer axes than the spec nothing is cut.

    >>> mesh = AbstractMesh((2, 4), ("data", "tensor"))
    >>> tuple(fitted(PartitionSpec("tensor", ("data", "fsdp")), (6, 4), mesh))
    (None, 'data')
    """
    if len(spec) > len(shape):
        return PartitionSpec()
    kept: list[Any] = []
    for size, axes in zip(shape, spec, strict=False):
        names = tuple(name for name in _names(axes) if mesh.shape.get(name, 1) > 1)
        if not names or size % devices(mesh, names):
            kept.append(None)
        else:
            kept.append(names[0] if len(names) == 1 else names)
    return _trimmed(kept)


def cut_largest(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: AnyMesh, axis: str, smallest: int
) -> PartitionSpec:
    """Cut a large leaf's largest whole axis over one more axis of the mesh, if that divides it.

    A convolution's kernel, any leaf of four axes or more, is cut along its last axis (output
    channels) or not at all: where one was cut by input and by output channels at once, gradients
    came out wrong by half a percent (seen with jax 0.10.2 on eight virtual CPU devices).

    Args:
      spec: how the leaf is cut already; one that has the axis stays as it is.
      shape: of the leaf.
      mesh: the devices.
      axis: of the mesh; one that it does not have changes nothing.
      smallest: leaves of fewer scalars stay as they are.

    >>> mesh = AbstractMesh((4,), ("fsdp",))
    >>> tuple(cut_largest(PartitionSpec(), (6, 512, 8), mesh, "fsdp", 1000))
    (None, 'fsdp')
    >>> tuple(cut_largest(PartitionSpec(None, "tensor"), (6, 512), mesh, "fsdp", 1000))
    (None, 'tensor')
    >>> tuple(cut_largest(PartitionSpec(None, "fsdp"), (512, 8), mesh, "fsdp", 1000))
    (None, 'fsdp')
    """
    ways = mesh.shape.get(axis, 1)
    if ways == 1 or math.prod(shape) < smallest or any(axis in _names(axes) for axes in spec):
        return spec
    cut = [*spec, *[None] * (len(shape) - len(spec))]
    allowed = range(len(shape))
    if len(shape) >= 4:
        allowed = allowed[-1:] if not any(cut) else ()
    free = [place for place in allowed if cut[place] is None and shape[place] % ways == 0]
    if not free:
        return spec
    cut[max(free, key=lambda place: (shape[place], place))] = axis  # of equals, the last
    return _trimmed(cut)


def devices(mesh: AnyMesh, axes: Any) -> int:
    """Return over how many devices an entry of a spec cuts: None, a name, or several.

    >>> mesh = AbstractMesh((2, 4), ("data", "tensor"))
    >>> devices(mesh, None), devices(mesh, ("data", "tensor"))
    (1, 8)
    """
    return math.prod(mesh.shape[name] for name in _names(axes))


def _names(axes: Any) -> Collection[str]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def _trimmed(entries: list[Any]) -> PartitionSpec:
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
