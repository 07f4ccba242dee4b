"""Any objective on batches that were changed at random in the step."""

from collections.abc import Callable

import jax
from jax import Array

from sftjax.core import Batch, Objective, PyTree

_AUGMENT = 0x0A06


def augmented(objective: Objective, augment: Callable[[Array | None, Batch], Batch]) -> Objective:
    """Give an objective the augmented batch; without a key (in evaluation) nothing is random.

    Args:
      objective: any objective.
      augment: `(key, batch) -> batch`, such as `data.augmentation(...)`; `key=None` must ask for
        what is not random (normalization).

    >>> import jax.numpy as jnp
    >>> from sftjax.core import Aux, Loss
    >>> def objective(params, model_state, batch, key):
    ...     return Loss(batch["x"].sum(), 1.0), Aux({})
    >>> twice = augmented(objective, lambda key, batch: {"x": 2 * batch["x"]})
    >>> float(twice({}, {}, {"x": jnp.ones(3)}, None)[0].sum)
    6.0
    """

    def changed(params: PyTree, model_state: PyTree, batch: Batch, key: Array | None):
        # A key of its own: the objective draws (dropout) from `key` itself.
        own = None if key is None else jax.random.fold_in(key, _AUGMENT)
        return objective(params, model_state, augment(own, batch), key)

    return changed
