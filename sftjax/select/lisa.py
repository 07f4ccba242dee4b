"""LISA: at any time only a few blocks move, drawn at random and drawn again every so often.

Pan et al., *LISA: Layerwise Importance Sampling*, 2024, arXiv:2403.17919.

In one compiled step the gradients of all blocks are computed, and those of the inactive ones thrown
away: this gives the method's regularization, **not its savings in FLOPs or memory**. To have those,
run each draw as a phase of its own (`drawn` says which blocks, `train.run_phases` runs them), at
the price of a compilation for each set of blocks.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import PyTree, clocks_of, flatten, map_with_path, owner_of
from sftjax.select.blocks import stacks
from sftjax.select.part import Part, named

ALWAYS = -1
"""The block of leaves that always move: embeddings, head."""


class LisaState(NamedTuple):
    """What the draws and the clocks of the blocks depend on."""

    updates: Array
    """(), int32: updates made."""
    key: Array
    ages: Array
    """(blocks + 1,), int32: updates that each block's moments have seen; last, leaves always on."""
    inner: optax.OptState
    part: Part


def lisa(
    tx: optax.GradientTransformation,
    blocks: PyTree,
    *,
    active: int,
    every: int,
    key: Array,
    moments: Literal["keep", "reset"] = "keep",
) -> optax.GradientTransformationExtraArgs:
    """Let `tx` move `active` blocks, drawn again every `every` updates, and what always moves.

    The weights of an inactive block keep their bits, whatever decay or pull `tx` holds, and its
    gradient counts in no clipped norm. Each block has its own clock: Adam corrects the bias of a
    block's moments by the number of updates that *they* have seen, so a block that joins late does
    not start with steps several times too large. Schedules follow the run's clock.

    Args:
      tx: any optimizer.
      blocks: an int for each leaf (`block_ids`): 0, 1, ... or -1 where a leaf always moves.
      active: how many blocks move at a time; LISA uses 1 or 2.
      every: updates between draws; LISA uses 20.
      key: PRNG key; a draw is a function of it and of `updates // every` alone.
      moments: what a block finds when it is drawn: `"keep"` its moments as they were when it last
        moved, `"reset"` fresh ones, at every draw.

    Raises:
      ValueError: if a number is out of range, or a block has no leaf that moves (the latter from
        `init`).

    >>> params = {"layer": {"0": jnp.ones(1), "1": jnp.ones(1)}, "head": jnp.ones(1)}
    >>> blocks = {"layer": {"0": 0, "1": 1}, "head": -1}
    >>> tx = lisa(optax.sgd(0.5), blocks, active=1, every=20, key=jax.random.key(0))
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> float(updates["head"][0]), float(updates["layer"]["0"][0] + updates["layer"]["1"][0])
    (-0.5, -0.5)
    """
    block_of = {path: int(block) for path, block in flatten(blocks).items()}
    count = _check(block_of, active, every, moments)
    inner = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> LisaState:
        moving = flatten(params)
        if moving:  # optax asks with a placeholder for the params; then there is nothing to check
            _check_leaves(block_of, moving, count)
        return LisaState(
            jnp.zeros((), jnp.int32),
            jnp.copy(key),  # the state is donated, and the caller's key would go with it
            jnp.zeros(count + 1, jnp.int32),
            inner.init(params),
            _part(block_of, params, count, active, every),
        )

    def update(
        updates: PyTree, state: LisaState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, LisaState]:
        paths = flatten(updates)
        draw = state.updates // every
        on = jnp.append(drawn(state.key, draw, count, active), True)
        ages, before = state.ages, state.inner
        if moments == "reset":
            if params is None:
                raise ValueError(
                    "lisa needs the params to start moments anew: tx.update(g, state, params)"
                )
            fresh = flatten(inner.init(params))
            begins = (state.updates % every == 0) & (jnp.arange(count + 1) < count)
            ages = jnp.where(begins, 0, ages)
            before = _owned(
                lambda path, where, leaf: jnp.where(begins[block_of[path]], fresh[where], leaf),
                before,
                paths,
            )
        grads = map_with_path(lambda path, g: jnp.where(on[block_of[path]], g, 0), updates)
        # One call a clock. What a call computes for leaves of other blocks is thrown away, and
        # the compiler with it.
        clocks = clocks_of(before, paths)
        outcomes = {
            block: inner.update(grads, _set(before, clocks, ages[block]), params, **extra)
            for block in (sorted({block_of[path] for path in paths}) if clocks else [ALWAYS])
        }
        some = next(iter(outcomes))

        def pick(path: str) -> int:
            return block_of[path] if block_of[path] in outcomes else some

        moved = {block: flatten(outcome[0]) for block, outcome in outcomes.items()}
        after = {block: flatten(outcome[1]) for block, outcome in outcomes.items()}
        old = flatten(before)

        def settle(where: str, leaf: Array) -> Array:
            if where in clocks:
                return old[where]  # the ages say what time it is
            owner = owner_of(where, paths)
            if not owner:
                return leaf
            return jnp.where(on[block_of[owner]], after[pick(owner)][where], old[where])

        # -0.0 is what leaves every float as it is: adding 0.0 would turn a weight of -0.0 to 0.0.
        stepped = map_with_path(
            lambda path, _: jnp.where(on[block_of[path]], moved[pick(path)][path], -0.0).astype(
                moved[pick(path)][path].dtype
            ),
            updates,
        )
        following = LisaState(
            jnp.asarray(optax.safe_increment(state.updates)),
            state.key,
            ages + on.astype(jnp.int32),
            map_with_path(settle, outcomes[some][1]),
            state.part,
        )
        return stepped, following

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def drawn(key: Array, draw: ArrayLike, count: int, active: int) -> Array:
    """Return which of `count` blocks move in a draw: `active` of them, each equally likely.

    Args:
      key: PRNG key.
      draw: (), int: the number of the draw, `updates // every`.
      count: how many blocks there are.
      active: how many of them move.

    Returns:
      (count,), bool.

    >>> int(drawn(jax.random.key(0), 3, 12, 2).sum())
    2
    """
    order = jax.random.permutation(jax.random.fold_in(key, draw), count)
    return jnp.zeros(count, bool).at[order[:active]].set(True)


def block_ids(params: PyTree) -> PyTree:
    """Return the number of each leaf's block, counted through all stacks; -1 outside the blocks.

    >>> block_ids({"embed": 0, "layer": {"0": {"w": 0}, "1": {"w": 0}}, "head": 0})
    {'embed': -1, 'head': -1, 'layer': {'0': {'w': 0}, '1': {'w': 1}}}
    """
    every = [block for stack in stacks(params) for block in stack.blocks]

    def number(path: str, leaf: object) -> int:
        del leaf
        return next((i for i, block in enumerate(every) if path.startswith(f"{block}/")), ALWAYS)

    return map_with_path(number, params)


def _set(state: optax.OptState, clocks: set[str], age: Array) -> optax.OptState:
    return map_with_path(
        lambda where, leaf: age.astype(leaf.dtype) if where in clocks else leaf, state
    )


def _owned(
    function: Callable[[str, str, Array], Array], state: optax.OptState, paths: Any
) -> PyTree:
    """Map over the arrays of the state that belong to a leaf."""

    def change(where: str, leaf: Array) -> Array:
        owner = owner_of(where, paths)
        return function(owner, where, leaf) if owner else leaf

    return map_with_path(change, state)


def _part(block_of: dict[str, int], params: PyTree, count: int, active: int, every: int) -> Part:
    moving = flatten(params)

    def name(block: int) -> str:
        return named([path for path in moving if block_of[path] == block], params)

    first, last = name(0), name(count - 1)
    where = first if count == 1 else f"{first}, {last}" if count == 2 else f"{first} ... {last}"
    others = name(ALWAYS)
    return Part(
        f"LISA: {active} of {count} blocks ({where}), drawn anew every {every} updates"
        + (f"; {others}: at every update" if others else ""),
        {path: active / count for path in moving if block_of[path] != ALWAYS},
    )


def _check(block_of: dict[str, int], active: int, every: int, moments: str) -> int:
    count = max(block_of.values(), default=ALWAYS) + 1
    if count < 1:
        raise ValueError("blocks names no block: each leaf is -1, so that there is nothing to draw")
    if not 1 <= active <= count:
        raise ValueError(f"active is {active}; with {count} blocks it lies between 1 and {count}")
    if every < 1:
        raise ValueError(f"every is {every}; a draw lasts at least one update")
    if moments not in ("keep", "reset"):
        raise ValueError(f"moments is {moments!r}; it is 'keep' or 'reset'")
    return count


def _check_leaves(block_of: dict[str, int], moving: dict[str, Any], count: int) -> None:
    unknown = [path for path in moving if path not in block_of]
    if unknown:
        raise ValueError(
            f"blocks has no number for {', '.join(unknown[:3])}; make it from the same params "
            "(block_ids), with -1 for what always moves"
        )
    filled = {block_of[path] for path in moving}
    empty = [block for block in range(count) if block not in filled]
    if empty:
        raise ValueError(
            f"block {empty[0]} has no leaf that moves, and drawing it would waste the draw; number "
            f"only the blocks that are trainable, from 0 ({count} numbered, {len(empty)} empty)"
        )
