"""What a labelled run needs before it trains: rows, a model, an objective, and its identity."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.adapters import parse_adapter
from sftjax.core import PyTree
from sftjax.data import Table, cache_folder, hold_out
from sftjax.hub import LoadReport, load_tokenizer
from sftjax.models import Head, ImageModel, TextEncoder
from sftjax.objectives import objective_of
from sftjax.recipes.keeping import Reference, reference_rows
from sftjax.recipes.methods import METHODS, Parts, parse
from sftjax.recipes.streams import Batched
from sftjax.recipes.text_models import load_encoder
from sftjax.recipes.text_parts import text_parts
from sftjax.recipes.text_rows import (
    PROBLEM_TYPES,
    Columns,
    Rows,
    Task,
    encode_rows,
    labels_of,
    read_splits,
)
from sftjax.recipes.training import Training


@dataclasses.dataclass(frozen=True)
class Classify:
    """Fine-tune an encoder (BERT, RoBERTa, XLM-R, DistilBERT) on labelled text."""

    command: ClassVar[str] = "classify"

    model: str
    """A folder of a model, a name on the Hub (owner/model), or asset:NAME (asset:minilm-l6)."""
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
    """Rows to evaluate on, a source as for --data; else the source's own validation or test split,
    else a held-out share."""
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
    learning_rate, importance_weight (of ewc), values a number, a list a|b|c or start:stop:count. Of
    the anchors none, l2-sp and ewc can be swept. No model is saved."""


class Prepared(NamedTuple):
    """A job, read and tokenised or decoded; nothing is compiled yet."""

    model: TextEncoder | ImageModel
    params: PyTree
    report: LoadReport
    tokenizer: str
    """Hash of the tokenizer; empty where pictures are read."""
    train: Batched
    held_out: Batched | None
    """A share of the training rows that is not trained on, if the method learns from such."""
    evaluation: Batched
    reference: Batched
    parts: Callable[..., Parts]
    """`(cut=, held_out=) ->` what methods need of the model (see `text_parts`)."""
    task: Task
    facts: dict[str, Any]
    """What identifies the run: another value of any of these is another run."""
    group: str | None = None
    """Column of the reference rows that says which belong together."""
    redrawn: bool = False
    """Whether inputs change at random in the step, so that no prefix of theirs can be kept."""
    scorer: Callable[..., Any] | None = None
    """What measures, where it is no `scoring.Scorer` of the task; takes and gives the same."""

    @property
    def new(self) -> tuple[str, ...]:
        """Paths of the leaves without a pretrained value."""
        return tuple(self.report.new)


def prepare(job: Classify, tell: Callable[[str], None]) -> Prepared:
    """Read the rows, load the model and tokenise.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    seed, task = job.training.seed, job.columns.task
    fraction = job.validation_fraction
    tables = read_splits(job.data, job.eval_data, job.columns, fraction=fraction, seed=seed)
    tables, held_table = (tables[0], tables[1]), None
    if METHODS[parse(job.training.anchor)[0]].holds_out:
        held_from = without_held(tables[0], job.columns, fraction, seed)
        tables, held_table = (held_from[0], tables[1]), held_from[1]
    labels = labels_of(tables[0], job.columns, job.columns.labels, least=2)
    kind, problem_type = "token" if task == "token" else "sequence", PROBLEM_TYPES[task]
    model, params, report = load_encoder(
        job.model,
        head=Head(kind, labels.names, problem_type),
        dtype=jnp.bfloat16 if job.training.bf16 else jnp.float32,
        quantize=quantized(job.training),
        key=jax.random.key(seed),
    )
    tell(str(report))
    columns = fitting(job.columns, model)
    tokenizer, cache = load_tokenizer(report.folder), cache_folder() / "tokens"

    def encoded(table: Table, what: str) -> Rows:
        own = labels if table is tables[0] else labels_of(table, columns, labels.names, least=1)
        rows = encode_rows(table, columns, tokenizer, own, cache=cache)
        tell(_told(rows, what))
        return rows

    train, evaluation = encoded(tables[0], "training"), encoded(tables[1], "evaluation")
    held_out = None if held_table is None else encoded(held_table, "held out to learn radii from")
    options: dict[str, Any] = {"dropout": job.training.dropout}
    if problem_type == "single_label_classification":
        options["label_smoothing"] = job.label_smoothing_factor
        if job.balanced_classes:
            options["class_weights"] = balanced_weights(train)
    return Prepared(
        model,
        params,
        report,
        tokenizer.sha256,
        train,
        held_out,
        evaluation,
        reference_rows(job.reference, evaluation, columns, tokenizer, cache),
        functools.partial(
            text_parts, model, lambda logits: objective_of(kind, problem_type, logits, **options)
        ),
        task,
        _facts(job, columns, train, evaluation, report, tokenizer.sha256),
        job.reference.reference_group,
    )


def quantized(training: Training) -> str | None:
    """Return how the base is kept as it is loaded; what a PiSSA takes off it needs it whole first.

    Raises:
      ValueError: if weights that are to be trained would be quantized.
    """
    if training.quantize and not training.adapter:
        raise ValueError(
            f"--quantize {training.quantize} keeps weights that do not move in few bits; train an "
            "adapter beside them (--adapter lora:r=8)"
        )
    if not all(parse_adapter(word)[0].starts_at_base for word in training.adapter):
        return None
    return training.quantize or None


def without_held(table: Table, columns: Columns, fraction: float, seed: int) -> tuple[Table, Table]:
    """Return the rows to train on and those held out for a method that learns from such."""
    stratify = columns.label if columns.task == "single-label" else None
    return hold_out(table, fraction, seed + 1, stratify=stratify)


def fitting(columns: Columns, model: TextEncoder) -> Columns:
    """Keep `max_length` within what the model can read."""
    return dataclasses.replace(columns, max_length=min(columns.max_length, model.max_length))


def balanced_weights(rows: Rows) -> np.ndarray:
    r"""Return $N / (K n_k)$ for each class, the weights that make classes count alike."""
    assert rows.labels is not None
    counts = np.bincount(np.asarray(rows.labels.values), minlength=len(rows.labels.names))
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


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
        "devices": job.training.row_devices,
        **settings,
        **dataclasses.asdict(columns),
        **job.training.facts(),
    }
