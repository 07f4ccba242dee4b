"""The step, its compilation, the loop, phases, sweeps and the checkpoint; of any model."""

from sftjax.train.allocator import keep_freed_memory
from sftjax.train.checkpoint import Checkpoints, Saved, open_checkpoints
from sftjax.train.devices import (
    apart,
    at_home,
    chosen_mesh,
    join_rows,
    laid_out,
    put_rows,
    replicate,
    settle,
    share_of,
    spread,
    use_mesh,
)
from sftjax.train.digest import digests
from sftjax.train.finite import Diagnose, OnNan, diagnosis, guard, not_finite
from sftjax.train.flops import memory_of, peak_flops, step_flops
from sftjax.train.grid import grid, name_of, parse_grid, stack_settings
from sftjax.train.interrupt import RESUME, Interrupted, stop_on_signals
from sftjax.train.layout import (
    abstract_batch,
    abstract_state,
    automatic,
    layout,
    pinned,
    place_state,
)
from sftjax.train.loop import Fit, fit
from sftjax.train.memory import StepMemory, kept_for_backward, step_memory
from sftjax.train.meshes import make_mesh, parse_mesh, row_shards
from sftjax.train.on_mesh import copies, first_copy, pmap_step
from sftjax.train.pace import STARVING
from sftjax.train.phase_start import Phase, PhaseEnd
from sftjax.train.phases import Phased, gradual, lp_ft, run_phases
from sftjax.train.prefix import Kept, keep_prefix, with_prefix
from sftjax.train.processes import join_processes, meet, on_host, patience, processes
from sftjax.train.reference import reference_columns, with_columns, with_reference
from sftjax.train.replay import Replayed, replay
from sftjax.train.replay_phases import replay_phases
from sftjax.train.roll_call import RollCall
from sftjax.train.run_home import changes_of, claim, identity_of
from sftjax.train.schedule import linear_schedule
from sftjax.train.step import Step, compile_step, init, make_step
from sftjax.train.sweep import (
    compile_sweep_step,
    make_sweep_step,
    place_runs,
    spread_runs,
    stack_states,
    sweep_memory,
    take_run,
)
from sftjax.train.sweep_loop import SweepFit, fit_sweep, tidy
from sftjax.train.together import agreed, all_agree, together
from sftjax.train.topology import on_topology
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
    "RollCall",
    "Saved",
    "Step",
    "StepMemory",
    "SweepFit",
    "abstract_batch",
    "abstract_state",
    "agreed",
    "all_agree",
    "apart",
    "at_home",
    "automatic",
    "changes_of",
    "chosen_mesh",
    "claim",
    "compile_step",
    "compile_sweep_step",
    "copies",
    "diagnosis",
    "digests",
    "first_copy",
    "fit",
    "fit_sweep",
    "gradual",
    "grid",
    "guard",
    "identity_of",
    "init",
    "join_processes",
    "join_rows",
    "keep_freed_memory",
    "keep_prefix",
    "kept_for_backward",
    "laid_out",
    "layout",
    "linear_schedule",
    "lp_ft",
    "make_mesh",
    "make_step",
    "make_sweep_step",
    "meet",
    "memory_of",
    "name_of",
    "not_finite",
    "on_host",
    "on_topology",
    "open_checkpoints",
    "parse_grid",
    "parse_mesh",
    "patience",
    "peak_flops",
    "pinned",
    "place_runs",
    "place_state",
    "pmap_step",
    "processes",
    "put_rows",
    "reference_columns",
    "replay",
    "replay_phases",
    "replicate",
    "row_shards",
    "run_phases",
    "settle",
    "share_of",
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
    "together",
    "use_mesh",
    "with_columns",
    "with_prefix",
    "with_reference",
]
