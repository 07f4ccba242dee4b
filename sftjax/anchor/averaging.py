r"""Averages of the weights along a run, kept in the optimizer's state.

Both transforms pass the updates through as they are and stand last in the chain, after
`scale_by_learning_rate`, where `params + updates` is what the weights are about to be. `averaged`
takes the average out again for an evaluation. A model with running statistics needs them measured
anew for averaged weights (`soups.recalibrate`).
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import PyTree, flatten, map_with_path, matches, nearest


class AverageState(NamedTuple):
    """An average of the trainable leaves and how many updates it has seen; arrays only."""

    updates: ArrayLike
    """(), int32."""
    average: PyTree
    """The trainable leaves' structure and dtypes."""


def ema_of_weights(
    decay: float = 0.999, *, new: Collection[str] = ()
) -> optax.GradientTransformationExtraArgs:
    r"""Keep an exponential moving average that starts at the pretrained weights.

    $$ \bar w_0 = w_0, \qquad \bar w_t = d\,\bar w_{t-1} + (1 - d)\,w_t $$

    It is an implicit anchor: after $T$ updates the weight on $w_0$ is $d^T$. There is no bias
    correction, on purpose: dividing by $1 - d^T$ would be right for an average started at zero.
    A leaf without a pretrained value keeps no weight on its random start: it begins as the plain
    mean of its iterates, $\bar w_t = \bar w_{t-1} + \max(1 - d, 1/t)\,(w_t - \bar w_{t-1})$.

    Args:
      decay: $d$, from 0 to below 1.
      new: patterns of leaves without a pretrained value. Where the run has an anchor, its holes are
        such leaves too and need not be named.

    Returns:
      A transform whose `update` takes the extra argument `anchor`.

    Raises:
      ValueError: if the decay is outside 0 to 1; in `init`, if a pattern matches nothing.

    >>> tx = ema_of_weights(0.9)
    >>> w = {"a": jnp.zeros(1)}
    >>> _, state = tx.update({"a": jnp.ones(1)}, tx.init(w), w)
    >>> averaged(state, w)["a"].round(6).tolist()
    [0.10000000149011612]
    """
    if isinstance(decay, int | float) and not 0.0 <= decay < 1.0:
        raise ValueError(f"decay is {decay}; it is a number from 0 to below 1")

    def init(params: PyTree) -> AverageState:
        paths = list(flatten(params))
        for pattern in new:
            if not any(matches(pattern, path) for path in paths):
                raise ValueError(
                    f"new pattern {pattern!r} matches no trainable leaf; "
                    f"nearest: {nearest(pattern, paths)}"
                )
        return _start(params)

    def update(
        updates: PyTree,
        state: AverageState,
        params: PyTree | None = None,
        *,
        anchor: PyTree | None = None,
        **others: object,
    ) -> tuple[PyTree, AverageState]:
        del others
        following, count = _count("ema_of_weights", state, params)
        held = None if anchor is None else set(flatten(anchor))
        steady = 1.0 - decay
        fresh = jnp.maximum(steady, 1.0 / count)

        def step(path: str, average: Array, value: Array, change: Array) -> Array:
            free = any(matches(p, path) for p in new) or (held is not None and path not in held)
            return _toward(average, value + change, fresh if free else steady)

        average = map_with_path(step, state.average, params, updates)
        return updates, AverageState(following, average)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def swa(start: int, every: int = 1) -> optax.GradientTransformationExtraArgs:
    r"""Keep the plain mean of the weights from some update on: stochastic weight averaging.

    $$ \bar w = \frac{1}{n} \sum_{i=0}^{n-1} w_{s + i c} $$

    with $w_t$ the weights after $t$ updates. Until the first of them, the average is the weights
    as they are. The random start of a new leaf is never in it.

    Args:
      start: $s \ge 1$, the update after which the weights are first taken.
      every: $c \ge 1$, the updates from one to the next (one epoch, or one cycle of the rate).

    Raises:
      ValueError: if either is below 1.

    References:
      Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*, 2018,
      arXiv:1803.05407

    >>> tx = swa(start=1)
    >>> w, state = {"a": jnp.zeros(1)}, tx.init({"a": jnp.zeros(1)})
    >>> for change in (1.0, 2.0):
    ...     updates, state = tx.update({"a": jnp.array([change])}, state, w)
    ...     w = optax.apply_updates(w, updates)
    >>> averaged(state, w)["a"].tolist()  # of 1 and 3
    [2.0]
    """
    if start < 1 or every < 1:
        raise ValueError(
            f"start is {start} and every is {every}; both count updates and are at least 1"
        )

    def update(
        updates: PyTree,
        state: AverageState,
        params: PyTree | None = None,
        **others: object,
    ) -> tuple[PyTree, AverageState]:
        del others
        following, count = _count("swa", state, params)
        since = count - start
        taken = 1.0 / (jnp.maximum(since, 0) // every + 1)
        share = jnp.where(since < 0, 1.0, jnp.where(since % every == 0, taken, 0.0))
        average = jax.tree.map(
            lambda average, value, change: _toward(average, value + change, share),
            state.average,
            params,
            updates,
        )
        return updates, AverageState(following, average)

    return optax.GradientTransformationExtraArgs(_start, update)  # type: ignore[arg-type]


def averaged(opt_state: PyTree, trainable: PyTree) -> PyTree:
    """Return the averaged weights that an optimizer's state holds, wherever it holds them.

    Args:
      opt_state: the state of a chain with one `ema_of_weights` or `swa` in it, however nested.
      trainable: the weights now; a leaf that the average does not cover (`optax.masked`) is
        taken from here.

    Returns:
      A tree like `trainable`, for `combine(..., fixed.frozen)` and an evaluation. Its arrays are
      those of the state: read them before a step that donates it, or copy them.

    Raises:
      ValueError: if the state holds no average, or several.

    >>> tx = optax.chain(optax.sgd(0.1), swa(start=1))
    >>> w = {"a": jnp.ones(1)}
    >>> averaged(tx.init(w), w)
    {'a': Array([1.], dtype=float32)}
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_average)
    found = [node for node in nodes if _is_average(node)]
    if len(found) != 1:
        raise ValueError(
            f"the optimizer's state holds {len(found)} averages of the weights, and one is wanted; "
            "put one ema_of_weights or swa last in the chain"
        )

    def pick(value: Array, average: Any) -> Array:
        return value if isinstance(average, optax.MaskedNode) else average.astype(value.dtype)

    return jax.tree.map(pick, trainable, found[0].average)


def _is_average(node: object) -> bool:
    return isinstance(node, AverageState)


def _start(params: PyTree) -> AverageState:
    # Copies: the weights and the state that holds their average are both donated to the step.
    return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))


def _count(name: str, state: AverageState, params: PyTree | None) -> tuple[ArrayLike, Array]:
    """Return the number of this update, counted from 1, as it is kept and as an array."""
    if params is None:
        raise ValueError(f"{name} needs the params: tx.update(updates, state, params)")
    following = optax.safe_increment(state.updates)
    return following, jnp.asarray(following)


def _toward(average: Array, value: Array, share: ArrayLike) -> Array:
    """Move the average by a share of the way; exact for shares of 0 and 1, and when it is there."""
    mixed = average + jnp.asarray(share, average.dtype) * (value - average)
    return jnp.where(jnp.asarray(share) == 1.0, value, mixed)
