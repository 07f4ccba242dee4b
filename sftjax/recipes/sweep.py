"""Many fine-tuning runs in one compiled step: seeds x doses (or strengths) x learning rates.

sftjax classify ... --sweep "seeds=8,dose=0:4:5"
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.core import Batch, PyTree, combine, flatten, partition
from sftjax.data import cache_folder
from sftjax.evaluate import Undefined, linear_cka, predict, standard
from sftjax.hub import load, load_tokenizer
from sftjax.models import Head, split
from sftjax.objectives import Apply, objective_of
from sftjax.recipes.above_prefix import Stream, above_prefix, cut_of
from sftjax.recipes.methods import METHODS, parse
from sftjax.recipes.plan import Plan, plan_of
from sftjax.recipes.scoring import Run, Scorer
from sftjax.recipes.sweep_fit import fit_runs
from sftjax.recipes.sweep_report import write_sweep
from sftjax.recipes.text_parts import model_with, text_parts
from sftjax.recipes.text_rows import PROBLEM_TYPES, Rows, encode_rows, labels_of, read_splits
from sftjax.recipes.training import Training
from sftjax.train import (
    SweepFit,
    claim,
    name_of,
    parse_grid,
    replicate,
    spread,
    take_run,
)

if TYPE_CHECKING:
    from sftjax.recipes.classify import Classify

AXES = ("dose", "strength", "learning_rate")
SWEPT = ("none", "l2-sp")
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
    runs = parse_grid(text, known=AXES)
    name, own = parse(training.anchor)
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
    if training.early_stopping_patience:
        raise ValueError("runs of a sweep end together; leave --early-stopping-patience out")
    return runs


def training_of_run(training: Training, run: dict[str, float]) -> Training:
    """Return how one run of a sweep trains, as if it were run alone.

    >>> training_of_run(Training(), {"dose": 4.0, "seed": 2}).dose
    4.0
    """
    return dataclasses.replace(training, **{**run, "seed": int(run["seed"])})  # type: ignore[arg-type]


def sweep(job: "Classify", tell: Callable[[str], None] = print) -> Swept:
    """Train and evaluate every run of `job.sweep` and write the folder; no model is saved.

    The runs share the frozen trunk and the batches (the order of rows is that of `--seed`); each
    run's seed draws its new head and dropout.

    Raises:
      ValueError: for bad input, before anything is compiled.
    """
    training = job.training
    runs = runs_of(job.sweep, training)
    if job.reference.reference_data or job.reference.reference_group:
        raise ValueError("a sweep measures drift on the evaluation rows; leave --reference-* out")
    train, evaluation, (model, params, report), tokenizer = _read(job, tell)
    new = tuple(report.new)
    problem_type = PROBLEM_TYPES[job.columns.task]
    options: dict[str, Any] = {"dropout": training.dropout}
    if problem_type == "single_label_classification":
        from sftjax.recipes.classify import balanced_weights

        options["label_smoothing"] = job.label_smoothing_factor
        if job.balanced_classes:
            options["class_weights"] = balanced_weights(train)

    def task(logits: Apply) -> Any:
        return objective_of(model.head.kind, problem_type, logits, **options)

    batches = train.batches(training.rows, seed=training.seed, shuffle=True)
    parts, stream = text_parts(model, task), Stream(batches.steps_per_epoch, batches.at)
    num_steps = training.num_steps(stream.steps_per_epoch)
    plans = [
        plan_of(params, new, parts, training_of_run(training, r), training.rules(), num_steps)
        for r in runs
    ]
    _check(job, runs, params, new, plans[0], evaluation)
    claim(job.output_dir, _facts(job, report, tokenizer, train, evaluation))

    passes = evaluation.batches(job.eval_rows)
    shown = Stream(passes.steps_per_epoch, passes.at)
    cut = None if training.dropout else cut_of(model, params, new, [training.rules()])
    embedder = model_with(model, "mean")
    upper, embed = model.apply, embedder.apply
    if cut is not None:
        given = (training, tokenizer, tell)
        parts, stream = above_prefix(model, params, report, task, train, stream, *given)
        _, shown = above_prefix(model, params, report, task, evaluation, shown, *given)
        upper, embed = split(model, cut).upper, split(embedder, cut).upper

    fitted = fit_runs(job, runs, plans, parts, params, new, model, stream, num_steps, tell)
    frozen = replicate(partition(params, plans[0].selection.trainable)[1])
    scorer = KeptScorer(
        jax.jit(lambda p, batch: upper(p, batch, None)),
        evaluation, job.columns.task, job.eval_rows, shown,
    )  # fmt: skip
    embed_once = jax.jit(lambda p, batch: embed(p, batch, None))

    def features(tree: PyTree) -> np.ndarray:
        return predict(embed_once, tree, one_pass(shown), len(evaluation.encoded))

    before, rows = features(params), []
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
            row |= scorer.scores(now)
            row |= {"moved": _distance(params, own, new), "cka": _cka(before, features(now))}
        else:
            tell(f"run {name_of(run)} failed: not finite at update {failed}; the others stand")
        rows.append({**row, "failed_at": failed})
    whole = next((row for row in rows if row["failed_at"] is None), None)
    if whole is None:
        raise FloatingPointError("every run of the sweep ended not finite; lower the learning rate")
    rows = [{**dict.fromkeys(whole, math.nan), **row} for row in rows]
    write_sweep(job, rows, fitted, num_steps, cut, tell)
    return Swept(rows, fitted, job.output_dir)


class KeptScorer(Scorer):
    """A scorer whose batches may hold what a kept prefix gives."""

    def __init__(self, run: Run, rows: Rows, task: str, batch_size: int, stream: Stream):
        """Take the stream of the rows' batches beside what a `Scorer` takes."""
        super().__init__(run, rows, task, batch_size)
        self._batches = stream


def one_pass(stream: Stream) -> Iterable[Batch]:
    """Return the batches of one pass, dealt out over the devices."""
    at = spread(stream.at)
    return (at(step) for step in range(stream.steps_per_epoch))


def _read(job: "Classify", tell: Callable[[str], None]) -> tuple[Rows, Rows, Any, str]:
    seed, task = job.training.seed, job.columns.task
    tables = read_splits(
        job.data, job.eval_data, job.columns, fraction=job.validation_fraction, seed=seed
    )
    labels = labels_of(tables[0], job.columns, job.columns.labels, least=2)
    eval_labels = labels_of(tables[1], job.columns, labels.names, least=1)
    loaded = load(
        job.model,
        head=Head("token" if task == "token" else "sequence", labels.names, PROBLEM_TYPES[task]),
        dtype=jnp.bfloat16 if job.training.bf16 else jnp.float32,
        key=jax.random.key(seed),
    )
    tell(str(loaded.report))
    longest = min(job.columns.max_length, loaded.model.max_length)
    columns = dataclasses.replace(job.columns, max_length=longest)
    tokenizer, cache = load_tokenizer(loaded.report.folder), cache_folder() / "tokens"
    train, evaluation = (
        encode_rows(table, columns, tokenizer, own, cache=cache)
        for table, own in zip(tables, (labels, eval_labels), strict=True)
    )
    tell(f"{len(train.encoded):,} training rows, {len(evaluation.encoded):,} evaluation rows")
    return train, evaluation, loaded, tokenizer.sha256


def _check(
    job: "Classify", runs: list[Any], params: PyTree, new: tuple[str, ...], plan: Plan, rows: Rows
) -> None:
    training = job.training
    moves = flatten(plan.selection.trainable)
    if len({run["seed"] for run in runs}) > 1:
        if not new and not training.dropout:
            raise ValueError(
                "seeds would give equal runs: the head is not new, dropout is off, and the order "
                "of rows is shared; sweep no seeds, or use --dropout"
            )
        if still := [path for path in new if not moves[path]]:
            raise ValueError(
                f"{still[0]} is new and frozen, and runs of a sweep share what is frozen, so seeds "
                "could not draw it; train it too (--train head) or sweep no seeds"
            )
    assert rows.labels is not None
    token = job.columns.task == "token"
    problem = "token_classification" if token else PROBLEM_TYPES[job.columns.task]
    known = ["eval_loss", *(f"eval_{name}" for name in standard(problem, rows.labels.names))]
    if training.metric_for_best_model not in known:
        raise ValueError(
            f"--metric-for-best-model {training.metric_for_best_model} is not measured; there are: "
            f"{', '.join(known)}"
        )


def _facts(job: "Classify", report: Any, tokenizer: str, train: Rows, rows: Rows) -> dict[str, Any]:
    settings = dataclasses.asdict(job)
    for name in ("output_dir", "model", "data", "eval_data", "reference"):
        settings.pop(name)
    return {
        "recipe": "classify --sweep",
        "weights": report.sha256,
        "tokenizer": tokenizer,
        "train_rows": train.table.fingerprint,
        "eval_rows": rows.table.fingerprint,
        "devices": jax.device_count(),
        **settings,
    }


def _distance(params: PyTree, own: PyTree, new: tuple[str, ...]) -> float:
    start = flatten(params)
    squares = (
        float(np.square(np.asarray(leaf, np.float64) - np.asarray(start[path])).sum())
        for path, leaf in flatten(own).items()
        if path not in new
    )
    return math.sqrt(sum(squares))


def _cka(before: np.ndarray, after: np.ndarray) -> float:
    try:
        return linear_cka(before, after)
    except Undefined:
        return math.nan
