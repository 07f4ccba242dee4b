"""Updates whose loss or gradient is not finite: held back inside the step, and explained."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sftjax.core import Batch, Fixed, Metrics, PyTree, TrainState, flatten
from sftjax.train.step import Step, compile_step

OnNan = Literal["stop", "skip", "rollback"]
"""What to do when a loss or a gradient is not finite: stop with a diagnosis; leave the update out
and count it; or go back to the last checkpoint and pass over the batches since."""

Diagnose = Callable[[TrainState, Fixed, Batch], str]
"""`(state before the update, fixed, its batch) ->` what is not finite, and where."""

_MUST_BE_FINITE = ("loss", "grad_norm")
_SHOWN = 8


def guard(step: Step, on_nan: OnNan = "stop") -> Step:
    """Return the step with updates held back where the loss or the gradient's norm is not finite.

    Weights, moments and statistics are then those before the update. Under "skip" the step's number
    goes on and the metric `skipped` is 1. Else the state halts: its number n becomes ~n (negative)
    and nothing moves any more, so that a loop that reads metrics one update late still holds the
    state in which the bad update began.

    Args:
      step: uncompiled.
      on_nan: see `OnNan`.

    Returns:
      A step of the same form; where all is finite, with the same results up to what another
      compilation may round otherwise.

    >>> import jax.numpy as jnp
    >>> state = TrainState(jnp.int32(4), {"w": jnp.ones(())}, (), {}, jax.random.key(0))
    >>> def bad(state, fixed, batch):
    ...     return state._replace(step=state.step + 1, trainable={"w": batch}), {"loss": batch}
    >>> after, _ = guard(bad)(state, None, jnp.float32(jnp.nan))
    >>> int(after.step), int(~after.step), float(after.trainable["w"])
    (-5, 4, 1.0)
    >>> after, metrics = guard(bad, "skip")(state, None, jnp.float32(jnp.nan))
    >>> int(after.step), float(after.trainable["w"]), float(metrics["skipped"])
    (5, 1.0, 1.0)
    """
    skip = on_nan == "skip"

    def guarded(state: TrainState, fixed: Fixed, batch: Batch) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, fixed, batch)
        fine = state.step >= 0
        for name in _MUST_BE_FINITE:
            if name in metrics:
                fine &= jnp.isfinite(metrics[name])
        number = state.step + 1 if skip else jnp.where(state.step < 0, state.step, ~state.step)
        moved = jax.tree.map(
            lambda new, old: jnp.where(fine, new, old), _moves(after), _moves(state)
        )
        after = TrainState(jnp.where(fine, after.step, number), *moved, key=state.key)
        if skip:
            metrics = {**metrics, "skipped": jnp.float32(1) - fine.astype(jnp.float32)}
        return after, metrics

    return guarded


def _moves(state: TrainState) -> tuple[PyTree, PyTree, PyTree]:
    return state.trainable, state.opt_state, state.model_state


def diagnosis(step: Step) -> Diagnose:
    """Return a function that says what is not finite in an update, and where.

    Args:
      step: the run's own, but made with `optax.identity()`: its "new weights" are the weights plus
        the gradient, which shows the gradient's bad leaves to any caller.

    >>> import optax
    >>> from sftjax.core import Aux, Loss
    >>> from sftjax.train import init, make_step
    >>> def objective(params, model_state, batch, key):
    ...     return Loss(jnp.sum(params["w"] * batch["x"]), 2.0), Aux({})
    >>> state, fixed = init({"w": jnp.ones(2)}, {"w": True}, optax.adam(0.1), jax.random.key(0))
    >>> told = diagnosis(make_step(objective, optax.identity()))
    >>> told(state, fixed, {"x": np.array([1.0, np.inf], np.float32)})
    "the batch's 'x' is not finite in row 1; the loss is inf; the gradient is not finite in 1 of 1 \
leaves, first w"
    """
    compiled = compile_step(step)

    def diagnose(state: TrainState, fixed: Fixed, batch: Batch) -> str:
        said = [*_bad_inputs(batch)]
        for name, tree in (("trained", state.trainable), ("frozen", fixed.frozen)):
            if bad := not_finite(tree):
                said.append(f"{len(bad)} {name} weights are not finite, first {bad[0]}")
        bare = jax.tree.map(jnp.copy, state._replace(opt_state=optax.EmptyState()))  # donated
        bare = bare._replace(step=jnp.where(state.step < 0, ~state.step, state.step))
        after, metrics = compiled(bare, fixed, batch)
        if not np.isfinite(loss := float(metrics["loss"])):
            said.append(f"the loss is {loss}")
        if bad := not_finite(after.trainable):
            leaves = len(flatten(after.trainable))
            said.append(
                f"the gradient is not finite in {len(bad)} of {leaves} leaves, first {bad[0]}"
            )
        return "; ".join(said) or "nothing here is not finite: the update itself overflowed"

    return diagnose


def not_finite(tree: PyTree) -> list[str]:
    """Return the paths of the float leaves that hold a NaN or an infinity, in the tree's order.

    >>> not_finite({"a": jnp.ones(2), "b": {"c": jnp.array([1.0, jnp.nan])}})
    ['b/c']
    """
    floats = {
        path: leaf
        for path, leaf in flatten(tree).items()
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    fine = jax.device_get({path: _all_finite(leaf) for path, leaf in floats.items()})
    return [path for path in floats if not fine[path]]


@jax.jit
def _all_finite(leaf: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf))


def _bad_inputs(batch: Batch) -> list[str]:
    said = []
    for name, leaf in batch.items():
        values = np.asarray(leaf)
        if values.ndim and jnp.issubdtype(values.dtype, jnp.floating):
            fine = np.isfinite(values.astype(np.float32)).reshape(len(values), -1).all(1)
            rows = np.flatnonzero(~fine)
            if len(rows):
                some = ", ".join(map(str, rows[:_SHOWN])) + ", ..." * (len(rows) > _SHOWN)
                said.append(f"the batch's {name!r} is not finite in row {some}")
    return said
