"""Who moves the running statistics of batch norms in a run: nobody, the batches, or a last pass.

`models.statistics` has the three policies. Here they meet a run: statistics that adapt travel in
the step's model state, a hole in the params where they were.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array

from sftjax.anchor import recalibrate
from sftjax.core import Batch, Objective, PyTree, combine, holes
from sftjax.data import Batches
from sftjax.models import Policy, statistics_of, statistics_policy, take_statistics
from sftjax.objectives import Apply
from sftjax.recipes.streams import Stream

ENOUGH = 200
"""Batches after which statistics measured anew are near enough to those of all rows."""


class Norms(NamedTuple):
    """The batch norms of a model, and what is asked for them."""

    word: str
    """frozen, adapt or recalibrate: of the modules whose scale and bias move."""
    apply_moving: Callable[[PyTree, PyTree, Batch, Array | None], tuple[Array, PyTree]]
    """`(params, statistics, batch, key) -> (logits, statistics)`, as `ImageModel.apply_moving`."""


def policy_of(norms: Norms | None, params: PyTree, trainable: PyTree) -> Policy | None:
    """Decide for each running statistic of a run; None of a model without any."""
    if norms is None or not statistics_of(params):
        return None
    return statistics_policy(params, trainable, norms.word)


def following(
    objective: Callable[[Apply], Objective], norms: Norms | None, policy: Policy | None
) -> Callable[[Apply], Objective]:
    """Return the task's objective with batch norms in train mode, where the policy says adapt.

    It takes whole params (see `filled`); the function of logits that it is given is then the
    model's own, and the batch norms' way of running it is used in its place.
    """
    if norms is None or policy is None or not policy.adapt:
        return objective
    own, adapt = norms, policy.adapt

    def of(apply: Apply) -> Objective:
        del apply

        def moving(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
            seen: list[PyTree] = []

            def logits(params: PyTree, batch: Batch, key: Array | None) -> Array:
                rest, statistics = take_statistics(params, adapt)
                outputs, moved = own.apply_moving(rest, statistics, batch, key)
                seen.append(moved)
                return outputs

            loss, aux = objective(logits)(params, state, batch, key)
            return loss, aux._replace(model_state=seen[-1])

        return moving

    return of


def filled(objective: Objective) -> Objective:
    """Give an objective whole params: with the statistics that the step holds apart.

    So a term beside the loss (distillation, smoothing) sees the running statistics as they are.
    """

    def whole(params: PyTree, state: PyTree, batch: Batch, key: Array | None):
        loss, aux = objective(combine(params, state), state, batch, key)
        if aux.model_state is None:
            return loss, aux
        moved = jax.tree.map(
            lambda old, new: old if new is None else new, state, aux.model_state, is_leaf=holes
        )
        return loss, aux._replace(model_state=moved)

    return whole


def measured_anew(
    norms: Norms | None, policy: Policy | None, params: PyTree, stream: Stream | Batches
) -> PyTree:
    """Return the params with the statistics of the policy's `recalibrate` measured on the rows."""
    if norms is None or policy is None or not policy.recalibrate:
        return params
    apply_moving = norms.apply_moving
    rest, statistics = take_statistics(params, policy.recalibrate)
    # On one device: copies on several would each run every batch, many of them in flight at once,
    # which jax's CPU client with several devices on few cores does not survive (it deadlocks).
    rest, statistics = jax.device_get((rest, statistics))
    batches = (stream.at(step) for step in range(min(stream.steps_per_epoch, ENOUGH)))
    return combine(
        rest,
        recalibrate(lambda p, s, b: apply_moving(p, s, b, None)[1], rest, statistics, batches),
    )
