"""Go back to any update of a run: its state, its batch, and what came of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from sftjax.core import Batch, Fixed, TrainState
from sftjax.train.checkpoint import Checkpoints
from sftjax.train.layout import pinned
from sftjax.train.loop import Run
from sftjax.train.step import Step


class Replayed(NamedTuple):
    """One update of a run, made again."""

    state: TrainState
    """Before the update."""
    batch: Batch
    metrics: dict[str, float]
    """Of the update; to the bit those that the run logged."""
    since: int
    """The update of the checkpoint from which it was made again; 0 is the start."""


def replay(
    step: Step,
    state: TrainState,
    fixed: Fixed,
    batch_at: Callable[[int], Batch],
    number: int,
    *,
    checkpoints: Checkpoints | None = None,
) -> Replayed:
    """Rebuild update `number` (counted from 0) from the newest checkpoint at or before it.

    Batches are a function of the update's number and so are its keys, and the step is the same
    program: what is rebuilt are the very bytes. Nothing is written.

    Args:
      step: the run's compiled step.
      state: the run's first state; donated.
      fixed: what does not move.
      batch_at: as for `fit`.
      number: which update.
      checkpoints: of the run; without, everything is made again from the start.

    Raises:
      ValueError: if the number is negative, or the given state is already beyond it.

    >>> import jax.numpy as jnp
    >>> def step(state, fixed, batch):
    ...     return state._replace(step=state.step + 1, trainable=state.trainable + batch), {
    ...         "loss": batch}
    >>> start = TrainState(jnp.int32(0), jnp.float32(0), (), {}, jax.random.key(0))
    >>> found = replay(step, start, None, lambda i: jnp.float32(i), 3)
    >>> float(found.state.trainable), found.metrics["loss"]
    (3.0, 3.0)
    """
    if number < 0:
        raise ValueError(f"updates are counted from 0; there is no update {number}")
    state, run, since = reach(step, state, fixed, batch_at, number, checkpoints)
    batch = batch_at(run.position(number))
    kept = jax.tree.map(jax.numpy.copy, state)
    _, metrics = step(state, fixed, batch)
    return Replayed(kept, batch, {name: float(value) for name, value in metrics.items()}, since)


def reach(
    step: Step,
    state: TrainState,
    fixed: Fixed,
    batch_at: Callable[[int], Batch],
    number: int,
    checkpoints: Checkpoints | None,
) -> tuple[TrainState, Run, int]:
    """Return the state before update `number`, what is known of its run, and since when it ran.

    The arguments are those of `replay`.

    Raises:
      ValueError: if the given state is already beyond it.
    """
    run, state = Run([], [], []), pinned(state)
    if checkpoints is not None:
        saved = checkpoints.latest(state, at_most=number)
        if saved is not None:
            state, run = saved.state, Run.of(saved.facts)
    since = int(state.step)
    if since > number:
        raise ValueError(
            f"the state stands at update {since}, beyond update {number}: give the state that the "
            "run began with"
        )
    for before in range(since, number):
        state, _ = step(state, fixed, batch_at(run.position(before)))
    return state, run, since
