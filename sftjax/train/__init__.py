"""The step, its compilation, the loop, phases, sweeps and the checkpoint; of any model."""

from sftjax.train.allocator import keep_freed_memory
from sftjax.train.checkpoint import Checkpoints, Saved, open_checkpoints
from sftjax.train.devices import laid_out, replicate, spread
from sftjax.train.digest import digests
from sftjax.train.finite import Diagnose, OnNan, diagnosis, guard, not_finite
from sftjax.train.flops import peak_flops, step_flops
from sftjax.train.grid import grid, name_of, parse_grid, stack_settings
from sftjax.train.interrupt import RESUME, Interrupted, stop_on_signals
from sftjax.train.loop import Fit, fit
from sftjax.train.memory import StepMemory, kept_for_backward, step_memory
from sftjax.train.pace import STARVING
from sftjax.train.phases import Phase, Phased, PhaseEnd, gradual, lp_ft, run_phases
from sftjax.train.prefix import Kept, keep_prefix, with_prefix
from sftjax.train.reference import reference_columns, with_columns, with_reference
from sftjax.train.replay import Replayed, replay
from sftjax.train.run_home import changes_of, claim, identity_of
from sftjax.train.schedule import linear_schedule
from sftjax.train.step import Step, compile_step, init, make_step
from sftjax.train.sweep import (
    compile_sweep_step,
    make_sweep_step,
    spread_runs,
    stack_states,
    sweep_memory,
    take_run,
)
from sftjax.train.sweep_loop import SweepFit, fit_sweep, tidy
from sftjax.train.window import Event, Record

__all__ = [
    "RESUME",
    "STARVING",
    "Checkpoints",
    "Diagnose",
    "Event",
    "Fit",
    "Interrupted",
    "Kept",
    "OnNan",
    "Phase",
    "PhaseEnd",
    "Phased",
    "Record",
    "Replayed",
    "Saved",
    "Step",
    "StepMemory",
    "SweepFit",
    "changes_of",
    "claim",
    "compile_step",
    "compile_sweep_step",
    "diagnosis",
    "digests",
    "fit",
    "fit_sweep",
    "gradual",
    "grid",
    "guard",
    "identity_of",
    "init",
    "keep_freed_memory",
    "keep_prefix",
    "kept_for_backward",
    "laid_out",
    "linear_schedule",
    "lp_ft",
    "make_step",
    "make_sweep_step",
    "name_of",
    "not_finite",
    "open_checkpoints",
    "parse_grid",
    "peak_flops",
    "reference_columns",
    "replay",
    "replicate",
    "run_phases",
    "spread",
    "spread_runs",
    "stack_settings",
    "stack_states",
    "step_flops",
    "step_memory",
    "stop_on_signals",
    "sweep_memory",
    "take_run",
    "tidy",
    "with_columns",
    "with_prefix",
    "with_reference",
]
