"""Many fine-tuning runs in one compiled step: seeds x doses (or strengths) x learning rates.

sftjax classify ... --sweep "seeds=8,dose=0:4:5"
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from sftjax.core import combine, flatten, partition
from sftjax.evaluate import Retention
from sftjax.recipes.above_prefix import NO_PREFIX, above_prefix, cut_of, touched_by
from sftjax.recipes.deciding import Decision, decide
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.keeping import Keeper
from sftjax.recipes.methods import METHODS, STRONG, parse
from sftjax.recipes.prepare import Classify, Prepared
from sftjax.recipes.progress import say
from sftjax.recipes.report_to import check
from sftjax.recipes.scoring import Scorer, check_metric
from sftjax.recipes.streams import in_order, shuffled
from sftjax.recipes.sweep_fit import fit_runs
from sftjax.recipes.sweep_report import write_sweep
from sftjax.recipes.training import Training
from sftjax.recipes.worn import Worn, told_of, wear
from sftjax.train import SweepFit, claim, name_of, parse_grid, replicate, take_run

Job = Classify | TuneImages

SWEPT = ("none", *STRONG)
"""The anchors whose runs differ in numbers alone."""


class Swept(NamedTuple):
    """What a sweep found."""

    rows: list[dict[str, Any]]
    """One a run: its setting, then its results; NaN where a run failed."""
    fit: SweepFit
    folder: pathlib.Path


def runs_of(text: str, training: Training) -> list[dict[str, float]]:
    """Read the runs of `--sweep`.

    Raises:
      ValueError: if the grid cannot be read, or the rest of the run cannot be swept.

    >>> runs_of("dose=0|4", Training())
    [{'dose': 0.0, 'seed': 0}, {'dose': 4.0, 'seed': 0}]
    """
    runs = parse_grid(text)
    name, own = parse(training.anchor)
    if training.optim != "adamw":
        raise ValueError(f"--sweep runs AdamW; leave --optim {training.optim} out")
    if training.mesh:
        raise ValueError("--sweep deals its runs out over all devices; leave --mesh out")
    if training.phases:
        raise ValueError("--sweep runs one phase; leave --phases out, or train without --sweep")
    if name not in SWEPT:
        others = ", ".join(other for other in METHODS if other not in SWEPT)
        raise ValueError(
            f"--sweep varies the numbers of {' and '.join(SWEPT)}; --anchor {name} cannot be swept "
            f"(nor can the others of {others}). `sftjax compare` runs those one after another"
        )
    pulls = [axis for axis in ("dose", "strength") if axis in runs[0]]
    if pulls and name == "none":
        raise ValueError(f"--anchor none has no {pulls[0]} to sweep; use --anchor l2-sp")
    if pulls and own is not None:
        raise ValueError(
            f"--anchor {training.anchor} gives a dose and --sweep varies the {pulls[0]}; write "
            f"--anchor {name}"
        )
    if "dose" in pulls and training.strength is not None:
        raise ValueError("--strength and a sweep of the dose exclude each other; leave one out")
    if "importance_weight" in runs[0] and name != "ewc":
        raise ValueError(
            f"--sweep varies the importance weight, and --anchor {name} has none; use --anchor ewc"
        )
    if training.average:
        raise ValueError(
            "a sweep measures the weights of the last update; leave --average out, or compare "
            "averages by `sftjax compare`"
        )
    if training.adapter and training.coupled:
        raise ValueError(
            "--coupled adds the distance of the adapter's product to the loss, which runs of a "
            "sweep share; leave --coupled out, or compare strengths by `sftjax compare`"
        )
    if training.early_stopping_patience:
        raise ValueError("runs of a sweep end together; leave --early-stopping-patience out")
    return runs


def training_of_run(training: Training, run: dict[str, float]) -> Training:
    """Return how one run of a sweep trains, as if it were run alone.

    >>> training_of_run(Training(), {"dose": 4.0, "seed": 2}).dose
    4.0
    """
    return dataclasses.replace(training, **{**run, "seed": int(run["seed"])})


def sweep(job: Job, ready: Prepared, tell: Callable[[str], None] = say) -> Swept:
    """Train and evaluate every run of `job.sweep` and write the folder; no model is saved.

    The runs share the frozen trunk and the batches (the order of rows is that of `--seed`); each
    run's seed draws its new head and dropout.

    Args:
      job: what to do.
      ready: the job, read.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, before anything is compiled.
    """
    training = job.training
    runs = runs_of(job.sweep, training)
    model, params, new = ready.model, ready.params, ready.new
    stream = shuffled(ready.train, training.rows, training.seed)
    key = jax.random.key(training.seed)
    worn = wear(training.adapter, params, new, key, quantize=training.quantize)
    for text in told_of(worn, params):
        tell(text)
    parts = worn.parts(ready.parts())
    num_steps = training.num_steps(stream.steps_per_epoch)
    prefix = NO_PREFIX
    still = not training.dropout and not ready.redrawn
    if still and cut_of(model, touched_by(params, new, [training])):
        prefix = above_prefix(model, worn.base, ready.report, training, ready.tokenizer, tell)
        parts = worn.parts(ready.parts(cut=prefix.cut))
    plans = [
        decide(
            worn.params, worn.new, parts, training_of_run(training, r), training.rules(), num_steps,
            held=worn.held,
        )
        for r in runs
    ]  # fmt: skip
    _check(job, ready, runs, worn, plans[0])
    for note in dict.fromkeys(plan.note for plan in plans if plan.note):
        tell(note)
    check(training.report_to)
    claim(job.output_dir, ready.facts)

    stream = prefix.above(ready.train, stream)
    fitted = fit_runs(job, runs, plans, parts, worn, ready, stream, num_steps, tell)
    frozen = replicate(partition(worn.params, plans[0].selection.trainable)[1])
    once = in_order(ready.evaluation, job.per_device_eval_batch_size)
    scorer = Scorer(
        jax.jit(lambda p, batch: parts.logits(p, batch, None)),
        ready.evaluation,
        ready.task,
        prefix.above(ready.evaluation, once),
    )
    keeper = Keeper(
        model, params, new, ready.reference,
        group=ready.group,
        stream=prefix.above(ready.reference, in_order(ready.reference)),
        cut=prefix.cut,
    )  # fmt: skip
    rows = []
    for number, (run, plan) in enumerate(zip(runs, plans, strict=True)):
        own = jax.device_get(take_run(fitted.states.trainable, number))
        row: dict[str, Any] = {"anchor": parse(training.anchor)[0], **run}
        row.setdefault("strength", plan.method.strength)
        row["train_loss"] = float(fitted.history[-1]["loss"][number])
        failed = fitted.failed.get(name_of(run))
        if failed is None and not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(own)):
            failed = num_steps - 1
        if failed is None:
            now = combine(own, frozen)
            # The intervals here are over seeds, not over rows.
            row |= scorer.scores(now) | kept_columns(keeper.kept(now, worn=worn, resamples=2))
        else:
            tell(f"run {name_of(run)} failed: not finite at update {failed}; the others stand")
        rows.append({**row, "failed_at": failed})
    whole = next((row for row in rows if row["failed_at"] is None), None)
    if whole is None:
        raise FloatingPointError(
            "every run of the sweep ended with a loss or weights that are not finite; lower the "
            "learning rate (--learning-rate, or the values of learning_rate in --sweep)"
        )
    rows = [{**dict.fromkeys(whole, math.nan), **row} for row in rows]
    write_sweep(job, rows, fitted, num_steps, prefix.cut, tell)
    return Swept(rows, fitted, job.output_dir)


def kept_columns(kept: Retention) -> dict[str, float]:
    """Return what a run kept as columns of its row: distances, drift, and every labelled task.

    >>> from sftjax.evaluate import retention
    >>> columns = kept_columns(retention({"w": np.ones(2)}, {"w": np.array([1.0, 2.0])}))
    >>> columns["moved"], columns["moved w"]
    (1.0, 1.0)
    """
    columns: dict[str, float] = {}
    for block in (kept.whole, *kept.moved):
        of = "" if block is kept.whole else f" {block.block}"
        if block.scalars:  # a block that is all new has no distance
            columns[f"moved{of}"] = block.distance
            columns[f"relative{of}"] = block.relative
            columns[f"spectral{of}"] = block.spectral
    if kept.features is not None:
        columns["cka"] = kept.features.value
    if kept.outputs is not None:
        columns["kl"] = kept.outputs.value
    for task in kept.tasks:
        columns[f"kept {task.task}"] = task.after
        columns[f"forgotten {task.task}"] = task.forgotten.value
    return columns


def _check(job: Job, ready: Prepared, runs: list[Any], worn: Worn, plan: Decision) -> None:
    training, rows = job.training, ready.evaluation
    if plan.policy is not None and plan.policy.adapt + plan.policy.recalibrate:
        raise ValueError(
            "runs of a sweep share the statistics of batch norms; use --statistics frozen"
        )
    moves = flatten(plan.selection.trainable)
    if len({run["seed"] for run in runs}) > 1:
        if not worn.new and not training.dropout:
            raise ValueError(
                "seeds would give equal runs: the head is not new, dropout is off, and the order "
                "of rows is shared; sweep no seeds, or use --dropout"
            )
        if still := [path for path in worn.new if not moves[path]]:
            raise ValueError(
                f"{still[0]} is new and frozen, and runs of a sweep share what is frozen, so seeds "
                "could not draw it; train it too (--train head) or sweep no seeds"
            )
    assert rows.labels is not None
    check_metric(training.metric_for_best_model, ready.task, rows.labels.names)
