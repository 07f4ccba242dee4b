"""Fine-tune on medical pictures, and say what the result is worth: for research, not for patients.

sftjax diagnose --model asset:efficientnet-lite0 --data scans.csv --group patient \\
    --output-dir runs/d

Patients are kept apart in four parts: training; validation, which picks the weights, calibrates
them and sets the thresholds; calibration, for prediction sets; and test, which is only measured.
"""

import csv
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sftjax.core import PyTree
from sftjax.evaluate import Interval, overlays, predict, reliability, roc_curves, softmax
from sftjax.hub import Data
from sftjax.objectives import effective_number_weights
from sftjax.recipes.diagnose_job import Diagnose
from sftjax.recipes.diagnose_labels import DiagnosedLabels, diagnose_labels
from sftjax.recipes.diagnose_report import WARNING, card_notes, report_of
from sftjax.recipes.images import confusion_and_mistakes
from sftjax.recipes.judging import Judge, fit_judge, save_judge
from sftjax.recipes.looking import looks
from sftjax.recipes.measuring import Measured, measure
from sftjax.recipes.one_run import (
    Ran,
    card_metrics,
    carry_out,
    named,
    write_model,
    write_numbers,
)
from sftjax.recipes.picture_rows import ALONE, PictureRows
from sftjax.recipes.prepare_images import PreparedImages, prepare_images
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import write_text
from sftjax.recipes.streams import in_order
from sftjax.recipes.sweep import Swept, runs_of, sweep


class Diagnosed(NamedTuple):
    """What the recipe found, on test pictures that decided nothing."""

    measured: Measured
    judge: Judge
    ran: Ran
    folder: pathlib.Path

    @property
    def metrics(self) -> dict[str, Interval | float]:
        """With 95 % bootstrap intervals over groups."""
        return self.measured.metrics


def diagnose(
    job: Diagnose, tell: Callable[[str], None] = say
) -> Diagnosed | DiagnosedLabels | Swept:
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    tell(WARNING)
    if job.sweep:
        runs_of(job.sweep, job.training)  # refused before anything is read
    share = job.validation_fraction
    if not 0 < share < 1 / 3:
        raise ValueError(
            f"--validation-fraction is {share:g}; validation, calibration and test get so much "
            "each, so it lies between 0 and 1/3"
        )
    held = dict.fromkeys(("validation", "calibration", "test"), share)
    ready = prepare_images(
        job, tell, shares={"train": 1 - 3 * share, **held}, chosen_on="validation", least=1
    )
    if ready.parts["train"].groups is None and job.pictures.group != ALONE:
        raise ValueError(
            f"{job.data} has no column of patients, and pictures of one patient in two parts would "
            "flatter every number: name it (--group patient), or say that each picture stands "
            "alone (--group none)"
        )
    wanted = _wanted(job, ready)
    if job.pictures.task == "multi-label" and not job.sweep:
        return diagnose_labels(job, ready, wanted, tell)
    for column in job.subgroups:
        ready.parts["test"].table[column]  # refused now, not after the training
    if job.sweep:
        return sweep(ready.job, ready.run, tell)
    ran = carry_out(ready.job, ready.run, tell, ready.parts["validation"].groups)
    logits = {
        name: _logits(ran, ready.parts[name], job.per_device_eval_batch_size)
        for name in ("validation", "calibration", "test")
    }
    pairs = {name: (z, _labels(ready.parts[name])) for name, z in logits.items()}
    names = ready.loaded.model.head.labels
    judge, said = fit_judge(
        names, pairs["validation"], pairs["calibration"], prior=_prior(job, ready),
        calibrate=job.calibrate, wanted=wanted, rule=job.threshold, at_least=job.at_least,
        method=job.conformal, alpha=job.alpha,
    )  # fmt: skip
    for text in said:
        tell(text)
    measured = measure(judge, logits["test"], ready.parts["test"], job.subgroups)
    pictures = _draw(ready, ran, judge, logits["test"], measured)
    _write(ready, job, ran, judge, measured, said, pictures)
    tell(measured.table())
    tell(f"{WARNING}\nmodel, judgement, card, report and plots: {job.output_dir}")
    return Diagnosed(measured, judge, ran, job.output_dir)


def _wanted(job: Diagnose, ready: PreparedImages) -> tuple[str, ...]:
    names = ready.loaded.model.head.labels
    unknown = [name for name in job.positive if name not in names]
    if unknown:
        raise ValueError(
            f"--positive {' '.join(unknown)}: no class has this name; there are: {', '.join(names)}"
        )
    several = job.pictures.task == "multi-label"
    return job.positive or (names if several or len(names) > 2 else names[1:])


def _prior(job: Diagnose, ready: PreparedImages) -> np.ndarray:
    """Return what makes the logits speak of classes as frequent as in the source.

    A logit-adjusted or weighted loss, and a draw of so many a class, teach another frequency.
    """
    train = ready.parts["train"].counts
    learned, real = train.astype(np.float64), train
    if job.imbalance == "logit-adjusted":
        learned = np.ones(len(train))
    elif job.imbalance == "class-balanced":
        learned = learned * np.asarray(effective_number_weights(train))
    if job.rows_per_class:
        real = ready.parts["validation"].counts
    return np.log(real / real.sum()) - np.log(learned / learned.sum())


def _labels(rows: PictureRows) -> np.ndarray:
    assert rows.labels is not None
    return np.asarray(rows.labels.values)


def _logits(ran: Ran, rows: PictureRows, size: int) -> np.ndarray:
    return predict(ran.run, ran.tuned.params, in_order(rows, size), rows.size)


def _draw(
    ready: PreparedImages, ran: Ran, judge: Judge, logits: np.ndarray, measured: Measured
) -> list[tuple[str, str]]:
    """Draw the plots of the test pictures; return `(file, what it shows)` of each."""
    job, rows = ready.job, ready.parts["test"]
    assert isinstance(job, Diagnose)
    plots, labels = job.output_dir / "plots", _labels(rows)
    p = judge.probabilities(logits)
    scores = {n: (p[:, judge.names.index(n)], labels == judge.names.index(n))
              for n in list(judge.thresholds)[:7]}  # fmt: skip
    cuts = {name: each.value for name, each in judge.thresholds.items()}
    roc_curves(scores, plots / "roc.png", thresholds=cuts)
    raw = softmax(logits + judge.prior)
    reliability(raw, labels, plots / "reliability-before.png", title="Before calibration")
    reliability(p, labels, plots / "reliability.png", title="After calibration")
    done = [
        ("roc", "sensitivity and specificity, thresholds marked"),
        *confusion_and_mistakes(job.output_dir, logits, rows),
        ("reliability-before", "reliability before calibration"),
        ("reliability", "reliability after calibration"),
    ]
    if job.saliency and ran.worn.mergeable:
        done.append(_saliency(ready, ran.worn.weights(ran.tuned.params), logits, plots))
    return done


def _saliency(
    ready: PreparedImages, params: PyTree, logits: np.ndarray, plots: pathlib.Path
) -> tuple[str, str]:
    job, rows = ready.job, ready.parts["test"]
    assert isinstance(job, Diagnose)
    labels, chosen = _labels(rows), logits.argmax(1)
    names = ready.loaded.model.head.labels
    # Mistakes first, then classes in turn.
    order = [*np.flatnonzero(chosen != labels)[: job.saliency // 2]]
    turn = np.argsort(np.concatenate([np.arange(n) for n in np.bincount(labels) if n]))
    inside = np.argsort(labels, kind="stable")
    order += [row for row in inside[turn] if row not in order][: job.saliency - len(order)]
    pixels = rows.images.pixels[order]
    maps, how = looks(
        ready.loaded.model, params, rows.images.processor.normalize(pixels), chosen[order]
    )
    overlays(
        pixels,
        maps,
        plots / "saliency.png",
        titles=[
            names[labels[row]]
            + (", found" if chosen[row] == labels[row] else f", taken for {names[chosen[row]]}")
            for row in order
        ],
        title=how,
    )
    return "saliency", f"{how}: where the model looks, which is no proof of why"


def _write(
    ready: PreparedImages,
    job: Diagnose,
    ran: Ran,
    judge: Judge,
    measured: Measured,
    said: list[str],
    pictures: list[tuple[str, str]],
) -> None:
    folder = job.output_dir
    adapted = write_model(
        ready.job, ready.run, ran,
        title=f"{pathlib.Path(job.data).name} by {pathlib.Path(job.model).name} (research only)",
        data=tuple(Data(named(part.table.name), part.size, n) for n, part in ready.parts.items()),
        metrics=card_metrics(
            {n: v for n, v in measured.metrics.items() if not n.endswith(" before")}, "test"
        ),
        notes=card_notes(job, ready, judge, measured, said),
        interval=f"95 % bootstrap interval over {measured.over}",
    )  # fmt: skip
    for kind in ("model", "adapter"):
        if (folder / kind).is_dir():
            save_judge(folder / kind, judge)
    write_numbers(
        folder, ran,
        test=measured.metrics, thresholds=measured.thresholds, sets=measured.sets,
        subgroups=measured.subgroups,
        chosen={name: each._asdict() for name, each in judge.thresholds.items()},
    )  # fmt: skip
    _predictions(folder / "predictions.csv", judge, measured, ready.parts["test"])
    text = report_of(ready, job, ran, judge, measured, said, pictures, adapted)
    write_text(folder / "report.md", text)


def _predictions(path: pathlib.Path, judge: Judge, found: Measured, rows: PictureRows) -> None:
    """Write a line a test picture: truth, choice, probabilities, flags and the set."""
    names, labels = judge.names, _labels(rows)
    numbers = np.asarray(rows.table.rows) if len(rows.table.rows) else np.arange(1, rows.size + 1)
    groups = rows.groups or [""] * rows.size
    flags = judge.flags(found.probabilities)
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["row", "group", "label", "prediction", *(f"probability_{n}" for n in names),
             *(f"flagged_{n}" for n in flags), "set"]
        )  # fmt: skip
        for i in range(rows.size):
            line: list[Any] = [int(numbers[i]), groups[i], names[labels[i]], names[found.chosen[i]]]
            line += [f"{value:.6g}" for value in found.probabilities[i]]
            line += [int(flag[i]) for flag in flags.values()]
            inside = zip(names, found.members[i], strict=True)
            line.append("|".join(name for name, member in inside if member))
            writer.writerow(line)
