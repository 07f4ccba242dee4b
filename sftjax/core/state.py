"""What moves, what does not, and the contract between a model, an objective and a step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import Array

from sftjax.core.loss import Aux, Loss
from sftjax.core.paths import PyTree

Batch = Mapping[str, Any]
"""Named arrays that share their first axis, the rows."""

Metrics = dict[str, Array]
"""Named float32 scalars."""

Objective = Callable[[PyTree, PyTree, Batch, Array | None], tuple[Loss, Aux]]
"""`(params, model_state, batch, key) -> (Loss, Aux)`; `key=None` asks for no randomness."""


class TrainState(NamedTuple):
    """What moves: donated to the step, checkpointed, vmapped over in a sweep."""

    step: Array
    """(), int32: updates done so far; also the position in the data."""
    trainable: PyTree
    """The params, with a hole wherever a leaf is frozen."""
    opt_state: PyTree
    """The optimizer's state, of the trainable leaves only."""
    model_state: PyTree
    """Statistics that are allowed to move (batch_stats); `{}` for most models."""
    key: Array
    """The run's PRNG key; never advanced, a step folds its number in."""


class Fixed(NamedTuple):
    """What does not move: an argument of the step, never a closure, never donated."""

    frozen: PyTree
    """The params, with a hole wherever a leaf is trainable; may be bf16 or sharded."""
    model_state: PyTree
    """Statistics that are held still."""
    anchor: PyTree | None = None
    """A copy of the pretrained values of the anchored trainable leaves, holes elsewhere."""
    importance: PyTree | None = None
    """Fisher weights of the anchor's structure."""


View = Callable[[PyTree, Fixed, Array], PyTree]
"""`(trainable, fixed, key) -> trainable`: what the model sees in place of the trainable leaves."""


def step_key(state: TrainState) -> Array:
    """Return the key of the step about to be taken, a pure function of the run's key and the step.

    >>> state = TrainState(jax.numpy.int32(3), {}, (), {}, jax.random.key(0))
    >>> bool(step_key(state) == jax.random.fold_in(jax.random.key(0), 3))
    True
    """
    return jax.random.fold_in(state.key, state.step)
