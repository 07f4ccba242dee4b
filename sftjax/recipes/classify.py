"""Fine-tune an encoder on labelled text: classes, labels, numbers, or a class a word.

sftjax classify --model FOLDER --data reviews.csv --train last:2 --dose 1 --output-dir runs/a
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sftjax.evaluate import (
    Interval,
    Retention,
    reliability,
    softmax,
    table_markdown,
    write_predictions,
)
from sftjax.recipes.one_run import (
    Ran,
    carry_out,
    closing,
    opening,
    tell_end,
    write_model,
    write_numbers,
)
from sftjax.recipes.prepare import Classify, Prepared, prepare
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import write_text
from sftjax.recipes.sweep import Swept, runs_of, sweep
from sftjax.recipes.text_rows import PROBLEM_TYPES
from sftjax.recipes.training import Tuned


class Classified(NamedTuple):
    """What the recipe found."""

    metrics: dict[str, Interval | float]
    """On the evaluation rows, `eval_*`, with 95 % bootstrap intervals."""
    retention: Retention
    tuned: Tuned
    folder: pathlib.Path


def classify(job: Classify, tell: Callable[[str], None] = say) -> Classified | Swept:
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    if job.sweep:
        runs_of(job.sweep, job.training)  # refused before anything is read
    run = prepare(job, tell)
    if job.sweep:
        return sweep(job, run, tell)
    ran = carry_out(job, run, tell)
    assert ran.retention is not None
    _write(job, run, ran)
    tell_end(job, ran, tell)
    return Classified(ran.metrics, ran.retention, ran.tuned, job.output_dir)


def _write(job: Classify, run: Prepared, ran: Ran) -> None:
    folder, evaluation, outputs = job.output_dir, run.evaluation, ran.outputs
    adapted = write_model(job, run, ran)
    write_numbers(folder, ran)
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
    write_text(folder / "report.md", _report(job, ran, adapted))


def _report(job: Classify, ran: Ran, adapted: list[str]) -> str:
    rows = [{"metric": name, "value": value} for name, value in ran.metrics.items()]
    return (
        "\n\n".join(
            [
                *opening(job, ran),
                "## Evaluation\n\nWith 95 % bootstrap intervals over rows.",
                table_markdown(rows, ["metric", "value"]),
                "![reliability](plots/reliability.png)"
                if job.columns.task == "single-label"
                else "",
                *closing(ran, adapted),
            ]
        ).replace("\n\n\n\n", "\n\n")
        + "\n"
    )
