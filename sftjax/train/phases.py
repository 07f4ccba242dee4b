"""A run in phases: which leaves move changes, the step number, the data and the anchor go on.

LP-FT trains a head first and then everything; gradual unfreezing adds block after block; LISA can
be a phase for each draw. A phase has its own partition, so it pays for its own leaves only, and
its own compilation.
"""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sftjax.core import combine, count, file_name, flatten, partition
from sftjax.core.state import Batch, PyTree
from sftjax.train.checkpoint import open_checkpoints
from sftjax.train.loop import fit
from sftjax.train.phase_start import (
    Phase,
    PhaseEnd,
    begin_phase,
    end_phase,
    goes_on,
    join_late,
    resting,
)
from sftjax.train.step import Step
from sftjax.train.window import Event, Record


class Phased(NamedTuple):
    """What a run in phases leaves behind."""

    params: PyTree
    """All leaves, after the last update."""
    best: PyTree
    """All leaves, at the best evaluation of the last phase; its end if nothing was evaluated."""
    end: PhaseEnd
    history: list[Record]
    """The records of all phases; `step` counts through."""
    seconds: float
    faults: tuple[Event, ...] = ()


def run_phases(
    params: PyTree,
    phases: Sequence[Phase],
    make: Callable[[optax.GradientTransformation], Step],
    batch_at: Callable[[int], Batch],
    key: Array,
    *,
    anchor: PyTree | None = None,
    importance: PyTree | None = None,
    model_state: PyTree | None = None,
    held_state: PyTree | None = None,
    frozen_dtype: Any = None,
    place: Callable[[PyTree], PyTree] = lambda tree: tree,
    start: PhaseEnd | None = None,
    folder: str | os.PathLike[str] | None = None,
    keeping: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = print,
    **options: Any,
) -> Phased:
    """Run the phases one after another; each starts from the weights that the last one left.

    - A leaf that is frozen now keeps what it learned before, in full precision.
    - The number of the update goes on, and with it the data and the keys.
    - The anchor is that of the pretrained values in every phase, never a phase's start.
    - Moments of leaves that keep moving are kept, unless the phase resets the optimizer. A leaf
      that joins a kept optimizer gets a clock of its own (`join_late`).
    - Each phase compiles one step; `tell` says so.

    Args:
      params: the full tree; never donated.
      phases: at least one.
      make: makes a compiled step from an optimizer, such as
        `lambda tx: compile_step(make_step(objective, tx))`; called once for each phase.
      batch_at: the batch of update i, counted through all phases from 0.
      key: the run's PRNG key.
      anchor: pretrained values of all leaves that any phase holds (`anchor_of`); a phase is given
        those of its moving leaves.
      importance: of the anchor's structure.
      model_state, held_state: as for `init`.
      frozen_dtype: as for `init`; a leaf is in full precision again when it moves.
      place: puts a state or fixed tree on devices, such as `replicate`.
      start: the end of an earlier phase of the same run; its phases are not run again.
      folder: keeps checkpoints, a subfolder a phase, and resumes from them.
      keeping: arguments of `open_checkpoints` (the run's `identity`).
      tell: is given a line for each phase.
      **options: of `fit` (`evaluate`, `eval_steps`, `log`, ...), the same for every phase.

    Returns:
      A `Phased`.

    Raises:
      ValueError: before anything is compiled: no phase, one that moves nothing or makes no update,
        a mask of another structure, an optimizer kept from a `tx` of another form.

    >>> from sftjax.core import Aux, Loss
    >>> from sftjax.train import compile_step, make_step
    >>> def objective(params, model_state, batch, key):
    ...     return Loss((params["trunk"] + params["head"] - batch["y"]) ** 2, 1.0), Aux({})
    >>> params = {"trunk": jnp.zeros(()), "head": jnp.zeros(())}
    >>> run = run_phases(
    ...     params,
    ...     lp_ft({"trunk": False, "head": True}, {"trunk": True, "head": True},
    ...           probe=optax.sgd(0.5), probe_steps=1, tune=optax.sgd(0.1), tune_steps=2),
    ...     lambda tx: compile_step(make_step(objective, tx)),
    ...     lambda step: {"y": jnp.ones(())},
    ...     jax.random.key(0))
    phase 1/2 'lp': 1 of 2 leaves move (1 parameters), updates 0 to 1, new optimizer; compiles once
    phase 2/2 'ft': 2 of 2 leaves move (2 parameters), updates 1 to 3, new optimizer; compiles once
    >>> run.params
    {'head': Array(1., dtype=float32), 'trunk': Array(0., dtype=float32)}
    """
    _check(params, phases, options)
    done = 0 if start is None else start.phases
    end, history, seconds, faults = start, [], 0.0, ()
    best = params if start is None else start.params
    for number, phase in enumerate(phases[done:], done):
        keeps = end is not None and not phase.reset_optimizer
        begins = 0 if end is None else int(end.state.step)
        stops = begins + phase.num_steps
        tell(
            f"phase {number + 1}/{len(phases)} {phase.name!r}: "
            f"{sum(jax.tree.leaves(phase.trainable))} of {len(jax.tree.leaves(params))} leaves "
            f"move ({count(partition(params, phase.trainable)[0]):,} parameters), updates {begins} "
            f"to {stops}, {'kept' if keeps else 'new'} optimizer; compiles once"
        )
        state, fixed, late = begin_phase(
            params, phase, key, end,
            anchor=anchor, importance=importance,
            model_state=model_state, held_state=held_state, frozen_dtype=frozen_dtype,
        )  # fmt: skip
        step = make(join_late(phase.tx, late))
        state, fixed = place(state), place(fixed)
        with contextlib.ExitStack() as stack:
            saved = None
            if folder is not None:
                home = home_of(folder, number, phase)
                saved = stack.enter_context(open_checkpoints(home, **(keeping or {})))
            ran = fit(step, state, fixed, batch_at, stops, checkpoints=saved, **options)
        best = combine(ran.best, resting(params, phase, end))
        end = end_phase(params, phase, end, ran.state, late)
        history += ran.history
        seconds, faults = seconds + ran.seconds, (*faults, *ran.faults)
    assert end is not None
    return Phased(end.params, best, end, history, seconds, faults)


def home_of(folder: str | os.PathLike[str], number: int, phase: Phase) -> pathlib.Path:
    """Return where a phase, counted from 0, keeps its checkpoints."""
    return pathlib.Path(folder) / f"{number + 1}-{file_name(phase.name)}"


def lp_ft(
    head: PyTree,
    everything: PyTree,
    *,
    probe: optax.GradientTransformation,
    probe_steps: int,
    tune: optax.GradientTransformation,
    tune_steps: int,
) -> list[Phase]:
    """Return linear probing and then fine-tuning from the probed head, with a new optimizer.

    Train the head until it has converged; then tune at a lower rate, with warmup.
    Source: Kumar et al. 2022, arXiv:2202.10054.

    Raises:
      ValueError: if the head would not move in the second phase, or nothing else would.

    >>> masks = {"trunk": False, "head": True}, {"trunk": True, "head": True}
    >>> sgd = optax.sgd(0.1)
    >>> phases = lp_ft(*masks, probe=sgd, probe_steps=9, tune=sgd, tune_steps=5)
    >>> [(phase.name, phase.num_steps, phase.reset_optimizer) for phase in phases]
    [('lp', 9, True), ('ft', 5, True)]
    """
    _check_grows([head, everything])
    return [
        Phase("lp", head, probe, probe_steps, True),
        Phase("ft", everything, tune, tune_steps, True),
    ]


def gradual(
    trainables: Sequence[PyTree], tx: optax.GradientTransformation, num_steps: int | Sequence[int]
) -> list[Phase]:
    """Return gradual unfreezing: one optimizer that goes on while leaves join (arXiv:1801.06146).

    Args:
      trainables: of `select.phases_of(params, select.unfreezing(params))`.
      tx: the optimizer of all phases; its schedule runs through all of them.
      num_steps: updates in each phase; one number or one for each.

    Raises:
      ValueError: if a phase adds no leaf or takes one away, or the numbers of steps do not fit.

    >>> masks = [{"a": False, "b": True}, {"a": True, "b": True}]
    >>> [(phase.name, phase.num_steps) for phase in gradual(masks, optax.sgd(0.1), 50)]
    [('unfreeze-1', 50), ('unfreeze-2', 50)]
    """
    _check_grows(trainables)
    steps = [num_steps] * len(trainables) if isinstance(num_steps, int) else list(num_steps)
    if len(steps) != len(trainables):
        raise ValueError(
            f"num_steps has {len(steps)} numbers for {len(trainables)} phases; give one number for "
            "all of them, or one for each"
        )
    return [
        Phase(f"unfreeze-{number}", trainable, tx, made)
        for number, (trainable, made) in enumerate(zip(trainables, steps, strict=True), 1)
    ]


def _check(params: PyTree, phases: Sequence[Phase], options: dict[str, Any]) -> None:
    if not phases:
        raise ValueError("the list of phases is empty: give at least one Phase")
    if "checkpoints" in options:
        raise ValueError("the states of phases differ: give folder= instead of checkpoints=")
    known = flatten(params).keys()
    for number, phase in enumerate(phases, 1):
        name = f"phase {number} ({phase.name!r})"
        masks = flatten(phase.trainable)
        if masks.keys() != known:
            odd = ", ".join(sorted(masks.keys() ^ known)[:3])
            raise ValueError(
                f"{name}: trainable and params differ at {odd}; make both from the same tree"
            )
        if not any(masks.values()):
            raise ValueError(f"{name} moves nothing: every leaf of its trainable tree is false")
        if phase.num_steps < 1:
            raise ValueError(f"{name} has num_steps {phase.num_steps}; it makes 1 update or more")
    for number, (before, phase) in enumerate(itertools.pairwise(phases), 2):
        if not phase.reset_optimizer:
            _check_form(params, before, phase, f"phase {number} ({phase.name!r})")


def _check_form(params: PyTree, before: Phase, phase: Phase, name: str) -> None:
    def form(phase: Phase) -> tuple[Collection[str], dict[str, Any]]:
        moving = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32),
            partition(params, phase.trainable)[0],
        )
        state = flatten(jax.eval_shape(phase.tx.init, moving))
        return flatten(moving), {where: (leaf.shape, leaf.dtype) for where, leaf in state.items()}

    (moved, old), (moving, new) = form(before), form(phase)
    for where, shape in new.items():
        if goes_on(where, moving, moved) and old.get(where) != shape:
            raise ValueError(
                f"{name} keeps the optimizer of {before.name!r}, but its tx has another form (its "
                f"state holds {where}, and that of {before.name!r} has no such array); build both "
                "from the same chain, or set reset_optimizer=True"
            )


def _check_grows(trainables: Sequence[PyTree]) -> None:
    moving = [{path for path, moves in flatten(tree).items() if moves} for tree in trainables]
    for number, (before, now) in enumerate(itertools.pairwise(moving), 2):
        if lost := sorted(before - now):
            raise ValueError(
                f"{', '.join(lost[:3])} moves in phase {number - 1} and no longer in phase "
                f"{number}; each phase must move all that the one before moved"
            )
        if now == before:
            raise ValueError(
                f"phase {number} unfreezes nothing that phase {number - 1} did not move; leave it "
                "out, or let it move more"
            )
