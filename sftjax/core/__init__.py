"""Pytrees only: paths, partition, and the few types that every other room passes around."""

from sftjax.core.loss import Aux, Loss
from sftjax.core.moments import clocks_of, owner_of
from sftjax.core.partition import combine, count, holes, nbytes, partition
from sftjax.core.paths import cover, flatten, map_with_path, matches, nearest, path_of, unflatten
from sftjax.core.state import Batch, Fixed, Metrics, Objective, PyTree, TrainState, View, step_key

__all__ = [
    "Aux",
    "Batch",
    "Fixed",
    "Loss",
    "Metrics",
    "Objective",
    "PyTree",
    "TrainState",
    "View",
    "clocks_of",
    "combine",
    "count",
    "cover",
    "flatten",
    "holes",
    "map_with_path",
    "matches",
    "nbytes",
    "nearest",
    "owner_of",
    "partition",
    "path_of",
    "step_key",
    "unflatten",
]
