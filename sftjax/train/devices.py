"""Weights and the rows of batches on the devices there are; on one device, nothing happens.

With several processes each reads its own rows: a source of batches that takes a `Share` beside the
step is asked for this process's alone, and the parts of all are one array.
"""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sftjax.core import (
    Batch,
    Fixed,
    PyTree,
    Rules,
    ShardingOf,
    Share,
    TrainState,
    gathered,
    target_devices,
)
from sftjax.core.placing import AnyMesh, left_to_compiler, sharding_on
from sftjax.train.layout import abstract_batch, place_state, put
from sftjax.train.meshes import make_mesh, row_axes, row_sharding, row_shards, whole

_chosen: list[Mesh] = []
"""The mesh of this process's run, where one was chosen."""

_apart: ContextVar[bool] = ContextVar("apart", default=False)


def use_mesh(description: str) -> Mesh | None:
    """Choose the mesh that `replicate`, `spread`, `settle` and `laid_out` use where none is given.

    It holds for this process until the next call, as the settings of jax do.

    Args:
      description: as for `make_mesh`; empty goes back to all devices along `data`, whatever there
        is, weights whole on each.

    Returns:
      The mesh; None for the empty description.
    """
    _chosen[:] = [make_mesh(description)] if description else []
    return chosen_mesh()


def chosen_mesh() -> Mesh | None:
    """Return what `use_mesh` chose; None where nothing was.

    >>> chosen_mesh() is None
    True
    """
    return _chosen[0] if _chosen else None


@contextmanager
def apart(whether: bool = True) -> Generator[None, None, None]:
    """Let `replicate`, `spread` and `laid_out` use the devices of this process alone.

    For what each of several processes works out for itself, such as an evaluation: nothing is
    exchanged, and numpy can read every array. Alone, a process does what it does anyway.

    Args:
      whether: `False` within it is for what all processes do together after all.

    >>> with apart():
    ...     spread(lambda step: {"x": np.full(8, step)})(3)["x"].shape
    (8,)
    """
    token = _apart.set(whether)
    try:
        yield
    finally:
        _apart.reset(token)


def at_home(tree: PyTree) -> PyTree:
    """Return arrays of all processes whole on this one's devices, as `apart` computes with them.

    Every process must call it. What every device holds anyway is not copied; what is cut is brought
    together a leaf at a time. Alone, a process gets the tree as it is.

    >>> at_home({"w": np.ones(2)})
    {'w': array([1., 1.])}
    """
    if jax.process_count() == 1:
        return tree
    where = whole(make_mesh(devices=jax.local_devices()))

    def each(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if not leaf.is_fully_replicated:
            return put(gathered(leaf), where)
        parts = {shard.device: shard.data for shard in leaf.addressable_shards}
        own = [parts[device] for device in where.mesh.local_devices]  # type: ignore[union-attr]
        return jax.make_array_from_single_device_arrays(leaf.shape, where, own)

    return jax.tree.map(each, tree)


def settle(
    state: TrainState, fixed: Fixed, rules: Rules | ShardingOf | None = None
) -> tuple[TrainState, Fixed]:
    """Put a state on the chosen mesh by rules; where none was chosen, a copy on every device."""
    mesh = chosen_mesh()
    return replicate((state, fixed)) if mesh is None else place_state(state, fixed, mesh, rules)


def replicate(tree: PyTree, mesh: Mesh | None = None) -> PyTree:
    """Put a copy of every array on every device.

    >>> import jax.numpy as jnp
    >>> replicate({"w": jnp.ones(2)})
    {'w': Array([1., 1.], dtype=float32)}
    """
    mesh = _mesh(mesh)
    if mesh is None:
        return tree
    where = whole(mesh)
    return put(tree, jax.tree.map(lambda _: where, tree))


def spread(batch_at: Callable[..., Batch], mesh: Mesh | None = None) -> Callable[[int], Batch]:
    """Return `batch_at` with the rows of each batch dealt out over the devices.

    A compiled step takes such batches as they are: the gradient is that of the whole batch. The
    rows must be divisible by the number of devices that they are dealt out over.

    Args:
      batch_at: `(step) -> batch`, the whole batch in every process; or `(step, share) -> batch`,
        which is asked for the rows of this process's devices alone.
      mesh: default the chosen one, or all devices along the axis `data`.

    >>> spread(lambda step: {"x": np.full(8, step)})(3)["x"].shape
    (8,)
    """
    mesh = _mesh(mesh)
    if mesh is None:
        return batch_at
    if jax.process_count() == 1 or "share" not in inspect.signature(batch_at).parameters:
        return lambda step: put_rows(batch_at(step), mesh)
    share = share_of(mesh)
    return lambda step: join_rows(batch_at(step, share=share), share, mesh)


def put_rows(batch: Batch, mesh: AnyMesh) -> Batch:
    """Put a whole batch on a mesh, its rows dealt out; what lies on the mesh already stays.

    Raises:
      ValueError: if the rows cannot be dealt out evenly.
    """

    def each(leaf: Any) -> jax.Array:
        there = getattr(leaf, "sharding", None)
        if isinstance(there, NamedSharding) and there.mesh == left_to_compiler(mesh):
            return leaf
        return put(leaf, row_sharding(mesh, np.shape(leaf)))

    return {name: each(leaf) for name, leaf in batch.items()}


def join_rows(part: Batch, share: Share, mesh: Mesh) -> Batch:
    """Make a global batch of the rows that each process brings.

    Args:
      part: this process's rows, numpy.
      share: which those are (`share_of`).
      mesh: of all processes.

    >>> mesh = make_mesh()
    >>> join_rows({"x": np.arange(8)}, share_of(mesh), mesh)["x"].shape
    (8,)
    """

    def each(own: np.ndarray) -> jax.Array:
        shape = (len(own) * share.shares // (share.stop - share.first), *own.shape[1:])
        first = share.of(shape[0]).start

        def cut(index: Any) -> np.ndarray:
            rows, *rest = index
            start, stop, _ = rows.indices(shape[0])
            return own[(slice(start - first, stop - first), *rest)]

        return jax.make_array_from_callback(shape, row_sharding(mesh, shape), cut)

    return {name: each(np.asarray(own)) for name, own in part.items()}


def share_of(mesh: Mesh) -> Share:
    """Return which rows of a batch the devices of this process hold.

    >>> share_of(make_mesh()).of(8)  # one process holds all
    slice(0, 8, None)
    """
    count = row_shards(mesh)
    rows = sharding_on(mesh, PartitionSpec(row_axes(mesh) or None))
    places: Any = rows.addressable_devices_indices_map((count,)).values()
    own = [index[0].indices(count) for index in places]
    return Share(min(start for start, _, _ in own), max(stop for _, stop, _ in own), count)


def laid_out(shapes: PyTree, *axes: str, mesh: Mesh | None = None) -> PyTree:
    """Return shapes as `replicate` (no axes) or `spread` (axis "data") would lay arrays out.

    >>> import jax.numpy as jnp
    >>> laid_out({"w": jax.ShapeDtypeStruct((2,), jnp.float32)})["w"].shape
    (2,)
    """
    mesh = _mesh(mesh)
    if mesh is None:
        return shapes
    if axes:
        return abstract_batch(shapes, mesh)
    where = whole(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes
    )


def _mesh(given: Mesh | None) -> Mesh | None:
    """Return the given mesh, or the chosen one, or that of all devices; None where there is one."""
    if given is None and _apart.get() and jax.process_count() > 1:
        own = jax.local_devices()
        return None if len(own) == 1 else make_mesh(devices=own)
    if given is not None or _chosen:
        return given or _chosen[0]
    return None if len(target_devices()) == 1 else make_mesh()
