"""Pytrees only: paths, partition, and the few types that every other room passes around."""

from sftjax.core.loss import Aux, Loss
from sftjax.core.moments import clocks_of, owner_of
from sftjax.core.partition import combine, count, holes, nbytes, partition
from sftjax.core.paths import cover, flatten, map_with_path, matches, nearest, path_of, unflatten
from sftjax.core.placing import Rules, ShardingOf, by_rules, cut_largest, fitted, spec_of
from sftjax.core.quantized import Quantized, is_quantized
from sftjax.core.share import WHOLE, Share
from sftjax.core.state import Batch, Fixed, Metrics, Objective, PyTree, TrainState, View, step_key

__all__ = [
    "WHOLE",
    "Aux",
    "Batch",
    "Fixed",
    "Loss",
    "Metrics",
    "Objective",
    "PyTree",
    "Quantized",
    "Rules",
    "ShardingOf",
    "Share",
    "TrainState",
    "View",
    "by_rules",
    "clocks_of",
    "combine",
    "count",
    "cover",
    "cut_largest",
    "fitted",
    "flatten",
    "holes",
    "is_quantized",
    "map_with_path",
    "matches",
    "nbytes",
    "nearest",
    "owner_of",
    "partition",
    "path_of",
    "spec_of",
    "step_key",
    "unflatten",
]
