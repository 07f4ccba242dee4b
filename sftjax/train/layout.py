"""How a run's state lies on a mesh: what belongs to a weight lies where that weight does.

Moments, anchor, importance and moving statistics follow the leaf that they belong to, so that an
update needs no exchange but that of gradients. All of it is computed from paths and shapes: a state
is laid out before it exists, and nothing is ever gathered to lay it out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from sftjax.core import (
    Batch,
    Fixed,
    PyTree,
    Rules,
    ShardingOf,
    TrainState,
    cut_largest,
    fitted,
    flatten,
    map_with_path,
    owner_of,
    spec_of,
)
from sftjax.core.placing import AnyMesh, sharding_on
from sftjax.train.meshes import row_sharding

SMALLEST = 2**16
"""Leaves of fewer scalars are not cut over `fsdp`: fetching one costs more than holding it."""

Layout = tuple[TrainState, Fixed]
"""A state and what is fixed beside it, of shardings."""


def automatic(
    mesh: AnyMesh, rules: Rules = (), *, axis: str = "fsdp", smallest: int = SMALLEST
) -> ShardingOf:
    """Return a function that lays out any tree: by rules where some match, and by size.

    What the rules ask for is done as far as the mesh has the axes and they divide the leaf's. Then
    the largest axis of a large leaf that is not cut yet is cut over `fsdp`.

    Args:
      mesh: the devices, its axes named.
      rules: such as `models.TENSOR_RULES`; none are needed for `data` and `fsdp`.
      axis: the axis of the mesh that leaves are cut over by size.
      smallest: leaves of fewer scalars are not.

    >>> from jax.sharding import AbstractMesh
    >>> place = automatic(AbstractMesh((2, 4), ("data", "fsdp")))
    >>> tuple(place("trunk/kernel", (1024, 4096)).spec), tuple(place("trunk/bias", (4096,)).spec)
    ((None, 'fsdp'), ())
    """

    def place(path: str, shape: tuple[int, ...]) -> Sharding:
        spec = fitted(spec_of(path, rules), shape, mesh)
        spec = cut_largest(spec, shape, mesh, axis, smallest)
        return sharding_on(mesh, spec)

    return place


def placing(mesh: AnyMesh, rules: Rules | ShardingOf | None) -> ShardingOf:
    """Return rules of any kind as a function: a table is taken by `automatic`, None is no table."""
    if callable(rules):
        return rules
    return automatic(mesh, () if rules is None else rules)


def layout(state: TrainState, fixed: Fixed, place: ShardingOf) -> Layout:
    """Return where every leaf of a state lies; read are shapes alone.

    Args:
      state: arrays or shapes.
      fixed: likewise.
      place: `(path, shape) -> sharding`; asked for the path of the weight, whatever belongs to it.

    >>> import optax
    >>> from jax.sharding import AbstractMesh
    >>> from sftjax.train import init
    >>> params, tx = {"w": jnp.ones((8, 2))}, optax.adam(0.1)
    >>> state, fixed = init(params, {"w": True}, tx, jax.random.key(0))
    >>> place = automatic(AbstractMesh((8,), ("fsdp",)), smallest=1)
    >>> found = layout(state, fixed, place)[0]
    >>> tuple(found.opt_state[0].mu["w"].spec), tuple(found.opt_state[0].count.spec)
    (('fsdp',), ())
    """
    moving = flatten(state.trainable)
    alone: Any = place("", ())

    def of(path: str, leaf: Any) -> Sharding:
        return place(path, leaf.shape)

    def of_moment(path: str, leaf: Any) -> Sharding:
        owner = owner_of(path, moving)
        # A factored moment (Adafactor's rows) has another shape than its weight: whole.
        if owner and moving[owner].shape == leaf.shape:
            return place(owner, leaf.shape)
        return alone

    def each(tree: PyTree) -> PyTree:
        return map_with_path(of, tree)

    laid = TrainState(
        step=alone,
        trainable=each(state.trainable),
        opt_state=map_with_path(of_moment, state.opt_state),
        model_state=each(state.model_state),
        key=alone,
    )
    return laid, Fixed(*(each(part) for part in fixed))


def place_state(
    state: TrainState, fixed: Fixed, mesh: AnyMesh, rules: Rules | ShardingOf | None = None
) -> tuple[TrainState, Fixed]:
    """Put a state on a mesh; what lies there already, as `hub.load` puts it, is not moved.

    With several processes each brings the same state, and gives its devices their parts.

    Args:
      state: arrays.
      fixed: likewise.
      mesh: the devices.
      rules: a table of patterns, a function of path and shape, or None for the automatic ones.

    >>> import optax
    >>> from sftjax.train import init, make_mesh
    >>> state, fixed = init({"w": jnp.ones((8, 2))}, {"w": True}, optax.sgd(0.1), jax.random.key(0))
    >>> state, fixed = place_state(state, fixed, make_mesh())
    >>> state.trainable["w"].sharding.is_fully_replicated
    True
    """
    return put((state, fixed), layout(state, fixed, placing(mesh, rules)))


def abstract_state(
    state: TrainState, fixed: Fixed, mesh: AnyMesh, rules: Rules | ShardingOf | None = None
) -> tuple[TrainState, Fixed]:
    """Return a state in shapes that know where they would lie; nothing is allocated.

    Args:
      state: arrays or shapes, such as `jax.eval_shape` of `init` gives.
      fixed: likewise.
      mesh: the devices, or an `AbstractMesh` of devices that are not there.
      rules: as for `place_state`.
    """
    return shaped((state, fixed), layout(state, fixed, placing(mesh, rules)))


def abstract_batch(batch: Batch, mesh: AnyMesh) -> Batch:
    """Return a batch in shapes that know where they would lie.

    >>> from jax.sharding import AbstractMesh
    >>> mesh = AbstractMesh((8,), ("data",))
    >>> tuple(abstract_batch({"x": np.zeros((16, 3))}, mesh)["x"].sharding.spec)
    ('data',)
    """
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=row_sharding(mesh, leaf.shape))
        for name, leaf in batch.items()
    }


def shaped(tree: PyTree, shardings: PyTree) -> PyTree:
    """Return a tree in shapes that know where they lie."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings,
    )


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Put every leaf where it is to lie, a part at a time; what lies there stays.

    >>> from sftjax.train.meshes import make_mesh, whole
    >>> put({"a": np.ones(2)}, {"a": whole(make_mesh())})
    {'a': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(_put, tree, shardings)


def pinned(tree: PyTree) -> PyTree:
    """Return a tree of arrays that are committed to where they lie and to their dtype.

    Fresh from `init` on one device they are committed to none, and a number that Python gave is of
    a weak type; out of a checkpoint they are neither, and `jit` compiles a program for each kind.
    Pinned, a run that goes on takes the program that the run before left in the compilation cache.

    >>> jnp.ones(2).committed, pinned({"w": jnp.ones(2)})["w"].committed
    (False, True)
    """

    def pin(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if leaf.aval.weak_type:
            leaf = jnp.asarray(leaf, leaf.dtype)
        return leaf if leaf.committed else jax.device_put(leaf, leaf.sharding)

    return jax.tree.map(pin, tree)


def _put(leaf: Any, where: Sharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == where:
        return leaf
    if where.is_fully_addressable or (
        isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    ):
        return jax.device_put(leaf, where)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        numbers = _from_callback(np.asarray(jax.random.key_data(leaf)), where)
        return jax.random.wrap_key_data(numbers, impl=str(jax.random.key_impl(leaf)))
    return _from_callback(np.asarray(leaf), where)


def _from_callback(values: np.ndarray, where: Sharding) -> jax.Array:
    # `device_put` would first compare the values of all processes, leaf by leaf.
    callback: Callable[[Any], np.ndarray] = values.__getitem__
    return jax.make_array_from_callback(values.shape, where, callback)
