"""What a summarization run leaves behind: a model folder, numbers, samples, plots, a report."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sftjax.core import PyTree
from sftjax.evaluate import (
    SUMMARY_COLUMNS,
    loss_curve,
    moved_per_block,
    table_markdown,
)
from sftjax.hub import Data, Metric, card_of
from sftjax.recipes.run_folder import named, write_json, write_text
from sftjax.recipes.summarize_job import Ready, Summarize
from sftjax.recipes.summary_scoring import Sample
from sftjax.recipes.watching import faults_told
from sftjax.recipes.weights_folder import write_weights
from sftjax.recipes.worn import Worn

if TYPE_CHECKING:
    from sftjax.recipes.summarize import Summarized


def write_summarized(
    job: Summarize,
    run: Ready,
    worn: Worn,
    weights: PyTree,
    found: "Summarized",
    before: list[str],
    after: list[str],
    tell: Callable[[str], None],
) -> None:
    """Write the run's folder, and tell its table.

    Args:
      job: of the run.
      run: its rows and model.
      worn: its params with adapters.
      weights: the tuned model's plain params.
      found: what was measured.
      before: what the pretrained model wrote of the rows to report on.
      after: what the tuned one wrote.
      tell: is given the table and where things lie.
    """
    folder, tuned = job.output_dir, found.tuned
    card = card_of(run.report)._replace(
        data=tuple(
            Data(named(rows.table.name), len(rows.pairs), use)
            for rows, use in ((run.train, "train"), (run.test, "evaluation"))
        ),
        metrics=tuple(
            Metric(kind, value.value, value.low, value.high, "evaluation")
            for kind, value in found.systems["after"].rouge.items()
        ),
    )
    adapted = write_weights(
        folder, run.model, run.params, run.report, worn, tuned, job.training, card, weights=weights
    )
    if adapted:
        adapted.insert(0, "## The adapter")
        tell(f"adapter: {folder / 'adapter'}; merged into the weights: {folder / 'model'}")
    loss_curve(tuned.fit.history, folder / "plots" / "loss.png", metric="eval_rougeL")
    moved_per_block({"fine-tuned": found.retention.moved}, folder / "plots" / "moved.png")
    _write_rows(job, run, found, before, after)
    write_json(
        folder / "metrics.json",
        {
            "systems": {name: one.facts() for name, one in found.systems.items()},
            "rougeL gained": found.gain,
            "rougeL over the lead": found.over_lead,
            "rougeL over the commonest": found.over_commonest,
            "rows": len(run.test.pairs),
            "best_step": tuned.fit.best_step,
            "num_steps": tuned.num_steps,
            "strength": tuned.strength,
            "history": tuned.fit.history,
            "faults": list(tuned.fit.faults),
            "retention": found.retention.rows(),
            "cut": {
                name: {
                    "sources": rows.pairs.source.truncated,
                    "source tokens": rows.pairs.source.lost,
                    "summaries": rows.pairs.target.truncated,
                    "summary tokens": rows.pairs.target.lost,
                }
                for name, rows in (("train", run.train), ("evaluation", run.test))
            },
        },
    )
    table = _table(found)
    write_text(folder / "report.md", _report(job, run, found, table, adapted))
    tell(table)
    tell(f"\n{found.retention}\n")
    tell(f"model, samples, report and plots: {folder}")
    tell(f'try it: sftjax generate {folder / "model"} --text "..."')


def _write_rows(
    job: Summarize, run: Ready, found: "Summarized", before: list[str], after: list[str]
) -> None:
    """Write a line for each row; of a text that may not be passed on, its scores alone."""
    numbers = run.test.table.rows
    lines = []
    for place in range(len(run.test.pairs)):
        line: dict[str, Any] = {
            "row": int(numbers[place]) if len(numbers) else place + 1,
            **{
                f"rougeL_{name}": round(float(found.systems[name].rows["rougeL"].f1[place]), 6)
                for name in ("before", "after")
            },
        }
        if not run.test.confidential:
            line["reference"] = run.test.summaries[place]
            line |= {"before": before[place], "after": after[place]}
        lines.append(json.dumps(line, ensure_ascii=False))
    write_text(job.output_dir / "summaries.jsonl", "\n".join(lines) + "\n")


def _table(found: "Summarized") -> str:
    return table_markdown([one.row(name) for name, one in found.systems.items()], SUMMARY_COLUMNS)


def _report(job: Summarize, run: Ready, found: "Summarized", table: str, adapted: list[str]) -> str:
    tuned = found.tuned
    # A folder of this machine means nothing elsewhere, but its last word may.
    names = [text.rstrip("/").rpartition("/")[2] for text in (job.model, job.data)]
    prompts, before, after = found.answers
    answers = [
        {"prompt": p, "before": b, "after": a}
        for p, b, a in zip(prompts, before, after, strict=True)
    ]
    parts = [
        f"# {names[0]} on {names[1]}",
        f"{tuned.num_steps} updates, the best at {tuned.fit.best_step} by "
        f"{job.training.metric_for_best_model}; {tuned.fit.seconds:.0f} s in training steps.",
        "## Summaries\n\nROUGE is mean F1 with stemming, as the package rouge-score gives it; BLEU "
        "and chrF are sacrebleu's, from 0 to 100. Intervals are 95 % bootstrap intervals over "
        f"{len(run.test.pairs):,} rows of {named(run.test.table.name)}.",
        table,
        f"ROUGE-L gained over the pretrained model, row by row: {_interval(found.gain)}; over the "
        f"lead: {_interval(found.over_lead)}; over the training summary that is the commonest, for "
        f"every document: {_interval(found.over_commonest)}.",
        f"Training rows: {run.train.pairs.told()}.\n\nRows of the table: {run.test.pairs.told()}.",
        *_samples(found.samples),
        *adapted,
        "## What moved",
        f"```\n{tuned.description}\n```",
        "## What was kept",
        f"Of {len(prompts)} prompts that the pretrained model answered.",
        f"```\n{found.retention}\n```",
        table_markdown(answers, ["prompt", "before", "after"]),
        "![moved](plots/moved.png)",
        "## Training",
        *faults_told(found.tuned.fit.faults),
        "![loss](plots/loss.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _samples(history: list[list[Sample]]) -> list[str]:
    """Return the samples: each document with what was written of it, evaluation by evaluation."""
    if not history or not history[0]:
        return []
    parts = ["## Samples"]
    for place, first in enumerate(history[0]):
        when = ["before", *(f"evaluation {n}" for n in range(1, len(history) - 1)), "after"]
        rows = [
            {"when": name, "summary": seen[place].summary}
            for name, seen in zip(when, history, strict=False)
        ]
        if first.reference:
            rows.append({"when": "a person", "summary": first.reference})
        document = " ".join(first.document.split())
        parts += [f"> {document}", table_markdown(rows, ["when", "summary"])]
    return parts


def _interval(found: Any) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
