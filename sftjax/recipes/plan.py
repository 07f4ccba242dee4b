"""`sftjax plan`: what a run takes in memory, by kind, before any weight is loaded.

sftjax plan --model smollm2-135m-instruct --adapter lora:r=16 --batch 8 --length 1024 --memory 16GiB
sftjax plan --model FOLDER --mesh fsdp=8 --topology v5e:2x4   # for TPUs that are not here
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sftjax.core import (
    Batch,
    Fixed,
    Objective,
    TrainState,
    count,
    partition,
    platform,
)
from sftjax.hub import outline
from sftjax.models import TENSOR_RULES, CausalModel, Head, Model, Seq2SeqModel, TextEncoder
from sftjax.objectives import Apply, objective_of, sequence_to_sequence, slice_of
from sftjax.recipes.average import averaging
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.chat_parts import chat_parts, check_head, not_on_the_head
from sftjax.recipes.deciding import decide
from sftjax.recipes.finetune import begin
from sftjax.recipes.methods import METHODS, Parts, parse
from sftjax.recipes.named_models import folder_of
from sftjax.recipes.plan_table import (
    device_memory,
    no_room,
    parse_bytes,
    plan_table,
    told_bytes,
)
from sftjax.recipes.prepare import quantized
from sftjax.recipes.progress import say
from sftjax.recipes.seq2seq_parts import seq2seq_parts
from sftjax.recipes.stepping import compiled
from sftjax.recipes.text_parts import text_parts
from sftjax.recipes.training import Training
from sftjax.recipes.worn import Worn, wear
from sftjax.train import (
    Step,
    StepMemory,
    abstract_state,
    laid_out,
    on_topology,
    step_memory,
    use_mesh,
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Print what a run takes in memory, by kind, and whether it fits; no weight is loaded."""

    model: str
    """A folder with a config.json, a GGUF file, a name on the Hub (owner/model), or asset:NAME."""
    training: Training = dataclasses.field(
        default_factory=lambda: Training(per_device_train_batch_size=4)
    )
    """As in the run's own command."""
    length: int = 1024
    """Tokens in a row."""
    target_length: int = 128
    """Tokens in a target, of an encoder-decoder."""
    labels: int = 2
    """Number of classes of an encoder's head."""
    remat: str = "none"
    """What of a decoder the backward pass computes again to save memory: none, dots (all but
    products of matrices), full (all but what enters each block)."""
    base_kl: float = 0.0
    """As in `sftjax chat`: another forward pass, without the adapter."""
    memory: str = ""
    """What the device has, as in 16GiB; else what it says itself."""
    topology: str = ""
    """Plan for a TPU slice that is not here, as v5e:1x1, v5e:2x4 or v5p:2x2x1, with the TPU's own
    compiler (the package libtpu); --mesh is over its chips, all of them along data if it is not
    given."""


class Planned(NamedTuple):
    """A run in shapes."""

    memory: StepMemory
    logits: int
    """Bytes of the logits that are held at once."""
    state: TrainState
    """Shapes."""
    fixed: Fixed
    batch: Batch
    step: Step
    """Compiled for these shapes."""
    fits: bool | None
    """None where nothing says how much memory there is."""


def plan(job: Plan, tell: Callable[[str], None] = say) -> Planned:
    """Trace and compile a run's update from the shapes of everything, and say what it takes.

    Raises:
      ValueError: for settings that do not go together, as the run itself would say.
    """
    if not job.topology:
        return _plan(job, use_mesh(job.training.mesh), tell)
    with on_topology(job.topology) as chips:
        tell(
            f"compiling for {len(chips)} x {chips[0].device_kind}, which are not here; many layers "
            "take minutes"
        )
        try:
            return _plan(job, use_mesh(job.training.mesh or "data=-1"), tell)
        finally:
            use_mesh("")


def _plan(job: Plan, mesh: Mesh | None, tell: Callable[[str], None]) -> Planned:
    training = job.training
    if training.phases:
        raise ValueError(
            f"--phases {' '.join(training.phases)}: plan takes one phase at a time; leave --phases "
            "out, and give --train the rules of the phase that trains most"
        )
    if METHODS[parse(training.anchor)[0]].holds_out:
        raise ValueError(
            f"--anchor {training.anchor} learns from held-out rows after the last update, and plan "
            "reads no rows; plan with --anchor none, whose updates are the same"
        )
    room = (parse_bytes(job.memory), "--memory") if job.memory else device_memory()
    where = folder_of(job.model)
    model, params, new = _outline(where, job)
    adapters = training.adapter
    if isinstance(model, CausalModel):
        adapters = not_on_the_head(adapters, model)
    worn = wear(adapters, params, new, quantize=training.quantize)
    parts, batch, logits, note = _task(job, model, worn)
    steps = training.max_steps or 1000  # decides numbers in the program, and no size
    decision = decide(
        worn.params, worn.new, worn.parts(parts), training, training.rules(), steps, held=worn.held
    )
    if decision.note:
        tell(decision.note)
    moving, anchor = partition(worn.params, decision.selection.trainable)[0], decision.anchor
    fresh = [path for path in worn.new if path not in worn.held]
    method = averaging(decision.method, training.average, steps, moving, fresh)
    if method.importance is not None and method.weigh is None:
        raise ValueError(
            f"--anchor {training.anchor} moves scalars that only the data decide, and plan reads "
            "none; plan with --anchor none, and expect the run to take no less"
        )
    state, fixed = jax.eval_shape(
        lambda params, anchor: begin(params, decision.selection, method, training, anchor),
        worn.params,
        anchor,
    )
    if method.importance is not None:
        wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), anchor)
        fixed = fixed._replace(importance=wide)
    if mesh is None:
        state, fixed = laid_out((state, fixed))
    else:
        state, fixed = abstract_state(state, fixed, mesh, TENSOR_RULES)
    batch = laid_out(batch, "data")
    accumulate = training.gradient_accumulation_steps
    step = compiled(method, method.tx, accumulate)
    distils = training.anchor.partition(":")[0] in ("features", "logits")
    seen = parts.objective(worn.parts(parts).logits) if distils else method.objective
    try:
        memory = step_memory(
            step, seen, state, fixed, batch, accumulate=accumulate, view=method.view
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(no_room(str(error))) from error
    trained, size = count(moving), training.per_device_train_batch_size
    tell(
        f"{job.model}: a {model.family} of {count(params):,} parameters; trained: {trained:,}; "
        f"rows of {job.length:,} tokens on a device at a time: {size}"
        + (f", {accumulate} times an update" if accumulate > 1 else "")
    )
    notes = {
        "gradients": f"float32, of {trained:,} parameters",
        "activations": f"kept for the backward pass, as traced; remat {job.remat}",
        "logits": note,
    }
    tell(plan_table(memory, notes, logits, room))
    if job.remat != "none" and platform() == "cpu":
        tell(
            "XLA on CPU saves no memory by remat unless XLA_FLAGS has "
            "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
        )
    fits = None if room is None else memory.total <= room[0]
    return Planned(memory, logits, state, fixed, batch, step, fits)


def _outline(where: str, job: Plan):
    """Return the model, its params in shapes, and what is new in them."""
    how: dict[str, Any] = {
        "dtype": jnp.bfloat16 if job.training.bf16 else jnp.float32,
        "quantize": quantized(job.training),
    }
    found = outline(where, **how)
    model = found.model
    if isinstance(model, TextEncoder):
        labels = tuple(f"LABEL_{index}" for index in range(job.labels))
        problem = "single_label_classification" if job.labels > 1 else "regression"
        found = outline(where, head=Head("sequence", labels, problem), **how)
    elif isinstance(model, CausalModel) and model.head.kind != "causal-lm":
        found = outline(where, head="causal-lm", **how)
    elif not isinstance(model, (CausalModel, Seq2SeqModel)):
        raise ValueError(f"{job.model} is a {model.family}; plan knows models of text")
    if not isinstance(model, CausalModel) and (job.remat != "none" or job.base_kl):
        raise ValueError(
            f"--remat and --base-kl are options of decoders, and {job.model} is a {model.family}; "
            "leave them out"
        )
    if isinstance(found.model, CausalModel):
        found = found._replace(model=dataclasses.replace(found.model, remat=job.remat))
    return found


def _task(job: Plan, model: Model, worn: Worn) -> tuple[Parts, Batch, int, str]:
    """Return the parts of the task's recipe, a batch in shapes, and the bytes of its logits."""
    training, length = job.training, job.length
    rows = training.rows
    once = training.per_device_train_batch_size  # rows that a device holds at a time

    def of(*shape: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    tokens = {"input_ids": of(length), "attention_mask": of(length)}
    valid = {"valid": of(dtype="float32")}
    if isinstance(model, CausalModel):
        check_head(worn)
        chat = TuneChat(pathlib.Path(), training=training, base_kl=job.base_kl, remat=job.remat)
        if job.base_kl and worn.plan is None:
            raise ValueError(
                f"--base-kl {job.base_kl:g} compares with the weights without their adapter, and "
                "there is none; give one (--adapter lora:r=16), or leave --base-kl out"
            )
        vocab = model.architecture.vocab_size
        slice_ = min(slice_of(once * length), vocab)
        whole = told_bytes(4 * once * length * vocab)
        return (
            chat_parts(chat, model, worn),
            tokens
            | {"segment_ids": of(length), "position_ids": of(length)}
            | {"loss_weights": of(length, dtype="float32")}
            | valid,
            4 * once * length * slice_,
            f"of {slice_:,} words at a time; all {vocab:,} would be {whole}",
        )
    if isinstance(model, Seq2SeqModel):
        target = job.target_length
        chosen = seq2seq_parts(
            model, lambda logits: sequence_to_sequence(logits, dropout=training.dropout)
        )
        names = ("decoder_input_ids", "decoder_attention_mask", "labels")
        batch = tokens | {name: of(target) for name in names}
        batch |= {"loss_weights": of(target, dtype="float32"), "index": of()} | valid
        size = 4 * once * target * model.architecture.vocab_size
        return chosen, batch, size, "among the activations"
    assert isinstance(model, TextEncoder)
    kind, problem = model.head.kind, model.head.problem_type

    def objective(logits: Apply) -> Objective:
        return objective_of(kind, problem, logits, dropout=training.dropout)

    labels = of(dtype="int32" if job.labels > 1 else "float32")
    batch = tokens | {"labels": labels, "index": of()} | valid
    return text_parts(model, objective), batch, 4 * once * job.labels, "among the activations"
