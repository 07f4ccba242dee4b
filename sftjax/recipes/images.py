"""Fine-tune a CNN or vision transformer on pictures of classes.

sftjax images --model asset:efficientnet-lite0 --data photos/ --train last:2 --output-dir runs/a
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sftjax.evaluate import (
    Interval,
    Retention,
    average_precision_one_vs_rest,
    confusion,
    ece_equal_mass,
    gallery,
    per_class,
    reliability,
    softmax,
    table_markdown,
    with_intervals,
    write_predictions,
)
from sftjax.recipes.decoding import left_out_told, origin_told
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.many_labels import beside_labels, label_tables, write_label_pictures
from sftjax.recipes.one_run import (
    Ran,
    carry_out,
    closing,
    opening,
    tell_end,
    write_model,
    write_numbers,
)
from sftjax.recipes.picture_rows import PictureRows
from sftjax.recipes.prepare_images import PreparedImages, prepare_images
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import write_text
from sftjax.recipes.sweep import Swept, runs_of, sweep
from sftjax.recipes.training import Tuned

SEVERAL = "multi_label_classification"


class Tuning(NamedTuple):
    """What the recipe found."""

    metrics: dict[str, Interval | float]
    """On the evaluation pictures, `eval_*`, with 95 % bootstrap intervals."""
    retention: Retention | None
    """None with --scratch."""
    tuned: Tuned
    folder: pathlib.Path


def images(job: TuneImages, tell: Callable[[str], None] = say) -> Tuning | Swept:
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    if job.sweep:
        runs_of(job.sweep, job.training)  # refused before anything is read
    ready = prepare_images(job, tell)
    if job.sweep:
        return sweep(ready.job, ready.run, tell)
    evaluation = ready.parts["evaluation"]
    ran = carry_out(ready.job, ready.run, tell, evaluation.groups)
    more = beside(ran.outputs, evaluation)
    ran = ran._replace(metrics={**ran.metrics, **more})
    _write(ready, ran)
    tell_end(ready.job, ran, tell)
    return Tuning(ran.metrics, ran.retention, ran.tuned, job.output_dir)


def beside(outputs: np.ndarray, rows: PictureRows) -> dict[str, Interval | float]:
    """Return the metrics of pictures beside the usual ones of classes."""
    assert rows.labels is not None
    if rows.labels.problem_type == SEVERAL:
        return beside_labels(outputs, rows)
    found = with_intervals(
        {"auprc": average_precision_one_vs_rest, "ece_equal_mass": ece_equal_mass},
        softmax(outputs),
        np.asarray(rows.labels.values),
        groups=rows.groups,
    )
    return {f"eval_{name}": value for name, value in found.items()}


def _write(ready: PreparedImages, ran: Ran) -> None:
    job, folder, rows = ready.job, ready.job.output_dir, ready.parts["evaluation"]
    adapted = write_model(job, ready.run, ran)
    write_numbers(folder, ran, corrupt=corrupt_of(ready))
    several = job.pictures.task == "multi-label"
    if several:
        write_label_pictures(folder, ran.outputs, rows)
        tables = label_tables(ran.outputs, rows)
    else:
        wrong = write_pictures(folder, ran.outputs, rows) > 1
        tables = class_tables(ran.outputs, rows, wrong)
        tables.append("![reliability](plots/reliability.png)")
    text = [
        *opening(job, ran),
        *about(ready),
        f"## Evaluation\n\nWith 95 % bootstrap intervals over {over(rows)}.",
        table_markdown(
            [{"metric": name, "value": value} for name, value in ran.metrics.items()],
            ["metric", "value"],
        ),
        *tables,
        *closing(ran, adapted),
    ]
    write_text(folder / "report.md", "\n\n".join(text) + "\n")


def write_pictures(folder: pathlib.Path, outputs: np.ndarray, rows: PictureRows) -> int:
    """Write predictions.csv and the plots of what was predicted; return how many plots."""
    assert rows.labels is not None
    labels, names = np.asarray(rows.labels.values), rows.labels.names
    numbers = [int(row) for row in np.asarray(rows.table.rows)] or range(1, len(outputs) + 1)
    write_predictions(folder / "predictions.csv", numbers, outputs, labels, names)
    reliability(softmax(outputs), labels, folder / "plots" / "reliability.png")
    return len(confusion_and_mistakes(folder, outputs, rows))


def confusion_and_mistakes(
    folder: pathlib.Path, outputs: np.ndarray, rows: PictureRows
) -> list[tuple[str, str]]:
    """Draw which class is taken for which, and mistakes; return `(file, what it shows)` of each."""
    assert rows.labels is not None
    labels, names = np.asarray(rows.labels.values), rows.labels.names
    probabilities = softmax(outputs)
    predicted = probabilities.argmax(1)
    confusion(predicted, labels, names, folder / "plots" / "confusion.png")
    done = [("confusion", "which class is taken for which")]
    wrong = np.flatnonzero(predicted != labels)
    if len(wrong):
        worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:12]
        gallery(
            rows.images.pixels[worst],
            [
                f"{names[labels[row]]} taken for\n{names[predicted[row]]} "
                f"({probabilities[row, predicted[row]]:.2f})"
                for row in worst
            ],
            folder / "plots" / "mistakes.png",
            title=f"The most confident of {len(wrong):,} mistakes",
        )
        done.append(("mistakes", "the most confident mistakes"))
    return done


def class_tables(outputs: np.ndarray, rows: PictureRows, wrong: bool) -> list[str]:
    """Return the report's section on each class."""
    assert rows.labels is not None
    found = per_class(outputs.argmax(1), np.asarray(rows.labels.values), len(rows.labels.names))
    table = [
        {
            "class": name, "pictures": int(found.support[k]), "precision": found.precision[k],
            "recall": found.recall[k], "f1": found.f1[k],
        }
        for k, name in enumerate(rows.labels.names)
    ]  # fmt: skip
    return [
        "## By class",
        table_markdown(table, ["class", "pictures", "precision", "recall", "f1"]),
        "![confusion](plots/confusion.png)",
        *(["![mistakes](plots/mistakes.png)"] if wrong else []),
    ]


def about(ready: PreparedImages) -> list[str]:
    """Return the report's account of the pictures and how they are treated."""
    job, processor = ready.job, ready.loaded.processor
    names = ready.loaded.model.head.labels
    lines = []
    for name, part in ready.parts.items():
        each = ", ".join(f"{n} {count:,}" for n, count in zip(names, part.counts, strict=True))
        groups = part.groups
        of = f" of {len(set(groups)):,} groups" if groups else ""
        lines.append(f"- {name}: {part.size:,} pictures{of} ({each})")
    height, width = processor.size
    changes = ", ".join(job.augment) or "none"
    lines += [
        f"- size {height} x {width}; augmentation: {changes}; imbalance: {job.imbalance}"
        + ("; random weights (--scratch)" if job.scratch else ""),
    ]
    if len(names) > 25:
        lines = [line.split(" (")[0] for line in lines]
    lines += [*origin_told(job.data), *left_out_told(corrupt_of(ready))]
    return ["## Pictures", "\n".join(lines)]


def corrupt_of(ready: PreparedImages) -> list[tuple[str, str]]:
    """Return `(name, reason)` of every picture that was left out."""
    return [(bad.name, bad.reason) for part in ready.parts.values() for bad in part.images.corrupt]


def over(rows: PictureRows) -> str:
    """Say what intervals are taken over."""
    groups = rows.groups
    return "pictures" if groups is None else f"{len(set(groups)):,} groups"
