"""Go back to any update of a run in phases: through the ends of the phases before it."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax
from jax import Array

from sftjax.core import Batch, PyTree, TrainState
from sftjax.train.checkpoint import Checkpoints, open_checkpoints
from sftjax.train.loop import stalled
from sftjax.train.phase_start import Phase, PhaseEnd, begin_phase, end_phase, join_late
from sftjax.train.phases import home_of
from sftjax.train.replay import Replayed, reach, replay
from sftjax.train.step import Step


def replay_phases(
    params: PyTree,
    phases: Sequence[Phase],
    make: Callable[[optax.GradientTransformation], Step],
    batch_at: Callable[[int], Batch],
    key: Array,
    number: int,
    *,
    folder: str | os.PathLike[str] | None = None,
    keeping: Mapping[str, Any] | None = None,
    place: Callable[[PyTree], PyTree] = lambda tree: tree,
    metric: str = "eval_loss",
    greater_is_better: bool = False,
    patience: int = 0,
    **begun: Any,
) -> Replayed:
    """Rebuild update `number`, counted from 0 through all phases, of what `run_phases` ran.

    Each phase before it is gone through from its newest checkpoint, which is its end if the run had
    come so far; nothing is evaluated and nothing is written.

    Args:
      params, phases, make, batch_at, key, folder, keeping, place: those of `run_phases`.
      number: which update.
      metric, greater_is_better, patience: those of `fit`: where a phase stopped early.
      **begun: `anchor`, `importance`, `model_state`, `held_state`, `frozen_dtype`.

    Raises:
      ValueError: if the run has no such update.

    >>> import jax, jax.numpy as jnp
    >>> from sftjax.core import Aux, Loss
    >>> from sftjax.train import compile_step, lp_ft, make_step
    >>> def objective(params, model_state, batch, key):
    ...     return Loss((params["trunk"] + params["head"] - batch["y"]) ** 2, 1.0), Aux({})
    >>> found = replay_phases(
    ...     {"trunk": jnp.zeros(()), "head": jnp.zeros(())},
    ...     lp_ft({"trunk": False, "head": True}, {"trunk": True, "head": True},
    ...           probe=optax.sgd(0.25), probe_steps=1, tune=optax.sgd(0.1), tune_steps=2),
    ...     lambda tx: compile_step(make_step(objective, tx)),
    ...     lambda step: {"y": jnp.ones(())}, jax.random.key(0), 1)
    >>> found.metrics["loss"], found.since
    (0.25, 1)
    """
    if number < 0:
        raise ValueError(f"updates are counted from 0; there is no update {number}")
    end: PhaseEnd | None = None
    for place_, phase in enumerate(phases):
        state, fixed, late = begin_phase(params, phase, key, end, **begun)
        step = make(join_late(phase.tx, late))
        state, fixed = place(state), place(fixed)
        stops = int(state.step) + phase.num_steps
        with contextlib.ExitStack() as stack:
            saved = None
            if folder is not None:
                home = home_of(folder, place_, phase)
                if home.exists():
                    opened = open_checkpoints(home, read_only=True, **(keeping or {}))
                    saved = stack.enter_context(opened)
            if patience and saved is not None:
                stops = _stopped(saved, state, stops, metric, greater_is_better, patience)
            if number < stops:
                return replay(step, state, fixed, batch_at, number, checkpoints=saved)
            state, _, _ = reach(step, state, fixed, batch_at, stops, saved)
        end = end_phase(params, phase, end, state, late)
    stops = 0 if end is None else int(end.state.step)
    raise ValueError(f"the run has {stops} updates, counted from 0; there is no update {number}")


def _stopped(
    saved: Checkpoints, state: TrainState, stops: int, metric: str, greater: bool, patience: int
) -> int:
    """Return where a phase ended: earlier than planned, if its last evaluations brought nothing."""
    last = saved.latest(state)
    if last is None or not stalled(last.facts["history"], metric, greater, patience):
        return stops
    return int(last.state.step)
