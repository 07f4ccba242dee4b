"""One labelled run, whatever it reads: train, evaluate, measure what was kept, write it down."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sftjax.core import flatten
from sftjax.evaluate import Interval, Retention, loss_curve, moved_per_block, table_markdown
from sftjax.hub import Data, Metric, card_of
from sftjax.models import statistics_of
from sftjax.recipes.above_prefix import NO_PREFIX, above_prefix
from sftjax.recipes.finetune import finetune
from sftjax.recipes.home import move_in
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.keeping import Keeper
from sftjax.recipes.prepare import Classify, Prepared
from sftjax.recipes.run_folder import named, write_json
from sftjax.recipes.scoring import Run, Scorer
from sftjax.recipes.segment_job import Segment
from sftjax.recipes.streams import Batched, Stream, in_order, shuffled
from sftjax.recipes.training import Tuned
from sftjax.recipes.watching import faults_told
from sftjax.recipes.weights_folder import write_weights
from sftjax.recipes.worn import Worn, told_of, wear

Job = Classify | TuneImages | Segment


class Ran(NamedTuple):
    """A run that is done."""

    worn: Worn
    tuned: Tuned
    outputs: Any
    """Logits of the evaluation rows."""
    metrics: dict[str, Interval | float]
    """On the evaluation rows, `eval_*`, with 95 % bootstrap intervals."""
    retention: Retention | None
    """None where nothing was pretrained."""
    run: Run
    """`(params, batch) -> logits`, compiled."""


def carry_out(
    job: Job, run: Prepared, tell: Callable[[str], None], groups: list[str] | None = None
) -> Ran:
    """Train and evaluate; the run's folder is claimed, and holds the checkpoints.

    Args:
      job: what to do.
      run: the job, read.
      tell: is given what a person wants to read on the way.
      groups: of the evaluation rows, over which intervals are taken; None is over rows.
    """
    move_in(job, run.facts, tell)
    model, params, report = run.model, run.params, run.report
    key, quantize = jax.random.key(job.training.seed), job.training.quantize
    worn = wear(job.training.adapter, params, run.new, key, quantize=quantize)
    for text in told_of(worn, params):
        tell(text)
    logits = worn.beside(model.apply)
    compiled = jax.jit(lambda params, batch: logits(params, batch, None))
    scorer = (run.scorer or Scorer)(
        compiled,
        run.evaluation,
        run.task,
        in_order(run.evaluation, job.per_device_eval_batch_size),
    )
    prefix = NO_PREFIX
    if job.keep_prefix:
        prefix = above_prefix(model, worn.base, report, job.training, run.tokenizer, tell)

    def batches(rows: Batched) -> Stream:
        return prefix.above(rows, shuffled(rows, job.training.rows, job.training.seed))

    held_out = None if run.held_out is None else batches(run.held_out)
    tuned = finetune(
        worn.params,
        worn.new,
        worn.parts(run.parts(cut=prefix.cut, held_out=held_out)),
        batches(run.train),
        job.training,
        evaluate=scorer.scores,
        folder=job.output_dir,
        tell=tell,
        held=worn.held,
    )
    outputs = scorer.outputs(tuned.params)
    found, held = scorer.intervals(outputs, groups), None
    if set(run.new) < set(flatten(params)) - set(statistics_of(params)):
        keeper = Keeper(model, params, run.new, run.reference, group=run.group)
        held = keeper.kept(tuned.params, worn=worn)
    return Ran(worn, tuned, outputs, found, held, compiled)


def write_model(job: Job, run: Prepared, ran: Ran, **card: Any) -> list[str]:
    """Write the model, or the adapter, or both, and their card.

    Args:
      job: what was to be done.
      run: the job, read.
      ran: what came of it.
      **card: fields of the card beside those that are known here.

    Returns:
      What the report says of the adapter: its table, its layout, what was merged; empty without.
    """
    described = card_of(run.report)._replace(**card_fields(run, ran) | card)
    adapted = write_weights(
        job.output_dir, run.model, run.params, run.report, ran.worn, ran.tuned, job.training,
        described,
    )  # fmt: skip
    return [*adapted, merged(ran.worn, job)] if adapted else []


def card_fields(run: Prepared, ran: Ran) -> dict[str, Any]:
    """Return what the card says of data and metrics."""
    train, evaluation = run.train, run.evaluation
    return {
        "data": (
            Data(named(train.table.name), train.size, "train"),
            Data(named(evaluation.table.name), evaluation.size, "evaluation"),
        ),
        "metrics": card_metrics(ran.metrics),
    }


def card_metrics(found: dict[str, Interval | float], on: str = "evaluation") -> tuple[Metric, ...]:
    """Return the metrics that have an interval as a card has them."""
    return tuple(
        Metric(name.removeprefix("eval_"), value.value, value.low, value.high, on)
        for name, value in found.items()
        if isinstance(value, Interval)
    )


def write_numbers(folder: pathlib.Path, ran: Ran, **more: Any) -> None:
    """Write metrics.json and the pictures of training and of what moved."""
    tuned, held = ran.tuned, ran.retention
    loss_curve(tuned.fit.history, folder / "plots" / "loss.png")
    if held is not None and held.whole.distance > 0:
        moved_per_block({"fine-tuned": held.moved}, folder / "plots" / "moved.png")
    kept = {} if held is None else {"moved": held.moved, "retention": held.rows()}
    write_json(
        folder / "metrics.json",
        {
            **ran.metrics,
            "best_step": tuned.fit.best_step,
            "num_steps": tuned.num_steps,
            "strength": tuned.strength,
            "history": tuned.fit.history,
            "faults": list(tuned.fit.faults),
            **kept,
            **more,
        },
    )


def opening(job: Job, ran: Ran) -> list[str]:
    """Return the first paragraphs of a report."""
    tuned = ran.tuned
    return [
        f"# {pathlib.Path(job.model).name} on {pathlib.Path(job.data).name}",
        f"{tuned.num_steps} updates, the best at {tuned.fit.best_step} by "
        f"{job.training.metric_for_best_model}; "
        f"{tuned.fit.seconds:.0f} s in training steps.",
    ]


def closing(ran: Ran, adapted: list[str]) -> list[str]:
    """Return the last paragraphs of a report: the adapter, what moved, what was kept, training."""
    lines = []
    if adapted:
        table, *rest = adapted
        lines += ["## The adapter", f"```\n{table}\n```", *rest]
    lines += ["## What moved", f"```\n{ran.tuned.description}\n```"]
    if ran.retention is not None:
        lines += ["## What was kept", f"```\n{ran.retention}\n```"]
        if ran.retention.whole.distance > 0:
            lines.append("![moved](plots/moved.png)")
    lines += ["## Training", *faults_told(ran.tuned.fit.faults), "![loss](plots/loss.png)"]
    return lines


def tell_end(job: Job, ran: Ran, tell: Callable[[str], None]) -> None:
    """Say what was found, and where things are."""
    rows = [{"metric": k, "value": v} for k, v in ran.metrics.items()]
    tell(table_markdown(rows, ["metric", "value"]))
    if ran.retention is not None:
        tell(f"\n{ran.retention}\n")
    given = '--text "..."' if job.command == "classify" else "--data PICTURES"
    if ran.worn.plan is not None:
        predict = "model" if ran.worn.mergeable else "adapter"
        tell(f"adapter: {job.output_dir / 'adapter'}; {merged(ran.worn, job)}")
        tell(f"try it: sftjax predict {job.output_dir / predict} {given}")
    tell(f"{'model, ' * ran.worn.mergeable}report and plots: {job.output_dir}")


def merged(worn: Worn, job: Job) -> str:
    """Say whether `model/` is the base with the adapter merged."""
    if worn.mergeable:
        few = f", the base dequantized from {job.training.quantize}" * bool(job.training.quantize)
        return f"`model/` is the base with the adapter merged{few}: it needs neither."
    return (
        "No weights do what it does, so there is no merged `model/`: `sftjax predict` on "
        f"`adapter/` runs it beside its base, {job.model}."
    )
