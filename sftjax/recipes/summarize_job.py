"""What a summarization run is told, and what it needs before it trains."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from sftjax.core import PyTree
from sftjax.data import Table, hold_out
from sftjax.evaluate.generate_settings import GenerationSettings, read_settings
from sftjax.hub import LoadReport, Tokenizer, load_tokenizer
from sftjax.models import Seq2SeqModel
from sftjax.recipes.abilities import read_prompts
from sftjax.recipes.methods import METHODS, parse
from sftjax.recipes.prepare import quantized
from sftjax.recipes.summary_rows import (
    LoadedWriter,
    SummaryColumns,
    SummaryRows,
    encode_summaries,
    load_writer,
    read_summaries,
)
from sftjax.recipes.training import Training


@dataclasses.dataclass(frozen=True)
class Summarize:
    """Fine-tune an encoder-decoder (T5, mT5, BART, mBART, PEGASUS, Marian) to summarize."""

    command: ClassVar[str] = "summarize"

    model: str
    """A folder of a model, a name on the Hub (owner/model), or asset:NAME
    (asset:flan-t5-titles)."""
    data: str
    """A .csv, .tsv, .jsonl or .parquet file, a folder of train/validation/test files, tfds:NAME
    (as tfds:cnn_dailymail), asset:debian-synopses or asset:radiology-reports."""
    output_dir: pathlib.Path
    """The run's folder: model, metrics, report, plots, checkpoints. The same command resumes it."""
    columns: SummaryColumns = dataclasses.field(default_factory=SummaryColumns)
    training: Training = dataclasses.field(
        default_factory=lambda: Training(per_device_train_batch_size=16, learning_rate=5e-4)
    )
    packing: bool = False
    """Put several pairs into each row, told apart by segment; a batch has fewer, longer rows."""
    keep_prefix: bool = False
    """Compute what the encoder gives once, keep it (in a file in the cache folder) and train on
    that; needs an encoder that stands still (as with --train decoder/block/7 lm_head)."""
    eval_data: str | None = None
    """Rows to evaluate on, a source as for --data; else the source's own validation or test split,
    else a held-out share."""
    validation_fraction: float = 0.1
    """Share of the training rows held out when there is nothing else to evaluate on."""
    eval_rows: int = 256
    """At most so many of the first rows for the loss at each evaluation; 0 is all."""
    eval_written: int = 64
    """At most so many of them are summarized at each evaluation for ROUGE."""
    test_rows: int = 512
    """At most so many rows for the numbers before and after; 0 is all."""
    num_beams: int = 1
    """Beams when writing summaries; 1 takes the likeliest token each time."""
    samples: int = 3
    """How many documents are shown with their summaries at each evaluation."""
    example: tuple[str, ...] = ()
    """Documents of your own to show instead."""
    prompts: str | None = None
    """A file with a column `prompt` of what the model could answer before, to measure what it
    keeps; else translations and titles."""
    label_smoothing_factor: float = 0.0
    """Share of the target spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting; 0
    is off, 1e-4 is usual."""
    teacher: str | None = None
    """A (larger) encoder-decoder with the same vocabulary; what it expects is learned too."""
    teacher_share: float = 0.5
    """Share of the loss that is the teacher's; the rest is the labels'."""
    teacher_temperature: float = 2.0
    """Above 1 the teacher's second choices count for more."""


class Ready(NamedTuple):
    """A job, read and tokenised; nothing is compiled yet."""

    model: Seq2SeqModel
    params: PyTree
    report: LoadReport
    tokenizer: Tokenizer
    settings: GenerationSettings
    train: SummaryRows
    held_out: SummaryRows | None
    evaluation: SummaryRows
    test: SummaryRows
    samples: SummaryRows | None
    prompts: Table
    teacher: LoadedWriter | None
    facts: dict[str, Any]
    """What identifies the run: another value of any of these is another run."""


def get_ready(job: Summarize, tell: Callable[[str], None]) -> Ready:
    """Read the rows, load the model and tokenise.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    _packages()
    training, columns, seed = job.training, job.columns, job.training.seed
    anchor = parse(training.anchor)[0]
    if anchor in ("r3f", "smart"):
        raise ValueError(
            f"anchor {anchor!r} disturbs the embeddings of one sequence, and an encoder-decoder "
            "has two; use another anchor"
        )
    if job.keep_prefix and (training.dropout or job.packing):
        other = "--dropout draws anew" if training.dropout else "--packing mixes rows anew"
        raise ValueError(f"--keep-prefix computes the encoder once, and {other}; leave one out")
    train, evaluation, test = read_summaries(
        job.data, job.eval_data, columns, fraction=job.validation_fraction, seed=seed
    )
    held = None
    if METHODS[anchor].holds_out:
        train, held = hold_out(train, job.validation_fraction, seed + 1, group=columns.group)
    prompts = read_prompts(job.prompts)
    model, params, report = load_writer(
        job.model,
        dtype=jnp.bfloat16 if training.bf16 else jnp.float32,
        quantize=quantized(training),
        key=jax.random.key(seed),
    )
    tell(str(report))
    tokenizer = load_tokenizer(report.folder)
    teacher = None if job.teacher is None else _teacher(job.teacher, model)
    settings = read_settings(
        report.folder, max_new_tokens=columns.max_target_length, num_beams=job.num_beams
    )
    if not settings.eos_token_id:
        raise ValueError(
            f"{report.folder} names no eos_token_id, so no summary would end; add the field to "
            "generation_config.json or config.json"
        )

    def encoded(table: Table, what: str, most: int = 0) -> SummaryRows:
        if most and most < len(table):
            table = table.take(range(most))
        rows = encode_summaries(table, columns, model, tokenizer)
        tell(f"{what}: {len(rows.pairs):,} rows of {table.name}; {rows.pairs.told()}")
        return rows

    rows = encoded(train, "training"), encoded(evaluation, "evaluation", job.eval_rows)
    final = rows[1] if test is evaluation and job.test_rows == job.eval_rows else None
    final = final or encoded(test, "before and after", job.test_rows)
    return Ready(
        model, params, report, tokenizer, settings, rows[0],
        None if held is None else encoded(held, "held out to learn radii from"),
        rows[1], final, _samples(job, rows[1], model, tokenizer), prompts, teacher,
        _facts(job, rows[0], rows[1], final, prompts, report, tokenizer)
        | ({} if teacher is None else {"teacher": teacher.report.sha256}),
    )  # fmt: skip


def _samples(
    job: Summarize, rows: SummaryRows, model: Seq2SeqModel, tokenizer: Tokenizer
) -> SummaryRows | None:
    """Return what is shown: the user's own examples, or the first rows where their text may be."""
    if job.example:
        fields = {"document": list(job.example), "summary": ["-"] * len(job.example)}
        columns = dataclasses.replace(job.columns, document="document", summary="summary")
        found = encode_summaries(Table(fields, name="--example"), columns, model, tokenizer)
        return found._replace(summaries=[""] * len(job.example))
    if not job.samples or rows.confidential:
        return None
    return rows.first(job.samples)


def _teacher(name: str, student: Seq2SeqModel) -> LoadedWriter:
    """Load a teacher; its words must be the student's."""
    teacher = load_writer(name)
    sizes = [model.config["vocab_size"] for model in (teacher.model, student)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the teacher {name} knows {sizes[0]:,} words and the student {sizes[1]:,}; choose a "
            "teacher with the student's tokenizer"
        )
    return teacher


def _packages() -> None:
    lacking = [name for name in ("rouge_score", "sacrebleu") if not importlib.util.find_spec(name)]
    if lacking:
        raise ValueError(
            f"summaries are measured by {' and '.join(lacking)}, not installed here: "
            'pip install "sftjax[summarize]"'
        )


def _facts(
    job: Summarize,
    train: SummaryRows,
    evaluation: SummaryRows,
    test: SummaryRows,
    prompts: Table,
    report: LoadReport,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    settings = dataclasses.asdict(job)
    for name in (
        "output_dir",
        "model",
        "data",
        "eval_data",
        "columns",
        "training",
        "prompts",
        "teacher",
    ):
        settings.pop(name)
    return {
        "recipe": "summarize",
        "weights": report.sha256,
        "tokenizer": tokenizer.sha256,
        "train_rows": train.table.fingerprint,
        "eval_rows": evaluation.table.fingerprint,
        "test_rows_are": test.table.fingerprint,
        "prompts": prompts.fingerprint,
        "devices": job.training.row_devices,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()},
        **dataclasses.asdict(job.columns),
        **job.training.facts(),
    }
