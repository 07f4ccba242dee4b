"""What a phase of a run starts from, and what it leaves to the next.

Weights go on always. A leaf may keep its moments, join a running optimizer late, or start anew.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sftjax.core import clocks_of, combine, flatten, holes, map_with_path, owner_of, partition
from sftjax.core.state import Fixed, PyTree, TrainState
from sftjax.train.step import init

SETTINGS = ("hyperparams", "mask")
"""Fields of an optimizer's state that hold what the caller set; a new phase's own are used."""


class Phase(NamedTuple):
    """A stretch of a run during which the same leaves move."""

    name: str
    trainable: PyTree
    """bool tree of the params' structure (`Selection.trainable`)."""
    tx: optax.GradientTransformation
    num_steps: int
    """Updates in this phase."""
    reset_optimizer: bool = False
    """Start moments, counters and schedules anew. If not, those of leaves that keep moving go on,
    and a schedule goes on too: it counts the updates since the last reset."""


class PhaseEnd(NamedTuple):
    """Where a phase ended: an ordinary tree, and enough to go on from."""

    phases: int
    """Phases done."""
    params: PyTree
    """All leaves, those that moved in any phase at their last values."""
    state: TrainState
    late: PyTree
    """int for each moving leaf: how old the optimizer was when the leaf began to move."""
    age: int
    """Updates since the optimizer was last reset."""


def join_late(
    tx: optax.GradientTransformation, late: PyTree
) -> optax.GradientTransformationExtraArgs:
    r"""Give leaves that joined a running optimizer a clock of their own for their moments.

    Adam divides its moments by $1 - \beta^t$, and optax keeps one t for all leaves. A leaf whose
    moments begin at zero when t is already large would step
    $(1 - \beta_1) / \sqrt{1 - \beta_2} = 3.2$ times too far at first and over 6 times some updates
    later. Here a leaf that joined at age a is updated with t - a. Only counters named `count` that
    stand beside moments are moved so; a schedule's counter keeps the run's time.

    Args:
      tx: the optimizer; each distinct age costs one more trace of it.
      late: an int for each moving leaf: how many updates `tx` had made when the leaf joined.

    Returns:
      A transform with the very state of `tx`.

    >>> tx = join_late(optax.adam(1.0), {"old": 0, "new": 1000})
    >>> g = {"old": jnp.ones(1), "new": jnp.ones(1)}
    >>> first, rest = tx.init(g)
    >>> updates, _ = tx.update(g, (first._replace(count=jnp.int32(1000)), rest))
    >>> round(float(updates["new"][0]), 3), round(float(updates["old"][0]), 3)
    (-1.0, -2.515)
    """
    inner = optax.with_extra_args_support(tx)
    late_of = flatten(late)
    ages = sorted(set(late_of.values()))
    if ages in ([], [0]):
        return inner

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        clocks = clocks_of(state, late_of)

        def at(state: optax.OptState, by: int) -> optax.OptState:
            return map_with_path(lambda where, n: n + by if where in clocks else n, state)

        made = [inner.update(updates, at(state, -age), params, **extra) for age in ages]

        def pick(path: str, *options: Array) -> Array:
            return options[ages.index(late_of.get(path, ages[0]))]

        moved = map_with_path(pick, *(moved for moved, _ in made))
        states = (at(after, age) for (_, after), age in zip(made, ages, strict=True))
        return moved, map_with_path(
            lambda where, *options: pick(owner_of(where, late_of), *options), *states
        )

    return optax.GradientTransformationExtraArgs(inner.init, update)


def begin_phase(
    params: PyTree, phase: Phase, key: Array, end: PhaseEnd | None, **options: Any
) -> tuple[TrainState, Fixed, PyTree]:
    """Return what a phase starts from, and when its leaves joined.

    Args:
      params: the run's first ones.
      phase: which one begins.
      key: the run's.
      end: of the phase before; None for the first.
      **options: of `init`; of `anchor` and `importance`, whole, the phase takes its own leaves.
    """
    for name in ("anchor", "importance"):
        options[name] = _moving(options.get(name), phase)
    now = params if end is None else end.params
    if end is not None:
        options["model_state"] = end.state.model_state
    state, fixed = init(now, phase.trainable, phase.tx, key, **options)
    if end is not None:
        state = state._replace(step=jnp.copy(end.state.step))
    if end is None or phase.reset_optimizer:
        return state, fixed, jax.tree.map(lambda _: 0, state.trainable)
    joined, moving = flatten(end.late), flatten(state.trainable)
    before = flatten(end.state.opt_state)

    def carry(where: str, leaf: Array) -> Array:
        # A copy: this state will be donated, the last one still belongs to the caller.
        return jnp.copy(before[where]) if goes_on(where, moving, joined) else leaf

    late = map_with_path(lambda path, _: joined.get(path, end.age), state.trainable)
    return state._replace(opt_state=map_with_path(carry, state.opt_state)), fixed, late


def end_phase(
    params: PyTree, phase: Phase, end: PhaseEnd | None, state: TrainState, late: PyTree
) -> PhaseEnd:
    """Return what a phase leaves behind.

    Args:
      params: the run's first ones.
      phase: which one ended.
      end: of the phase before.
      state: its last.
      late: as `begin_phase` gave it.
    """
    keeps = end is not None and not phase.reset_optimizer
    made = int(state.step) - (0 if end is None else int(end.state.step))
    return PhaseEnd(
        phases=1 + (0 if end is None else end.phases),
        params=combine(state.trainable, resting(params, phase, end)),
        state=state,
        late=late,
        age=made + (end.age if keeps and end is not None else 0),
    )


def resting(params: PyTree, phase: Phase, end: PhaseEnd | None) -> PyTree:
    """Return the leaves that stand still in a phase, in full precision: `fixed` may be rounded."""
    return partition(params if end is None else end.params, phase.trainable)[1]


def _moving(tree: PyTree | None, phase: Phase) -> PyTree | None:
    keep = lambda moves, leaf: leaf if moves else None  # noqa: E731
    return None if tree is None else jax.tree.map(keep, phase.trainable, tree, is_leaf=holes)


def goes_on(where: str, moving: Collection[str], moved: Collection[str]) -> bool:
    """Whether an array of the optimizer's state is taken over from the phase before."""
    owner = owner_of(where, moving)
    if owner and owner not in moved:
        return False
    return not any(name in SETTINGS for name in where.removesuffix(owner).split("/"))
