"""Many runs in one compiled step: a `vmap` over what differs, around one frozen trunk.

What differs between runs (their key, trainable leaves, optimizer state and settings) has a leading
axis R. What they share (frozen leaves, anchor, importance, the batch) has none, and whatever is
computed from shared values alone is computed once, not R times. Randomness in the trunk
(dropout) follows a run's key, and then the trunk is computed for each run.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sftjax.core import (
    Batch,
    Fixed,
    Metrics,
    PyTree,
    Rules,
    ShardingOf,
    TrainState,
    flatten,
    nbytes,
)
from sftjax.core.placing import sharding_on
from sftjax.train.devices import put_rows
from sftjax.train.layout import Layout, layout, placing, put
from sftjax.train.step import Step

Settings = Mapping[str, Array]
"""Name -> (R,) for a sweep, () for one of its runs; as `stack_settings` gives it."""

SweepStep = Callable[[TrainState, Fixed, Settings, Batch], tuple[TrainState, Metrics]]
"""A `Step` of R runs: states, settings and metrics have a leading axis R."""


def make_sweep_step(step_of: Callable[[Settings], Step], *, own_batches: bool = False) -> SweepStep:
    """Return the update of all runs, `(states, fixed, settings, batch) -> (states, metrics)`.

    Args:
      step_of: `setting -> step`, usually `make_step(objective, tx)` with an optimizer, view or
        objective made from the setting. Its values are traced scalars: multiply by them, do not
        compare them. A schedule of a swept rate is a schedule of 1 times the rate.
      own_batches: whether batches have a leading axis R too (an order of the data for each seed);
        else one batch serves every run.

    Returns:
      A pure function, uncompiled; `fixed` never has a leading axis. The settings are an argument,
      so other values of the same grid compile nothing anew.

    >>> from sftjax.core import Aux, Loss
    >>> from sftjax.train import init, make_step
    >>> def objective(params, model_state, batch, key):
    ...     return Loss(jnp.sum((params["w"] - batch["x"]) ** 2), 2.0), Aux({})
    >>> step = make_sweep_step(lambda s: make_step(objective, optax.sgd(s["learning_rate"])))
    >>> settings = {"learning_rate": jnp.array([0.5, 0.25])}
    >>> state, fixed = init({"w": jnp.zeros(2)}, {"w": True}, optax.sgd(1.0), jax.random.key(0))
    >>> states = stack_states([state, state])
    >>> step(states, fixed, settings, {"x": jnp.ones(2)})[0].trainable["w"]
    Array([[0.5 , 0.5 ],
           [0.25, 0.25]], dtype=float32)
    """

    def run(state: TrainState, fixed: Fixed, setting: Settings, batch: Batch):
        return step_of(setting)(state, fixed, batch)

    return jax.vmap(run, in_axes=(0, None, 0, 0 if own_batches else None))


def compile_sweep_step(
    step: SweepStep, mesh: Mesh | None = None, rules: Rules | ShardingOf | None = None
) -> SweepStep:
    """Compile a sweep's step with `jit`: the states are donated, the rest stays.

    Args:
      step: as `make_sweep_step` gives it.
      mesh: one with an axis `sweep`, over which the runs are dealt out; states, `fixed` and
        settings lie where `place_runs` puts them. The rows of the batch that all runs share are
        dealt out over `data` and `fsdp`, where it has these.
      rules: as for `compile_step`, of one run's leaves.

    >>> step = compile_sweep_step(lambda states, fixed, settings, batch: (states, {}))
    """
    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    place, compiled = placing(mesh, rules), {}

    def run(
        states: TrainState, fixed: Fixed, settings: Settings, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = jax.tree.structure((states, fixed))
        if key not in compiled:
            out = _run_layout(states, fixed, mesh, place)[0], _dealt(mesh)
            compiled[key] = jax.jit(step, out_shardings=out, donate_argnums=0)
        return compiled[key](states, fixed, settings, put_rows(batch, mesh))

    return run


def place_runs(
    states: TrainState,
    fixed: Fixed,
    settings: Settings,
    mesh: Mesh,
    rules: Rules | ShardingOf | None = None,
) -> tuple[TrainState, Fixed, Settings]:
    """Put a sweep on a mesh: runs along `sweep`, and each run's leaves as `place_state` does.

    Raises:
      ValueError: if the mesh has no such axis, or it does not divide the number of runs.

    >>> from sftjax.train.meshes import make_mesh
    >>> place_runs(None, None, {"dose": jnp.zeros(3)}, make_mesh("data=-1"))
    Traceback (most recent call last):
    ValueError: the mesh data=... has no axis 'sweep' to deal runs out over; write sweep=...
    """
    ways = mesh.shape.get("sweep", 0)
    if not ways:
        told = ",".join(f"{name}={size}" for name, size in mesh.shape.items())
        raise ValueError(
            f"the mesh {told} has no axis 'sweep' to deal runs out over; write sweep=..."
        )
    if len(states.step) % ways:
        raise ValueError(
            f"{len(states.step)} runs cannot be dealt out evenly over sweep={ways}; add or leave "
            "out seeds"
        )
    where = _run_layout(states, fixed, mesh, placing(mesh, rules))
    dealt = jax.tree.map(lambda _: _dealt(mesh), dict(settings))
    return put((states, fixed, dict(settings)), (*where, dealt))


def stack_states(states: Iterable[TrainState]) -> TrainState:
    """Return the states of R runs as one, with a leading axis R on every leaf.

    Make each with `init`: its own key, its own new leaves, and an optimizer of the very structure
    that `step_of` makes (from `take_run(settings, r)`, say; a plain strength of 0.0 may leave a
    transform out).

    Raises:
      ValueError: if there are no states, or two differ in structure, shape or dtype.

    >>> from sftjax.train import init
    >>> states = stack_states(
    ...     init({"w": jnp.ones(3)}, {"w": True}, optax.sgd(0.1), jax.random.key(seed))[0]
    ...     for seed in range(2))
    >>> states.trainable["w"].shape, states.key.shape
    ((2, 3), (2,))
    """
    states = list(states)
    if not states:
        raise ValueError("a sweep needs at least one run; the list of states is empty")
    first = _layout(states[0])
    for number, state in enumerate(states[1:], start=1):
        other = _layout(state)
        differ = [path for path in {**first, **other} if first.get(path) != other.get(path)]
        if differ or jax.tree.structure(state) != jax.tree.structure(states[0]):
            where = differ[0] if differ else "the nesting"
            raise ValueError(
                f"the state of run {number} differs from run 0's at {where} "
                f"({other.get(where)} there, {first.get(where)} in run 0). Runs of one sweep train "
                "the same leaves with the same chain of transforms, whatever their numbers are"
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def take_run(tree: PyTree, number: int) -> PyTree:
    """Return one run's part of states, settings or metrics: entry `number` of every leaf.

    >>> take_run({"dose": jnp.array([0.0, 4.0])}, 1)
    {'dose': Array(4., dtype=float32)}
    """
    return jax.tree.map(lambda leaf: leaf[number], tree)


def spread_runs(
    states: TrainState, fixed: Fixed, settings: Settings
) -> tuple[TrainState, Fixed, Settings]:
    """Deal the runs out over every device there is; on one device, nothing happens.

    Each device computes the shared trunk for its own runs, and devices need not talk.

    Raises:
      ValueError: if the number of runs is not divisible by the number of devices.
    """
    devices, runs = jax.device_count(), len(states.step)
    if devices == 1:
        return states, fixed, settings
    if runs % devices:
        raise ValueError(
            f"{runs} runs cannot be dealt out evenly over {devices} devices; add or leave out "
            "seeds, or keep the sweep on one device"
        )
    mesh = jax.make_mesh((devices,), ("runs",), axis_types=(AxisType.Auto,))
    dealt = sharding_on(mesh, PartitionSpec("runs"))
    states, settings = jax.device_put((states, dict(settings)), dealt)
    return states, jax.device_put(fixed, sharding_on(mesh)), settings


class SweepMemory(NamedTuple):
    """The bytes that a sweep's states take; printed, a line for people."""

    runs: int
    trainable: int
    """Of one run's trainable leaves, in float32; its gradients take as much again in a step."""
    optimizer: int
    """Of one run's optimizer state."""

    @property
    def total(self) -> int:
        """Bytes of all runs, held from the first step to the last."""
        return self.runs * (self.trainable + self.optimizer)

    def __str__(self) -> str:
        gradients = _bytes(self.runs * self.trainable)
        return (
            f"{self.runs} runs x (trainable {_bytes(self.trainable)} + optimizer "
            f"{_bytes(self.optimizer)}) = {_bytes(self.total)}; in a step, gradients of "
            f"{gradients} and the activations above the trunk come on top"
        )


def sweep_memory(trainable: PyTree, tx: optax.GradientTransformation, runs: int) -> SweepMemory:
    """Return what the states of a sweep will take, before anything is allocated.

    Args:
      trainable: one run's trainable leaves (arrays or shapes), holes elsewhere.
      tx: its optimizer.
      runs: R.

    >>> print(sweep_memory({"w": jnp.zeros((256, 1000))}, optax.adam(1e-3), 8))
    8 runs x (trainable 1.0 MB + optimizer 2.0 MB) = 24.6 MB; in a step, gradients of 8.2 MB
    and the activations above the trunk come on top
    """
    if runs < 1:
        raise ValueError(f"runs is {runs}; a sweep has at least one run")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), trainable)
    return SweepMemory(runs, nbytes(shapes), nbytes(jax.eval_shape(tx.init, shapes)))


def _run_layout(states: TrainState, fixed: Fixed, mesh: Mesh, place: ShardingOf) -> Layout:
    """Return where the leaves of a sweep lie: as one run's do, behind the axis of the runs."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), states)
    where, still = layout(one, fixed, place)
    runs = jax.tree.map(lambda s: sharding_on(mesh, PartitionSpec("sweep", *s.spec)), where)
    return runs, still


def _dealt(mesh: Mesh) -> NamedSharding:
    return sharding_on(mesh, PartitionSpec("sweep"))


def _layout(state: TrainState) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flatten(state).items()}


def _bytes(count: float) -> str:
    """Write a number of bytes the way a person reads it.

    >>> _bytes(512), _bytes(91_000_000)
    ('512 B', '91.0 MB')
    """
    power = min(int(math.log10(max(count, 1)) // 3), 4)
    return f"{count} B" if power == 0 else f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B"
