"""Paths, partition, the few types that every other room passes around; and care with files."""

from sftjax.core.file_name import file_name
from sftjax.core.gathered import gathered
from sftjax.core.loss import Aux, Loss
from sftjax.core.moments import clocks_of, owner_of
from sftjax.core.npz_file import npz_names, read_npz
from sftjax.core.partition import combine, count, holes, nbytes, partition
from sftjax.core.paths import cover, flatten, map_with_path, matches, nearest, path_of, unflatten
from sftjax.core.placing import Rules, ShardingOf, by_rules, cut_largest, fitted, spec_of
from sftjax.core.quantized import Quantized, is_quantized
from sftjax.core.redact import redact
from sftjax.core.share import WHOLE, Share
from sftjax.core.state import Batch, Fixed, Metrics, Objective, PyTree, TrainState, View, step_key
from sftjax.core.target import compiling_for, platform, target_devices
from sftjax.core.zip_members import zip_members

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
    "compiling_for",
    "count",
    "cover",
    "cut_largest",
    "file_name",
    "fitted",
    "flatten",
    "gathered",
    "holes",
    "is_quantized",
    "map_with_path",
    "matches",
    "nbytes",
    "nearest",
    "npz_names",
    "owner_of",
    "partition",
    "path_of",
    "platform",
    "read_npz",
    "redact",
    "spec_of",
    "step_key",
    "target_devices",
    "unflatten",
    "zip_members",
]
