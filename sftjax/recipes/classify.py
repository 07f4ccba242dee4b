"""Fine-tune an encoder on labelled text: classes, labels, numbers, or a class a word.

sftjax classify --model FOLDER --data reviews.csv --train last:2 --dose 1 --output-dir runs/a
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.core import Objective
from sftjax.data import cache_folder
from sftjax.evaluate import (
    Interval,
    Retention,
    loss_curve,
    moved_per_block,
    reliability,
    softmax,
    table_markdown,
    write_predictions,
)
from sftjax.hub import Data, LoadReport, Metric, card_of, load, load_tokenizer, save
from sftjax.models import Head, Model
from sftjax.objectives import Apply, objective_of
from sftjax.recipes.above_prefix import Stream, above_prefix
from sftjax.recipes.finetune import finetune
from sftjax.recipes.keeping import Embedder, Reference, kept, reference_rows
from sftjax.recipes.plan import pretrained, told
from sftjax.recipes.run_folder import write_json, write_text
from sftjax.recipes.scoring import Scorer
from sftjax.recipes.text_parts import text_parts
from sftjax.recipes.text_rows import (
    PROBLEM_TYPES,
    Columns,
    Rows,
    encode_rows,
    labels_of,
    read_splits,
)
from sftjax.recipes.training import Training, Tuned
from sftjax.train import claim

if TYPE_CHECKING:
    from sftjax.recipes.sweep import Swept


@dataclasses.dataclass(frozen=True)
class Classify:
    """Fine-tune an encoder (BERT, RoBERTa, XLM-R, DistilBERT) on labelled text."""

    model: str
    """A local folder in the Hub's layout, or the name of a repository on the Hub."""
    data: str
    """A .csv, .tsv, .jsonl or .parquet file, a folder of train/validation/test files, or
    tfds:NAME."""
    output_dir: pathlib.Path
    """The run's folder: model, metrics, report, plots, checkpoints. The same command resumes it."""
    columns: Columns = dataclasses.field(default_factory=Columns)
    training: Training = dataclasses.field(default_factory=Training)
    reference: Reference = dataclasses.field(default_factory=Reference)
    keep_prefix: bool = False
    """Compute the frozen lower blocks once, keep what they give (in a file in the cache folder) and
    train on that; needs dropout off. Faster from the second epoch on."""
    eval_data: str | None = None
    """Where to evaluate; else the source's own validation or test split, else a held-out share."""
    validation_fraction: float = 0.1
    """Share of the training rows held out when there is nothing else to evaluate on."""
    per_device_eval_batch_size: int = 64
    """Rows per device in evaluation."""
    label_smoothing_factor: float = 0.0
    """Share of the target spread evenly over all classes."""
    balanced_classes: bool = False
    """Weigh classes by the inverse of how often they occur in the training rows."""
    sweep: str = ""
    """Many runs in one compiled step: `seeds=8,dose=0:4:5`; axes seeds, dose, strength,
    learning_rate, values a number, a list a|b|c or start:stop:count. No model is saved."""

    @property
    def eval_rows(self) -> int:
        """Rows in an evaluation batch."""
        return self.per_device_eval_batch_size * jax.device_count()


class Classified(NamedTuple):
    """What the recipe found."""

    metrics: dict[str, Interval | float]
    """On the evaluation rows, `eval_*`, with 95 % bootstrap intervals."""
    retention: Retention
    tuned: Tuned
    folder: pathlib.Path


def classify(job: Classify, tell: Callable[[str], None] = print) -> "Classified | Swept":
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    if job.sweep:
        from sftjax.recipes.sweep import sweep

        return sweep(job, tell)
    train_table, eval_table = read_splits(
        job.data,
        job.eval_data,
        job.columns,
        fraction=job.validation_fraction,
        seed=job.training.seed,
    )
    train_labels = labels_of(train_table, job.columns, job.columns.labels, least=2)
    eval_labels = labels_of(eval_table, job.columns, train_labels.names, least=1)
    problem_type = PROBLEM_TYPES[job.columns.task]
    kind = "token" if job.columns.task == "token" else "sequence"
    model, params, report = load(
        job.model,
        head=Head(kind, train_labels.names, problem_type),
        dtype=jnp.bfloat16 if job.training.bf16 else jnp.float32,
        key=jax.random.key(job.training.seed),
    )
    tell(str(report))
    columns = _fitting(job.columns, model)
    tokenizer = load_tokenizer(report.folder)
    cache = cache_folder() / "tokens"
    train = encode_rows(train_table, columns, tokenizer, train_labels, cache=cache)
    evaluation = encode_rows(eval_table, columns, tokenizer, eval_labels, cache=cache)
    reference = reference_rows(job.reference, evaluation, columns, tokenizer, cache)
    tell(_told(train, "training") + "\n" + _told(evaluation, "evaluation"))

    facts = _facts(job, columns, train, evaluation, report, tokenizer.sha256)
    if claim(job.output_dir, facts):
        tell(f"{job.output_dir} holds this very run: going on from its last checkpoint")
    run = jax.jit(lambda params, batch: model.apply(params, batch))
    scorer = Scorer(run, evaluation, job.columns.task, job.eval_rows)
    options: dict[str, Any] = {"dropout": job.training.dropout}
    if problem_type == "single_label_classification":
        options["label_smoothing"] = job.label_smoothing_factor
        if job.balanced_classes:
            options["class_weights"] = balanced_weights(train)

    def task(logits: Apply) -> Objective:
        return objective_of(kind, problem_type, logits, **options)

    batches = train.batches(job.training.rows, seed=job.training.seed, shuffle=True)
    parts, stream = text_parts(model, task), Stream(batches.steps_per_epoch, batches.at)
    if job.keep_prefix:
        parts, stream = above_prefix(
            model, params, report, task, train, stream, job.training, tokenizer.sha256, tell
        )
    tuned = finetune(
        params,
        report.new,
        parts,
        stream,
        job.training,
        evaluate=scorer.scores,
        checkpoint_folder=job.output_dir / "checkpoints",
        tell=tell,
    )
    outputs = scorer.outputs(tuned.params)
    found = scorer.intervals(outputs)
    anchor = pretrained(params, report.new)
    held = kept(job.reference, Embedder(model), reference, params, anchor, tuned.params)
    _write(job, model, report, train, evaluation, tuned, outputs, found, held)
    tell(table_markdown([{"metric": k, "value": v} for k, v in found.items()], ["metric", "value"]))
    tell(f"\n{held}\n")
    tell(f"model, report and plots: {job.output_dir}")
    return Classified(found, held, tuned, job.output_dir)


def balanced_weights(rows: Rows) -> np.ndarray:
    r"""Return $N / (K n_k)$ for each class, the weights that make classes count alike."""
    assert rows.labels is not None
    counts = np.bincount(np.asarray(rows.labels.values), minlength=len(rows.labels.names))
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def _fitting(columns: Columns, model: Model) -> Columns:
    """Keep `max_length` within what the model can read."""
    return dataclasses.replace(columns, max_length=min(columns.max_length, model.max_length))


def _told(rows: Rows, what: str) -> str:
    cut = rows.encoded.truncated
    lost = f"; {cut:,} longer rows cut, {rows.encoded.lost:,} tokens lost" if cut else ""
    middle, most = int(np.median(rows.encoded.lengths)), rows.encoded.lengths.max()
    return (
        f"{what}: {len(rows.encoded):,} rows of {rows.table.name}, "
        f"median {middle} and at most {most} tokens{lost}"
    )


def _facts(
    job: Classify,
    columns: Columns,
    train: Rows,
    evaluation: Rows,
    report: LoadReport,
    tokenizer: str,
) -> dict[str, Any]:
    """What identifies the run: another value of any of these is another run."""
    assert train.labels is not None
    settings = dataclasses.asdict(job)
    for name in ("output_dir", "model", "data", "eval_data", "columns", "training", "reference"):
        settings.pop(name)
    return {
        "recipe": "classify",
        "weights": report.sha256,
        "tokenizer": tokenizer,
        "train_rows": train.table.fingerprint,
        "eval_rows": evaluation.table.fingerprint,
        "classes": list(train.labels.names),
        "devices": jax.device_count(),
        **settings,
        **dataclasses.asdict(columns),
        **dataclasses.asdict(job.training),
    }


def _write(
    job: Classify,
    model: Model,
    report: LoadReport,
    train: Rows,
    evaluation: Rows,
    tuned: Tuned,
    outputs: Any,
    found: dict[str, Interval | float],
    held: Retention,
) -> None:
    folder = job.output_dir
    card = card_of(report)._replace(
        data=(
            Data(train.table.name, len(train.encoded), "train"),
            Data(evaluation.table.name, len(evaluation.encoded), "evaluation"),
        ),
        metrics=tuple(
            Metric(name.removeprefix("eval_"), value.value, value.low, value.high, "evaluation")
            for name, value in found.items()
            if isinstance(value, Interval)
        ),
        settings=dataclasses.asdict(job.training),
        **_training_facts(tuned, job.training),
    )
    save(folder / "model", model, tuned.params, report=report, card=card)
    loss_curve(tuned.fit.history, folder / "plots" / "loss.png")
    moved_per_block({"fine-tuned": held.moved}, folder / "plots" / "moved.png")
    if job.columns.task != "token":
        assert evaluation.labels is not None
        write_predictions(
            folder / "predictions.csv",
            [int(row) for row in np.asarray(evaluation.table.rows)] or range(1, len(outputs) + 1),
            outputs,
            evaluation.labels.values,
            evaluation.labels.names,
            problem_type=PROBLEM_TYPES[job.columns.task],
        )
    if job.columns.task == "single-label":
        assert evaluation.labels is not None
        reliability(
            softmax(outputs), evaluation.labels.values, folder / "plots" / "reliability.png"
        )
    write_json(
        folder / "metrics.json",
        {
            **found,
            "best_step": tuned.fit.best_step,
            "num_steps": tuned.num_steps,
            "strength": tuned.strength,
            "history": tuned.fit.history,
            "moved": held.moved,
            "retention": held.rows(),
        },
    )
    write_text(folder / "report.md", _report(job, tuned, found, held))


def _training_facts(tuned: Tuned, training: Training) -> dict[str, str]:
    rows = [row for row in tuned.description.rows if row.rate > 0]
    frozen = sum(row.parameters for row in tuned.description.rows if row.rate == 0)
    moving = ", ".join(f"{row.rule} ({row.parameters:,} parameters)" for row in rows)
    held = sum(row.anchored for row in tuned.description.rows)
    return {
        "trained": moving,
        "frozen": f"{frozen:,} parameters" if frozen else "",
        "anchored": told(training, tuned.strength, held),
    }


def _report(
    job: Classify, tuned: Tuned, found: dict[str, Interval | float], held: Retention
) -> str:
    rows = [{"metric": name, "value": value} for name, value in found.items()]
    return (
        "\n\n".join(
            [
                f"# {pathlib.Path(job.model).name} on {pathlib.Path(job.data).name}",
                f"{tuned.num_steps} updates, the best at {tuned.fit.best_step} by "
                f"{job.training.metric_for_best_model}; "
                f"{tuned.fit.seconds:.0f} s in training steps.",
                "## Evaluation\n\nWith 95 % bootstrap intervals over rows.",
                table_markdown(rows, ["metric", "value"]),
                "![reliability](plots/reliability.png)"
                if job.columns.task == "single-label"
                else "",
                "## What moved",
                f"```\n{tuned.description}\n```",
                "## What was kept",
                f"```\n{held}\n```",
                "![moved](plots/moved.png)",
                "## Training",
                "![loss](plots/loss.png)",
            ]
        ).replace("\n\n\n\n", "\n\n")
        + "\n"
    )
