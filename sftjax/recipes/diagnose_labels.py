"""Diagnosis where a picture has any number of findings: thresholds and calibration a label."""

import csv
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sftjax.evaluate import (
    Interval,
    Metric,
    auroc,
    average_precision,
    brier,
    ece,
    multilabel_macro_f1,
    multilabel_micro_f1,
    predict,
    reliability,
    roc_curves,
    screening_metrics,
    sigmoid,
    subset_accuracy,
    table_markdown,
    with_intervals,
)
from sftjax.evaluate.tables import cell
from sftjax.hub import Data
from sftjax.recipes.diagnose_job import Diagnose
from sftjax.recipes.diagnose_report import WARNING
from sftjax.recipes.images import about, over
from sftjax.recipes.judging import save_label_judge
from sftjax.recipes.label_judge import LabelJudge, fit_label_judge
from sftjax.recipes.many_labels import mean_over_labels
from sftjax.recipes.one_run import (
    Ran,
    card_metrics,
    carry_out,
    closing,
    named,
    opening,
    write_model,
    write_numbers,
)
from sftjax.recipes.picture_rows import PictureRows
from sftjax.recipes.prepare_images import PreparedImages
from sftjax.recipes.run_folder import write_text
from sftjax.recipes.streams import in_order

Numbers = dict[str, Any]


class DiagnosedLabels(NamedTuple):
    """What the recipe found, on test pictures that decided nothing."""

    metrics: dict[str, Interval | float]
    """With 95 % bootstrap intervals over groups."""
    labels: list[Numbers]
    """A row a label: AUROC, AUPRC, and what its threshold does."""
    judge: LabelJudge
    ran: Ran
    folder: pathlib.Path


def diagnose_labels(
    job: Diagnose, ready: PreparedImages, wanted: tuple[str, ...], tell: Callable[[str], None]
) -> DiagnosedLabels:
    """Train, judge on validation pictures, measure on test pictures, write.

    There are no prediction sets: they are of one class a picture. The calibration pictures are
    therefore measured with nothing, and left alone.

    Args:
      job: what to do.
      ready: the job, read.
      wanted: labels that get a threshold.
      tell: is given what a person wants to read on the way.
    """
    if job.subgroups:
        raise ValueError(
            "--subgroups measures the accuracy of one class a picture; leave it out with --task "
            "multi-label"
        )
    if job.imbalance == "logit-adjusted":
        tell(
            "--imbalance logit-adjusted is of one class a picture: labels are learned unweighted, "
            "and thresholds make up for rare ones (or --imbalance class-balanced, focal)"
        )
    ran = carry_out(ready.job, ready.run, tell, ready.parts["validation"].groups)
    logits = {
        name: predict(
            ran.run, ran.tuned.params,
            in_order(ready.parts[name], job.per_device_eval_batch_size), ready.parts[name].size,
        )
        for name in ("validation", "test")
    }  # fmt: skip
    names = ready.loaded.model.head.labels
    judge, said = fit_label_judge(
        names, logits["validation"], _truth(ready.parts["validation"]), calibrate=job.calibrate,
        wanted=wanted, rule=job.threshold, at_least=job.at_least,
    )  # fmt: skip
    for text in said:
        tell(text)
    rows = ready.parts["test"]
    found, lines = measure_labels(judge, logits["test"], rows)
    _draw(job, judge, logits["test"], rows)
    done = DiagnosedLabels(found, lines, judge, ran, job.output_dir)
    _write(job, ready, done, logits["test"], said)
    tell(_tables(found, lines))
    tell(f"{WARNING}\nmodel, judgement, card, report and plots: {job.output_dir}")
    return done


def measure_labels(
    judge: LabelJudge, logits: np.ndarray, rows: PictureRows
) -> tuple[dict[str, Interval | float], list[Numbers]]:
    """Measure a judge on rows that decided nothing: means over the labels, and each label."""
    truth, groups = _truth(rows), rows.groups
    p = judge.probabilities(logits)
    found = with_intervals(
        {
            "auroc": mean_over_labels(auroc), "auprc": mean_over_labels(average_precision),
            "brier": _pooled(brier), "ece": _pooled(ece),
        },
        p, truth, groups=groups,
    )  # fmt: skip
    before = with_intervals(
        {"brier before": _pooled(brier), "ece before": _pooled(ece)},
        sigmoid(np.asarray(logits, np.float64)), truth, groups=groups,
    )  # fmt: skip
    at = with_intervals(
        {
            "subset_accuracy": subset_accuracy, "micro_f1": multilabel_micro_f1,
            "macro_f1": multilabel_macro_f1,
        },
        judge.chosen(p).astype(int), truth, groups=groups,
    )  # fmt: skip
    return {**found, **before, **at}, [_label(judge, k, p, truth, groups) for k in range(len(p[0]))]


def _label(
    judge: LabelJudge, k: int, p: np.ndarray, truth: np.ndarray, groups: list[str] | None
) -> Numbers:
    name, mine = judge.names[k], truth[:, k]
    line: Numbers = {"label": name, "pictures": int(mine.sum())}
    metrics: dict[str, Metric] = {"auroc": auroc, "auprc": average_precision}
    threshold = judge.thresholds.get(name)
    line["threshold"] = "none" if threshold is None else f"{threshold.value:.4g}"
    if threshold is not None:
        metrics |= screening_metrics(threshold)
    return line | with_intervals(metrics, p[:, k], mine, groups=groups)


def _pooled(metric: Metric) -> Metric:
    """Return a metric of probabilities of classes over every label of every row."""

    def of(p: Any, truth: Any) -> float:
        yes = np.asarray(p).ravel()
        return metric(np.stack([1 - yes, yes], 1), np.asarray(truth).ravel())

    return of


def _truth(rows: PictureRows) -> np.ndarray:
    assert rows.labels is not None
    return np.asarray(rows.labels.values).astype(int)


def _draw(job: Diagnose, judge: LabelJudge, logits: np.ndarray, rows: PictureRows) -> None:
    plots, truth, p = job.output_dir / "plots", _truth(rows), judge.probabilities(logits)
    both = [n for n in judge.thresholds if len(np.unique(truth[:, judge.names.index(n)])) == 2][:7]
    curves = {n: (p[:, judge.names.index(n)], truth[:, judge.names.index(n)] > 0) for n in both}
    if both:
        cuts = {name: judge.thresholds[name].value for name in both}
        roc_curves(curves, plots / "roc.png", thresholds=cuts)
    for name, yes in (("reliability-before", sigmoid(np.asarray(logits))), ("reliability", p)):
        when = "Before" if name.endswith("before") else "After"
        flat = yes.ravel()
        reliability(
            np.stack([1 - flat, flat], 1), truth.ravel(), plots / f"{name}.png",
            title=f"{when} calibration, all labels together",
        )  # fmt: skip


def _tables(found: dict[str, Interval | float], lines: Sequence[Numbers]) -> str:
    rows = [{"metric": name, "test": value} for name, value in found.items()]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    return "\n\n".join(
        [table_markdown(rows, ["metric", "test"]), table_markdown(list(lines), columns)]
    )


def _write(
    job: Diagnose,
    ready: PreparedImages,
    done: DiagnosedLabels,
    logits: np.ndarray,
    said: Sequence[str],
) -> None:
    folder, rows, judge, ran = job.output_dir, ready.parts["test"], done.judge, done.ran
    limits = (
        "- All parts come from one source: how the model does elsewhere was not measured.\n"
        f"- The test has {rows.size:,} pictures, measured over {over(rows)}.\n"
        "- Labels are judged one by one: what goes together in a picture is not modelled.\n"
        "- No prediction sets, no subgroups."
    )
    used = job.intended_use or (
        "Research on labelling pictures like those it was trained on. Nobody has said more of what "
        "it is meant for."
    )
    shown = "\n".join(
        f"- {line['label']}: flagged from probability {line['threshold']} on; sensitivity "
        f"{cell(line['sensitivity'])}, specificity {cell(line['specificity'])}"
        for line in done.labels
        if "sensitivity" in line
    )
    notes = "\n\n".join(
        [
            f"**{WARNING}**",
            f"### Intended use\n\n{used}",
            "### Out of scope\n\nDecisions about a person's care; pictures of other devices, "
            "sites or populations than those of the training data; findings it was not trained on.",
            "### Judgement\n\n`judgement.json` holds calibration and thresholds; `sftjax predict` "
            "applies it. " + " ".join(said),
            f"On test pictures:\n\n{shown}",
            f"### Limits\n\n{limits}",
        ]
    )
    adapted = write_model(
        ready.job, ready.run, ran,
        title=f"{pathlib.Path(job.data).name} by {pathlib.Path(job.model).name} (research only)",
        data=tuple(Data(named(part.table.name), part.size, n) for n, part in ready.parts.items()),
        metrics=card_metrics(
            {n: v for n, v in done.metrics.items() if not n.endswith(" before")}, "test"
        ),
        notes=notes,
        interval=f"95 % bootstrap interval over {over(rows)}",
    )  # fmt: skip
    for kind in ("model", "adapter"):
        if (folder / kind).is_dir():
            save_label_judge(folder / kind, judge)
    write_numbers(folder, ran, test=done.metrics, labels=done.labels)
    _predictions(folder / "predictions.csv", judge, logits, rows)
    title, first = opening(ready.job, ran)
    text = [
        title,
        f"> **{WARNING}**",
        first,
        *about(ready),
        "Validation pictures picked the weights, the calibration and the thresholds; the test "
        "pictures decided nothing; there are no prediction sets, which the calibration pictures "
        "would be for.",
        f"## Test\n\nWith 95 % bootstrap intervals over {over(rows)}. AUROC and AUPRC are means "
        "over labels; Brier score and ECE are over all labels together; the others at thresholds.",
        _tables(done.metrics, done.labels),
        *(["![curves](plots/roc.png)"] if (folder / "plots" / "roc.png").is_file() else []),
        "## Calibration",
        *said,
        "![before](plots/reliability-before.png)",
        "![after](plots/reliability.png)",
        f"## Limits\n\n{limits}",
        *closing(ran, adapted),
    ]
    write_text(folder / "report.md", "\n\n".join(text) + "\n")


def _predictions(
    path: pathlib.Path, judge: LabelJudge, logits: np.ndarray, rows: PictureRows
) -> None:
    """Write a line a test picture: truth, probability and flag of every label."""
    names, truth, p = judge.names, _truth(rows), judge.probabilities(logits)
    numbers = np.asarray(rows.table.rows) if len(rows.table.rows) else np.arange(1, rows.size + 1)
    groups, chosen = rows.groups or [""] * rows.size, judge.chosen(p)
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        words = ("label", "probability", "flagged")
        writer.writerow(["row", "group", *(f"{word}_{name}" for word in words for name in names)])
        for i in range(rows.size):
            writer.writerow(
                [int(numbers[i]), groups[i], *truth[i], *(f"{v:.6g}" for v in p[i]),
                 *chosen[i].astype(int)]
            )  # fmt: skip
