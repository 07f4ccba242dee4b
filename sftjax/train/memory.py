"""What an update takes in memory, by kind, before anything is allocated."""

from typing import Any, NamedTuple

import jax
from jax import Array
from jax.extend.core import Var

from sftjax.core import Batch, Fixed, Objective, PyTree, TrainState, View, combine, nbytes
from sftjax.train.step import Step


class StepMemory(NamedTuple):
    """Bytes on one device during one update."""

    frozen: int
    """Weights that stand still."""
    trained: int
    """Weights that move."""
    gradients: int
    """Of those, as large as they are."""
    moments: int
    """The optimizer's state."""
    anchor: int
    """Pretrained values held on to, and their importance."""
    batch: int
    activations: int
    """What the forward pass keeps for the backward pass, as it is traced: the compiler may fuse
    some of it away, and needs room to work beside it. Of what is cut over devices, one's part."""
    arguments: int
    """The compiled program's own figure for what goes in: all of the above but gradients and
    activations."""
    temporary: int
    """The compiled program's own figure for what it needs while it runs, gradients and activations
    among them."""
    outputs: int
    """The compiled program's own figure for what comes out."""
    in_place: int
    """Of that, what is written over the arguments."""

    @property
    def total(self) -> int:
        """The most that the compiled program holds at once."""
        return self.arguments + self.temporary + self.outputs - self.in_place

    @property
    def planned(self) -> int:
        """The same, counted from shapes: all kinds together, without room to work.

        What is left to `total` are weights while they are fetched whole, and temporaries: on 8
        virtual CPU devices a fifth of it for a small Llama (fsdp=4,tensor=2, remat full).
        """
        stays = self.frozen + self.trained + self.moments + self.anchor + self.batch
        return stays + self.gradients + self.activations


def step_memory(
    step: Step,
    objective: Objective,
    state: TrainState,
    fixed: Fixed,
    batch: Batch,
    *,
    accumulate: int = 1,
    view: View | None = None,
) -> StepMemory:
    """Return what a step takes on each device, compiled for the devices of this process.

    Args:
      step: compiled (`compile_step`); it is lowered and compiled, never run.
      objective: what it is made of.
      state: arrays, or `jax.ShapeDtypeStruct`s (with shardings on several devices).
      fixed: likewise.
      batch: likewise, all of its micro-batches.
      accumulate: how many those are.
      view: what the step was made with.

    Raises:
      ValueError: if the backend says nothing of the memory of compiled programs.

    >>> import jax.numpy as jnp, optax
    >>> from sftjax.core import Aux, Loss
    >>> from sftjax.train import compile_step, init, make_step
    >>> def objective(params, model_state, batch, key):
    ...     return Loss(jnp.sum(jnp.tanh(batch["x"] @ params["w"])), 1.0), Aux({})
    >>> tx = optax.adam(0.1)
    >>> state, fixed = init({"w": jnp.ones((4, 3))}, {"w": True}, tx, jax.random.key(0))
    >>> found = step_memory(
    ...     compile_step(make_step(objective, tx)), objective, state, fixed, {"x": jnp.ones((2, 4))}
    ... )
    >>> found.trained, found.moments  # two moments of 48 bytes and a count
    (48, 100)
    """
    compiled = step.lower(state, fixed, batch).compile()  # type: ignore[attr-defined]
    figures = compiled.memory_analysis()
    if figures is None:
        raise ValueError(
            f"{jax.default_backend()} says nothing of the memory that compiled programs take; plan "
            "on a CPU (JAX_PLATFORMS=cpu)"
        )
    rows = jax.tree.map(lambda leaf: _rows(leaf, accumulate), dict(batch))
    moving = jax.tree.map(_local, state.trainable)
    return StepMemory(
        frozen=_bytes(fixed.frozen),
        trained=nbytes(moving),
        gradients=nbytes(moving),
        moments=_bytes(state.opt_state),
        anchor=_bytes((fixed.anchor, fixed.importance)),
        batch=_bytes(batch),
        activations=kept_for_backward(objective, state, fixed, rows, view=view),
        arguments=figures.argument_size_in_bytes,
        temporary=figures.temp_size_in_bytes,
        outputs=figures.output_size_in_bytes,
        in_place=figures.alias_size_in_bytes,
    )


def kept_for_backward(
    objective: Objective,
    state: TrainState,
    fixed: Fixed,
    batch: Batch,
    *,
    view: View | None = None,
) -> int:
    """Return the bytes that a forward pass keeps for the backward pass beside its arguments.

    Those are the residuals of `jax.vjp`, each counted once; arguments (weights, the batch) that are
    needed again are not among them. Where weights are cut over devices, the forward pass is
    compiled to know where each residual lies, and a device's part of it counts; else the rows of
    one device are traced.

    Args:
      objective: of the step.
      state: arrays or shapes; with shardings where there are several devices.
      fixed: likewise.
      batch: likewise, one micro-batch.
      view: what the step was made with.
    """

    def residuals(trainable: PyTree, state: TrainState, fixed: Fixed, batch: Batch) -> list[Array]:
        def total(trainable: PyTree) -> Any:
            seen = trainable if view is None else view(trainable, fixed, state.key)
            held = combine(state.model_state, fixed.model_state)
            return objective(combine(seen, fixed.frozen), held, batch, state.key)[0].sum

        return jax.tree.leaves(jax.vjp(total, trainable)[1])

    weights = jax.tree.leaves((state.trainable, fixed.frozen))
    cut = any(_local(leaf).shape != leaf.shape for leaf in weights)
    given = (state.trainable, state, fixed, batch if cut else jax.tree.map(_local, batch))
    traced = jax.make_jaxpr(residuals)(*given).jaxpr
    shapes: list[Any] = [var.aval for var in traced.outvars]
    if cut:
        where: Any = jax.jit(residuals).lower(*given).compile().output_shardings
        shapes = [
            jax.ShapeDtypeStruct(place.shard_shape(shape.shape), shape.dtype)
            for shape, place in zip(shapes, where, strict=True)
        ]
    kept = {var: at for at, var in enumerate(traced.outvars) if isinstance(var, Var)}
    taken = {*traced.invars, *traced.constvars}  # what is no variable is a constant
    return nbytes([shapes[at] for var, at in kept.items() if var not in taken])


def _bytes(tree: PyTree) -> int:
    return nbytes(jax.tree.map(_local, tree))


def _local(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return the shape of a leaf's part on one device."""
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return jax.ShapeDtypeStruct(shape, leaf.dtype)


def _rows(leaf: Any, accumulate: int) -> jax.ShapeDtypeStruct:
    """Return the shape of an entry of one micro-batch, which lies as the batch does."""
    shape = (leaf.shape[0] // accumulate, *leaf.shape[1:])
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
