"""Fine-tune an encoder on labelled text: classes, labels, numbers, or a class a word.

sftjax classify --model FOLDER --data reviews.csv --train last:2 --dose 1 --output-dir runs/a
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from sftjax.core import flatten, partition
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
from sftjax.hub import Data, Metric, card_of, save
from sftjax.recipes.above_prefix import NO_PREFIX, above_prefix
from sftjax.recipes.adapter_folder import save_adapted
from sftjax.recipes.deciding import told
from sftjax.recipes.finetune import finetune
from sftjax.recipes.keeping import Keeper
from sftjax.recipes.prepare import Classify, Prepared, prepare
from sftjax.recipes.run_folder import write_json, write_text
from sftjax.recipes.scoring import Scorer
from sftjax.recipes.streams import Stream, in_order, shuffled
from sftjax.recipes.sweep import Swept, sweep
from sftjax.recipes.text_parts import text_parts
from sftjax.recipes.text_rows import PROBLEM_TYPES, Rows
from sftjax.recipes.training import Training, Tuned
from sftjax.recipes.worn import Worn, told_of, trained_beside, wear
from sftjax.train import claim


class Classified(NamedTuple):
    """What the recipe found."""

    metrics: dict[str, Interval | float]
    """On the evaluation rows, `eval_*`, with 95 % bootstrap intervals."""
    retention: Retention
    tuned: Tuned
    folder: pathlib.Path


def classify(job: Classify, tell: Callable[[str], None] = print) -> Classified | Swept:
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    if job.sweep:
        return sweep(job, tell)
    run = prepare(job, tell)
    if claim(job.output_dir, run.facts):
        tell(f"{job.output_dir} holds this very run: going on from its last checkpoint")
    model, params, report = run.model, run.params, run.report
    key, quantize = jax.random.key(job.training.seed), job.training.quantize
    worn = wear(job.training.adapter, params, run.new, key, quantize=quantize)
    for text in told_of(worn, params):
        tell(text)
    logits = worn.beside(model.apply)
    scorer = Scorer(
        jax.jit(lambda params, batch: logits(params, batch, None)),
        run.evaluation,
        job.columns.task,
        in_order(run.evaluation, job.per_device_eval_batch_size),
    )
    prefix = NO_PREFIX
    if job.keep_prefix:
        prefix = above_prefix(model, worn.base, report, job.training, run.tokenizer, tell)

    def batches(rows: Rows) -> Stream:
        return prefix.above(rows, shuffled(rows, job.training.rows, job.training.seed))

    held_out = None if run.held_out is None else batches(run.held_out)
    tuned = finetune(
        worn.params,
        worn.new,
        worn.parts(text_parts(model, run.objective, cut=prefix.cut, held_out=held_out)),
        batches(run.train),
        job.training,
        evaluate=scorer.scores,
        checkpoint_folder=job.output_dir / "checkpoints",
        tell=tell,
        held=worn.held,
    )
    outputs = scorer.outputs(tuned.params)
    found = scorer.intervals(outputs)
    keeper = Keeper(model, params, run.new, run.reference, group=job.reference.reference_group)
    held = keeper.kept(tuned.params, worn=worn)
    _write(job, run, worn, tuned, outputs, found, held)
    tell(table_markdown([{"metric": k, "value": v} for k, v in found.items()], ["metric", "value"]))
    tell(f"\n{held}\n")
    if worn.plan is not None:
        predict = "model" if worn.mergeable else "adapter"
        tell(f"adapter: {job.output_dir / 'adapter'}; {_merged(worn, job)}")
        tell(f'try it: sftjax predict {job.output_dir / predict} --text "..."')
    tell(f"{'model, ' * worn.mergeable}report and plots: {job.output_dir}")
    return Classified(found, held, tuned, job.output_dir)


def _write(
    job: Classify,
    run: Prepared,
    worn: Worn,
    tuned: Tuned,
    outputs: Any,
    found: dict[str, Interval | float],
    held: Retention,
) -> None:
    folder, train, evaluation = job.output_dir, run.train, run.evaluation
    card = card_of(run.report)._replace(
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
    adapted: list[str] = []
    if worn.plan is not None:
        moved = flatten(partition(tuned.params, tuned.selection.trainable)[0])
        layout = save_adapted(
            folder / "adapter", run.model, tuned.params, worn.plan, words=job.training.adapter,
            report=run.report, trained=trained_beside(moved),
        )  # fmt: skip
        adapted = ["\n\n".join(told_of(worn, run.params)), layout, _merged(worn, job)]
    if worn.mergeable:
        weights = worn.weights(tuned.params)
        save(folder / "model", run.model, weights, report=run.report, card=card)
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
    write_text(folder / "report.md", _report(job, tuned, found, held, adapted))


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


def _merged(worn: Worn, job: Classify) -> str:
    if worn.mergeable:
        few = f", the base dequantized from {job.training.quantize}" * bool(job.training.quantize)
        return f"`model/` is the base with the adapter merged{few}: it needs neither."
    return (
        "No weights do what it does, so there is no merged `model/`: `sftjax predict` on "
        f"`adapter/` runs it beside its base, {job.model}."
    )


def _adapter_section(adapted: list[str]) -> list[str]:
    if not adapted:
        return []
    table, *told = adapted
    return ["## The adapter", f"```\n{table}\n```", *told]


def _report(
    job: Classify,
    tuned: Tuned,
    found: dict[str, Interval | float],
    held: Retention,
    adapted: list[str],
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
                *_adapter_section(adapted),
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
