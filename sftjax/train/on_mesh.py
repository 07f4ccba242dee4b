"""A step compiled for a mesh, and one that is called like `pmap`: the same step, the same numbers.

The step itself knows nothing of devices. The compiler is told where state, batch and result lie,
and adds what has to be exchanged: gradients between devices that hold the same weights, weights
where they are cut over `fsdp`, activations where a layer is cut over `tensor`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec

from sftjax.core import Batch, Fixed, Metrics, PyTree, Rules, ShardingOf, TrainState, flatten
from sftjax.core.placing import AnyMesh, left_to_compiler, sharding_on
from sftjax.train.devices import put_rows
from sftjax.train.layout import abstract_batch, layout, placing, put, shaped
from sftjax.train.meshes import make_mesh, whole

Stepping = Callable[[TrainState, Fixed, Batch], tuple[TrainState, Metrics]]


class MeshStep:
    """A step compiled for a mesh; it is called as the step is.

    Where things lie is found from the shapes of the first state that it is given. A state that lies
    elsewhere is put there first, the rows of a batch are dealt out, and the state is donated.
    """

    def __init__(self, step: Stepping, mesh: AnyMesh, rules: Rules | ShardingOf | None = None):
        self.mesh = left_to_compiler(mesh)
        self._step = step
        self._place = placing(mesh, rules)
        self._compiled: dict[Any, tuple[Any, PyTree]] = {}
        self._fixed: tuple[Fixed, Fixed] | None = None  # as it was given last, and on the mesh

    def __call__(self, state: TrainState, fixed: Fixed, batch: Batch):
        """Return the next state, which lies as the state does, and metrics, whole everywhere."""
        run, where = self._of(state, fixed)
        # A step gives its state where it took it: one leaf tells whether this one came from here.
        if getattr(state.step, "sharding", None) != where[0].step:
            state = put(state, where[0])
        if self._fixed is None or fixed is not self._fixed[0]:
            self._fixed = fixed, put(fixed, where[1])
        return run(state, self._fixed[1], put_rows(batch, self.mesh))

    def lower(self, state: TrainState, fixed: Fixed, batch: Batch) -> Any:
        """Lower for arrays or shapes; nothing is allocated and nothing is put anywhere."""
        run, where = self._of(state, fixed)
        state, fixed = shaped((state, fixed), where)
        return run.lower(state, fixed, abstract_batch(batch, self.mesh))

    def jitted(self, state: TrainState, fixed: Fixed) -> Any:
        """Return the function that `jit` made, such as `jax.export` takes."""
        return self._of(state, fixed)[0]

    def _of(self, state: TrainState, fixed: Fixed) -> tuple[Any, PyTree]:
        key = jax.tree.structure((state, fixed))
        if key not in self._compiled:
            where = layout(state, fixed, self._place)
            run = jax.jit(
                self._step,
                in_shardings=(*where, None),
                out_shardings=(where[0], whole(self.mesh)),
                donate_argnums=0,
            )
            self._compiled[key] = run, where
        return self._compiled[key]


def pmap_step(step: Stepping, devices: Sequence[Any] | None = None) -> Stepping:
    """Compile a step to be called the way `jax.pmap(step)` is; for programs that are built on it.

    Every leaf of state and `fixed` has a leading axis, a copy for each device (`copies`), a batch
    has its rows cut along one, (devices, rows of each, ...), and so come state and metrics back.
    Inside it is one program over the whole batch, not one for each device: dropout, batch norm and
    whatever else looks across rows gives what it gives on one device. The state is donated.

    Args:
      step: the same pure function that `compile_step` takes.
      devices: default all of this process's.

    Raises:
      ValueError: if a leading axis is not the number of devices.

    >>> import jax.numpy as jnp, numpy as np, optax
    >>> from sftjax.core import Aux, Loss
    >>> from sftjax.train import init, make_step
    >>> def objective(params, model_state, batch, key):
    ...     return Loss(jnp.sum((params["w"] - batch["x"]) ** 2), 2.0), Aux({})
    >>> state, fixed = init({"w": jnp.zeros(())}, {"w": True}, optax.sgd(0.5), jax.random.key(0))
    >>> step, count = pmap_step(make_step(objective, optax.sgd(0.5))), jax.local_device_count()
    >>> state, metrics = step(copies(state), copies(fixed), {"x": np.ones((count, 2))})
    >>> metrics["loss"].shape == (count,)
    True
    """
    found = jax.local_devices() if devices is None else list(devices)
    mesh, count = make_mesh("data=-1", found), len(found)
    stacked = sharding_on(mesh, PartitionSpec("data"))
    # A copy is taken, and given, where it lies: check_vma=False, because nothing proves them equal.
    apart: dict[str, Any] = {"mesh": mesh, "check_vma": False}
    one = jax.shard_map(
        lambda tree: jax.tree.map(lambda leaf: leaf[0], tree),
        in_specs=PartitionSpec("data"), out_specs=PartitionSpec(), **apart,
    )  # fmt: skip
    many = jax.shard_map(
        lambda tree: jax.tree.map(lambda leaf: leaf[None], tree),
        in_specs=PartitionSpec(), out_specs=PartitionSpec("data"), **apart,
    )  # fmt: skip

    @partial(
        jax.jit, in_shardings=(stacked, stacked, stacked), out_shardings=stacked, donate_argnums=0
    )
    def run(state: TrainState, fixed: Fixed, batch: Batch) -> tuple[TrainState, Metrics]:
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
        return many(step(one(state), one(fixed), rows))

    def checked(state: TrainState, fixed: Fixed, batch: Batch) -> tuple[TrainState, Metrics]:
        for path, leaf in flatten({"state": state, "fixed": fixed, "batch": dict(batch)}).items():
            if not leaf.ndim or len(leaf) != count:
                raise ValueError(
                    f"{path} has shape {leaf.shape}, and its first axis should be the {count} "
                    "devices: give `copies(state)`, `copies(fixed)`, and batches of shape "
                    f"({count}, rows of each device, ...)"
                )
        return run(state, fixed, dict(batch))

    return checked


def copies(tree: PyTree, devices: Sequence[Any] | None = None) -> PyTree:
    """Return a tree as `pmap_step` takes it: each leaf once for each device, along a first axis.

    >>> copies({"w": jax.numpy.ones(3)})["w"].shape == (jax.local_device_count(), 3)
    True
    """
    found = jax.local_devices() if devices is None else list(devices)
    mesh = make_mesh("data=-1", found)
    where = sharding_on(mesh, PartitionSpec("data"))

    @partial(jax.jit, out_shardings=where)
    def stack(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.numpy.broadcast_to(leaf, (len(found), *leaf.shape)), tree
        )

    return stack(jax.device_put(tree, whole(mesh)))


def first_copy(tree: PyTree) -> PyTree:
    """Return the first device's copy of every leaf; the inverse of `copies`.

    >>> first_copy(copies({"w": jax.numpy.ones(3)}))
    {'w': Array([1., 1., 1.], dtype=float32)}
    """
    return jax.tree.map(lambda leaf: leaf[0], tree)
