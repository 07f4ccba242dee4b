"""The step, its compilation, the loop and the checkpoint; of any model and any objective."""

from sftjax.train.allocator import keep_freed_memory
from sftjax.train.checkpoint import Checkpoints, Saved, claim, open_checkpoints
from sftjax.train.devices import replicate, spread
from sftjax.train.loop import Fit, Record, fit
from sftjax.train.schedule import linear_schedule
from sftjax.train.step import Step, compile_step, init, make_step

__all__ = [
    "Checkpoints",
    "Fit",
    "Record",
    "Saved",
    "Step",
    "claim",
    "compile_step",
    "fit",
    "init",
    "keep_freed_memory",
    "linear_schedule",
    "make_step",
    "open_checkpoints",
    "replicate",
    "spread",
]
