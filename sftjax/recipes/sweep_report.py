"""What a sweep leaves on disk: a row a run, means over seeds, paired differences, a picture."""

import csv
import dataclasses
import io
import math
import pathlib
import shlex
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from sftjax.evaluate import paired_difference, summarize, table, table_markdown
from sftjax.evaluate.figure import COLOURS, MARKERS, figure, head, save, tidy
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.prepare import Classify
from sftjax.recipes.run_folder import write_json, write_text
from sftjax.recipes.training import LESS_IS_BETTER
from sftjax.train import SweepFit
from sftjax.train.grid import AXES

Row = dict[str, Any]


def write_sweep(
    job: Classify | TuneImages,
    rows: list[Row],
    fitted: SweepFit,
    num_steps: int,
    cut: int | None,
    tell: Callable[[str], None],
) -> None:
    """Write `sweep.csv`, `means.csv`, `metrics.json`, `report.md` and `plots/sweep.png`."""
    folder = job.output_dir
    by = [a for a in AXES if f"{a}=" in job.sweep.replace(" ", "")] or ["anchor"]
    metrics = [n for n in rows[0] if n not in ("anchor", "seed", "failed_at", *AXES)]
    main = next(name for name in metrics if name.startswith("eval_") and name != "eval_loss")
    shown = [main, "eval_loss", "moved", "cka"]
    # What a run with nothing new, or with groups, can measure beside.
    shown += [n for n in metrics if n == "kl" or n.startswith(("kept ", "forgotten "))]
    blocks = {n: n.removeprefix("moved ") for n in metrics if n.startswith("moved ")}
    means = summarize(rows, by, metrics, level=0.95)
    seeds = len({row["seed"] for row in rows})
    differences: list[Row] = []
    if seeds > 1 and len(means) > 1:
        first = {name: rows[0][name] for name in by}
        differences = paired_difference(rows, first, by, metrics=metrics)
    pictures = draw(rows, by, main, folder / "plots") if len(means) > 1 else []
    write_text(folder / "sweep.csv", _csv(rows))
    write_text(folder / "means.csv", _csv(_tidy(means, by, metrics)))
    history = [
        {n: v if n == "step" else v.tolist() for n, v in record.items()}
        for record in fitted.history
    ]
    write_json(
        folder / "metrics.json",
        {
            "runs": rows, "means": means, "differences": differences, "num_steps": num_steps,
            "history": history, "failed": fitted.failed, "seconds": fitted.seconds,
        },
    )  # fmt: skip
    cells = [_cells(row, by, shown, seeds) for row in means]
    far = [_cells(row, by, list(blocks), seeds) for row in means]
    columns = [*by, *shown]
    text = [
        f"# {len(rows)} runs in one step: {job.sweep}",
        f"{pathlib.Path(job.model).name} on {pathlib.Path(job.data).name}, {num_steps} updates, "
        f"{fitted.seconds:.0f} s in training steps. Every run saw the same batches, in the order "
        f"of seed {job.training.seed}; a run's seed drew its new head and dropout. "
        + (
            f"What the frozen lower blocks ({cut}) give was computed once for all runs. "
            if cut
            else ""
        )
        + "Measured are the weights of the last update.",
        *[f"**Failed**: {run}, not finite at update {at}." for run, at in fitted.failed.items()],
        "## By setting",
        f"Mean ± standard deviation over {seeds} seeds, and the 95 % t interval of the mean. "
        * (seeds > 1)
        + "`moved` is the distance from the pretrained weights; on the reference rows, `cka` is "
        "the likeness of the mean features to the pretrained model's, `kl` the divergence of its "
        "outputs, `kept` the score in what pretraining could do and `forgotten` what it lost.",
        table_markdown(cells, columns),
        "## How far each block moved",
        "The distance from the pretrained weights; `means.csv` has all measures, with intervals, "
        "and the relative and spectral distances of each block too.",
        table_markdown(
            [{blocks.get(n, n): c for n, c in row.items()} for row in far],
            [*by, *blocks.values()],
        ),
    ]
    if differences:
        text += [
            f"## Against {_label(rows[0], by)}, paired by seed",
            "Mean difference with its 95 % t interval.",
            table_markdown(
                [{name: _plain(row[name], name in by) for name in columns} for row in differences],
                columns,
            ),
        ]
    text += [f"![by setting](plots/{path.name})" for path in pictures]
    text += _chosen(job, means, by)
    write_text(folder / "report.md", "\n\n".join(text) + "\n")
    tell(table(cells, columns))
    tell(f"table, report and plots: {folder}; no model is saved (report.md says how to train one)")


def draw(rows: Sequence[Row], by: Sequence[str], main: str, folder: pathlib.Path) -> list[Any]:
    """Draw a metric and the distance moved against the axis with most values, a line a series."""
    count = {axis: len({row[axis] for row in rows}) for axis in by}
    x = max(by, key=count.__getitem__)
    other = [axis for axis in by if axis != x and count[axis] > 1]
    series = list(dict.fromkeys(tuple(row[axis] for axis in other) for row in rows))
    starts = range(0, len(series), len(COLOURS))
    return [
        _picture(
            rows, x, other, series[start : start + len(COLOURS)], main,
            folder / ("sweep.png" if not start else f"sweep-{start // len(COLOURS) + 1}.png"),
        )
        for start in starts
    ]  # fmt: skip


def command_of(job: Classify | TuneImages, changes: dict[str, Any], output_dir: str) -> str:
    """Return the command line of a single run of the job with other training settings."""
    training = dataclasses.replace(job.training, **changes)
    single = dataclasses.replace(
        job, sweep="", training=training, output_dir=pathlib.Path(output_dir)
    )
    return " ".join([f"sftjax {job.command}", *_arguments(single)])


def _arguments(job: Any) -> list[str]:
    words: list[str] = []
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        if dataclasses.is_dataclass(value):
            words += _arguments(value)
            continue
        if value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else [value]
            words += [f"--{flag}", *(shlex.quote(str(item)) for item in values)]
    return words


def _chosen(job: Classify | TuneImages, means: list[Row], by: Sequence[str]) -> list[str]:
    metric = job.training.metric_for_best_model
    sound = [row for row in means if math.isfinite(row[metric])]
    if not sound:
        return ["No setting came through with every seed; no model is saved."]
    pick = min if metric.endswith(LESS_IS_BETTER) else max
    best = pick(sound, key=lambda row: row[metric])
    changes = {name: best[name] for name in by if name in AXES}
    command = command_of(job, changes, f"{job.output_dir}-chosen")
    return [
        "## To train the chosen setting",
        f"No model is saved. The best {metric} is that of {_label(best, by)} (chosen on these very "
        "rows, so its value here flatters it). This trains it:",
        f"```sh\n{command}\n```",
        f"With seed {job.training.seed} the head, the rows and their order are those of "
        "the sweep's run of that seed; but a single run keeps its best evaluation, the "
        "sweep its last update. "
        "Another seed draws another order (and another held-out share, where one is held out).",
    ]


def _picture(
    rows: Sequence[Row], x: str, other: Sequence[str], series: Any, main: str, path: pathlib.Path
) -> pathlib.Path:
    panels = [(main, main.removeprefix("eval_").replace("_", " ")), ("moved", "distance moved")]
    drawing = figure(7.2, 6.2)
    axes = drawing.subplots(2, 1, sharex=True)
    seeds = len({row["seed"] for row in rows})
    bars = f", mean ± s.d. over {seeds} seeds" if seeds > 1 else ""
    for axis, (metric, label) in zip(axes, panels, strict=True):
        for number, key in enumerate(series):
            mine = [row for row in rows if tuple(row[name] for name in other) == key]
            at = sorted({row[x] for row in mine})
            found = [[row[metric] for row in mine if row[x] == value] for value in at]
            name = ", ".join(
                f"{n.replace('_', ' ')} {v:g}" for n, v in zip(other, key, strict=True)
            )
            axis.errorbar(
                at,
                [fmean(values) for values in found],
                [stdev(v) if len(v) > 1 and all(map(math.isfinite, v)) else 0.0 for v in found],
                color=COLOURS[number],
                marker=MARKERS[number],
                ms=5.5,
                lw=1.6,
                capsize=3,
                elinewidth=1,
                label=name or "all runs",
            )
        axis.set_ylabel(label)
        tidy(axis, grid="both")
    if x == "learning_rate":
        axes[-1].set_xscale("log")
    axes[-1].set_ylim(bottom=0)
    axes[-1].set_xlabel(x.replace("_", " ") + bars)
    axes[0].tick_params(axis="x", length=0)
    drawing.align_ylabels()
    words = "What is learned, and how far the weights move"
    if other:
        head(drawing, axes[0], words)
    else:
        axes[0].set_title(words, fontsize=12, fontweight="bold", loc="left")
    return save(drawing, path)


def _cells(row: Row, by: Sequence[str], shown: Sequence[str], seeds: int) -> Row:
    cells: Row = {name: _plain(row[name], True) for name in by}
    for name in shown:
        value, spread = row[name], row[f"{name}_sd"]
        finite = math.isfinite(value)
        if finite and seeds > 1:
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            cells[name] = f"{value:.3f} ± {spread:.3f} [{low:.3f}, {high:.3f}]"
        else:
            cells[name] = value if finite else "failed"
    return cells


def _tidy(means: Sequence[Row], by: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """Return one row a setting and measure: mean, standard deviation, interval."""
    parts = {"mean": "", "sd": "_sd", "low": "_low", "high": "_high"}
    return [
        {axis: row[axis] for axis in by}
        | {"measure": metric, "n": row["n"]}
        | {part: row[f"{metric}{suffix}"] for part, suffix in parts.items()}
        for row in means
        for metric in metrics
    ]


def _plain(value: Any, setting: bool) -> Any:
    return f"{value:g}" if setting and isinstance(value, int | float) else value


def _label(row: Row, by: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_plain(row[name], True)}" for name in by)


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
