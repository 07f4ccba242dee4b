"""The report and the model card of a diagnosis run, each with its limits said first."""

from collections.abc import Sequence

import numpy as np

from sftjax.evaluate import Interval, table_markdown
from sftjax.evaluate.tables import cell
from sftjax.recipes.diagnose_job import Diagnose
from sftjax.recipes.images import about, class_tables
from sftjax.recipes.judging import Judge
from sftjax.recipes.measuring import Measured
from sftjax.recipes.one_run import Ran, closing, opening
from sftjax.recipes.prepare_images import PreparedImages

WARNING = (
    "Research software: not a medical device, not tested on patients, not for diagnosis or "
    "treatment."
)

SETS = (
    "A set holds the truth for the promised share of pictures drawn like the calibration pictures, "
    "on average: not within each class or patient, and not for another hospital's pictures. The "
    "likeliest class is always in it, so that it holds the truth more often where the model errs "
    "less than was promised."
)


def report_of(
    ready: PreparedImages,
    job: Diagnose,
    ran: Ran,
    judge: Judge,
    measured: Measured,
    said: Sequence[str],
    pictures: Sequence[tuple[str, str]],
    adapted: list[str],
) -> str:
    """Return the text of report.md."""
    title, first = opening(ready.job, ran)
    drawn = [f"![{what}](plots/{name}.png)" for name, what in pictures]
    seen = {name: line for (name, _), line in zip(pictures, drawn, strict=True)}
    rows = [{"metric": name, "test": value} for name, value in measured.metrics.items()]
    wrong = "mistakes" in seen
    chosen_on = judge.thresholds
    text = [
        title,
        f"> **{WARNING}**",
        first,
        *about(ready),
        "Validation pictures picked the weights, the calibration and the thresholds; calibration "
        "pictures the sets; the test pictures decided nothing.",
        f"## Test\n\nWith 95 % bootstrap intervals over {measured.over}.",
        table_markdown(rows, ["metric", "test"]),
        *class_tables(_choices(measured, judge), ready.parts["test"], wrong),
        "## Thresholds",
        "Each class against all others, at the threshold chosen on validation pictures "
        f"({next(iter(chosen_on.values())).rule} there); what a threshold keeps there it need not "
        "keep here. `ppv` and `npv` hold for classes as frequent as in these pictures.",
        table_markdown(measured.thresholds, list(measured.thresholds[0])),
        seen["roc"],
        "## Calibration",
        *said,
        seen["reliability-before"],
        seen["reliability"],
        "## Prediction sets",
        _conformal(judge),
        table_markdown(measured.sets, list(measured.sets[0])),
        SETS,
    ]
    if measured.subgroups:
        columns = list(dict.fromkeys(name for row in measured.subgroups for name in row))
        text += [
            "## Subgroups",
            "Without numbers where fewer than 20 pictures would say nothing.",
            table_markdown(measured.subgroups, columns),
        ]
    if "saliency" in seen:
        text += ["## Where the model looks", dict(pictures)["saliency"] + ".", seen["saliency"]]
    elif job.saliency:
        text += ["## Where the model looks", "Not drawn: the adapter does not merge into weights."]
    text += ["## Limits", limits(ready, measured), *closing(ran, adapted)]
    return "\n\n".join(text) + "\n"


def card_notes(
    job: Diagnose, ready: PreparedImages, judge: Judge, measured: Measured, said: Sequence[str]
) -> str:
    """Return the notes of the model card: intended use, out of scope, judgement, limits."""
    used = job.intended_use or (
        "Research on classifying pictures like those it was trained on. Nobody has said more of "
        "what it is meant for."
    )
    shown = [
        f"- {row['class']}: flagged from probability {row['threshold']} on; sensitivity "
        f"{cell(row['sensitivity'])}, specificity {cell(row['specificity'])}"
        for row in measured.thresholds
    ]
    return "\n\n".join(
        [
            f"**{WARNING}**",
            f"### Intended use\n\n{used}",
            "### Out of scope\n\nDecisions about a person's care; pictures of other devices, "
            "stains, sites or populations than those of the training data; classes it was not "
            "trained on, which it cannot refuse (`sftjax anomaly` looks for those).",
            "### Judgement\n\n`judgement.json` holds calibration, thresholds and sets; `sftjax "
            "predict` applies it. " + " ".join(said),
            "On test pictures:\n\n" + "\n".join(shown),
            f"{_conformal(judge)} {SETS}",
            f"### Limits\n\n{limits(ready, measured)}",
        ]
    )


def limits(ready: PreparedImages, measured: Measured) -> str:
    """Return what these numbers cannot say."""
    test = ready.parts["test"]
    names = ready.loaded.model.head.labels
    rare = [(n, int(c)) for n, c in zip(names, test.counts, strict=True) if c < 100]
    lines = [
        "- All parts come from one source: how the model does elsewhere was not measured.",
        f"- The test has {test.size:,} pictures ({measured.over}).",
    ]
    if rare:
        few = ", ".join(f"{name} ({count})" for name, count in rare)
        lines.append(f"- Fewer than 100 test pictures, so wide intervals: {few}.")
    if test.groups is None:
        lines.append(
            "- No patients were named, so pictures of one patient may be in two parts, and the "
            "intervals may be too narrow."
        )
    if not measured.subgroups:
        lines.append("- No subgroup (sex, age, site, device) was measured apart.")
    if ready.job.leaks == "tell":
        lines.append("- Leaks between the parts were told, not refused (--leaks tell).")
    whole = [n for n, v in measured.metrics.items() if isinstance(v, Interval) and v.low == v.high]
    if whole:
        lines.append(
            f"- An interval without width ({', '.join(whole)}) means that no mistake was seen, not "
            "that there is none."
        )
    return "\n".join(lines)


def _conformal(judge: Judge) -> str:
    c = judge.conformal
    assert c is not None
    return (
        f"Sets by {c.method.upper()}, promised to miss at most {c.alpha:.0%}, calibrated on "
        f"{c.rows:,} pictures of their own."
    )


def _choices(measured: Measured, judge: Judge) -> np.ndarray:
    return np.eye(len(judge.names))[measured.chosen]
