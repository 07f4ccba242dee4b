"""Fine-tune an encoder-decoder to summarize, and say what it learned and what it kept.

sftjax summarize --model FOLDER --data asset:debian-synopses --train last:2 --dose 1 \
    --on-long-source cut-end --max-source-length 128 --max-target-length 32 --output-dir runs/s
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

import sftjax
from sftjax.core import Batch, PyTree
from sftjax.data import cache_folder
from sftjax.evaluate import Interval, Retention, Summaries, paired_bootstrap, row_mean
from sftjax.models import encoder_apart
from sftjax.objectives import Apply, distill_teacher, sequence_to_sequence, with_teacher
from sftjax.recipes.abilities import Abilities
from sftjax.recipes.deciding import rules_of
from sftjax.recipes.finetune import finetune
from sftjax.recipes.home import move_in
from sftjax.recipes.progress import say
from sftjax.recipes.seq2seq_parts import encoder_stands, seq2seq_parts
from sftjax.recipes.startup import MEASURING, part
from sftjax.recipes.streams import Stream
from sftjax.recipes.summarize_job import Ready, Summarize, get_ready
from sftjax.recipes.summarize_report import write_summarized
from sftjax.recipes.summary_rows import (
    SummaryRows,
    pairs_in_order,
    pairs_packed,
    pairs_shuffled,
)
from sftjax.recipes.summary_scoring import Sample, SummaryScorer, commonest_row, lead_row
from sftjax.recipes.training import Tuned
from sftjax.recipes.worn import Worn, told_of, wear
from sftjax.recipes.writing import Writer
from sftjax.select import select
from sftjax.train import keep_prefix, with_prefix


class Summarized(NamedTuple):
    """What the recipe found."""

    systems: dict[str, Summaries]
    """On the rows to report on: the lead, one summary for all, the model before, and after."""
    gain: Interval
    """ROUGE-L after minus before, row by row."""
    over_lead: Interval
    """ROUGE-L after minus the lead's, row by row."""
    over_commonest: Interval
    """The same, over one summary for all."""
    retention: Retention
    answers: tuple[list[str], list[str], list[str]]
    """The prompts, what the model said before, and what it says after."""
    samples: list[list[Sample]]
    tuned: Tuned
    folder: pathlib.Path


def summarize(job: Summarize, tell: Callable[[str], None] = say) -> Summarized:
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    run = get_ready(job, tell)
    training = job.training
    key = jax.random.key(training.seed)
    worn = wear(
        training.adapter, run.params, run.report.new, key, quantize=training.quantize
    )  # fmt: skip
    if not worn.mergeable:
        raise ValueError(
            f"--adapter {' '.join(training.adapter)} cannot be merged into the weights, and an "
            "encoder-decoder writes with merged weights here; use lora or a kin of it"
        )
    for text in told_of(worn, run.params):
        tell(text)
    above = _encoder_above(job, run, worn, tell) if job.keep_prefix else None
    move_in(job, run.facts, tell)

    weights = jax.jit(worn.weights)
    plain = weights(worn.params)
    writer = Writer(run.model, run.tokenizer, run.settings)
    shown = run.samples
    scorer = SummaryScorer(
        run.model, writer, run.evaluation, job.eval_written,
        None if shown is None else shown.pairs,
        [] if shown is None else list(zip(shown.documents, shown.summaries, strict=True)), tell,
    )  # fmt: skip
    abilities = Abilities(run.model, run.tokenizer, writer, run.prompts)
    measured: list[tuple[list[str], Summaries]] = []
    to_beat: list[tuple[str, Summaries]] = []

    def before() -> None:
        with part(MEASURING):
            abilities.ask(plain)
            tell("before training:")
            scorer.samples(plain)
            measured.append(scorer.measured(plain, run.test))
            to_beat.extend(row(run.test, run.train.summaries) for row in (lead_row, commonest_row))
        name, lead = to_beat[0]
        reached, beaten = (found.rouge["rougeL"].value for found in (measured[0][1], lead))
        tell(f"ROUGE-L of the pretrained model {reached:.3f}, {name} {beaten:.3f}")

    def batches(rows: SummaryRows) -> Stream:
        make = pairs_packed if job.packing else pairs_shuffled
        stream = make(rows.pairs, training.rows, training.seed)
        if run.teacher is not None:
            at = with_teacher(stream.at, run.teacher.model.apply, run.teacher.params)
            stream = Stream(stream.steps_per_epoch, at)
        return stream if above is None else above(rows, stream)

    def objective(logits: Apply):
        labelled = sequence_to_sequence(
            logits,
            dropout=training.dropout,
            label_smoothing=job.label_smoothing_factor,
            z_loss=job.z_loss,
        )
        if run.teacher is None:
            return labelled
        return distill_teacher(
            labelled, logits, job.teacher_share, job.teacher_temperature, dropout=training.dropout
        )

    held_out = None if run.held_out is None else batches(run.held_out)
    parts = seq2seq_parts(run.model, objective, kept=above is not None, held_out=held_out)
    tuned = finetune(
        worn.params,
        worn.new,
        worn.parts(parts),
        batches(run.train),
        training,
        evaluate=lambda params: scorer.scores(weights(params)),
        folder=job.output_dir,
        tell=tell,
        held=worn.held,
        before=before,
    )
    plain = weights(tuned.params)
    tell("after training:")
    scorer.samples(plain)
    measured.append(scorer.measured(plain, run.test))
    (texts_before, found_before), (texts_after, after) = measured
    held, answers = abilities.kept(plain)
    found = Summarized(
        {**dict(to_beat), "before": found_before, "after": after},
        _gain(after, found_before),
        _gain(after, to_beat[0][1]),
        _gain(after, to_beat[1][1]),
        held,
        (abilities.prompts, abilities.before.written.texts, answers),
        scorer.history,
        tuned,
        job.output_dir,
    )
    write_summarized(job, run, worn, plain, found, texts_before, texts_after, tell)
    return found


def _gain(ours: Summaries, theirs: Summaries) -> Interval:
    first, second = (found.rows["rougeL"].f1 for found in (ours, theirs))
    return paired_bootstrap(row_mean, first, second, np.arange(len(first)))


Above = Callable[[SummaryRows, Stream], Stream]


def _encoder_above(job: Summarize, run: Ready, worn: Worn, tell: Callable[[str], None]) -> Above:
    """Return what adds the encoder's output, computed once for each set of rows, to batches.

    Raises:
      ValueError: if something moves that the encoder's output depends on.
    """
    moves = [
        select(worn.params, rules, new=worn.new).trainable
        for rules in rules_of(job.training, worn.new)
    ]
    if worn.plan is not None or not all(map(encoder_stands, moves)):
        raise ValueError(
            f"--keep-prefix: with --train {' '.join(p for p, _ in job.training.rules())} "
            f"{' '.join(job.training.adapter)} the encoder does not stand still; train blocks of "
            "the decoder alone (--train decoder/block/6 decoder/block/7), or leave it out"
        )
    lower = worn.beside(lambda params, batch, key: encoder_apart(run.model).lower(params, batch))

    def prefix(params: PyTree, batch: Batch) -> jax.Array:
        return lower(params, batch, None)

    def above(rows: SummaryRows, stream: Stream) -> Stream:
        facts = {
            "weights": run.report.sha256,
            "tokenizer": run.tokenizer.sha256,
            "rows": rows.table.fingerprint,
            "tokens": int(rows.pairs.source.offsets[-1]),
            "template": job.columns.template,
            "columns": [job.columns.document, job.columns.summary],
            "on_long": job.columns.on_long_source,
            "max_length": rows.pairs.source.max_length,
            "part": "encoder",
            "dtype": "bfloat16" if job.training.bf16 else "float32",
            "sftjax": sftjax.__version__,
            "jax": jax.__version__,
        }
        kept = keep_prefix(
            prefix, worn.params, pairs_in_order(rows.pairs), len(rows.pairs),
            mask="attention_mask", folder=cache_folder() / "prefix", facts=facts, tell=tell,
        )  # fmt: skip
        return Stream(stream.steps_per_epoch, with_prefix(stream.at, kept))

    return above
