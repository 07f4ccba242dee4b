"""Learn what is normal from pictures of it, and say which others are strange, and where.

sftjax anomaly --model asset:dinov2-small --data cells/ --normal RBC --output-dir runs/strange

Detectors are fitted on some normal pictures, the threshold is set on others, and what is measured
is measured on others again; no picture of an anomaly is ever fitted on.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sftjax.data import Images
from sftjax.evaluate import (
    Interval,
    auroc,
    average_precision,
    gallery,
    overlays,
    row_mean,
    score_histogram,
    table_markdown,
    with_intervals,
)
from sftjax.models import Head
from sftjax.recipes.anomaly_job import Anomaly
from sftjax.recipes.anomaly_rows import (
    Kinds,
    kinds_of,
    normal_and_others,
    normal_classes,
    with_classes_left_out,
)
from sftjax.recipes.decoding import decoded
from sftjax.recipes.detectors import OF_LOGITS, Detector, Seen, Viewer, fit_detector, middle
from sftjax.recipes.image_models import LoadedImages, load_images_model
from sftjax.recipes.picture_rows import PictureRows, tell_of_pictures
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import write_json, write_text
from sftjax.recipes.saved_detectors import save_detectors
from sftjax.recipes.streams import in_order
from sftjax.train import claim


class Strange(NamedTuple):
    """What the recipe found."""

    metrics: dict[str, dict[str, Interval | float]]
    """Method -> `auroc`, `auprc`, and shares called strange; empty where nothing is labelled."""
    scores: dict[str, np.ndarray]
    """Method -> (N,) of the test rows."""
    thresholds: dict[str, float]
    folder: pathlib.Path


def anomaly(job: Anomaly, tell: Callable[[str], None] = say) -> Strange:
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    if not 0 < job.false_alarms < 1 or not 0 < job.coreset <= 1:
        raise ValueError(
            f"--false-alarms {job.false_alarms:g} and --coreset {job.coreset:g} are shares between "
            "0 and 1"
        )
    if job.pictures.task != "single-label":
        raise ValueError(
            f"--task {job.pictures.task}: what is normal is a class of its own here; leave it out"
        )
    job = with_classes_left_out(job)
    tables, group = normal_and_others(job, tell)
    head = None if set(job.methods) & set(OF_LOGITS) else Head("features")
    loaded = load_images_model(job.model, head, size=job.image_size)
    tell(str(loaded.report))
    stages = job.stages or middle(loaded.model.stages)
    viewer = Viewer(loaded.model, loaded.params, job.methods, stages)
    images = decoded(job, tables, loaded.processor)
    tell_of_pictures(images, group, job.leaks, tell)
    rows = {name: PictureRows(part, None, group) for name, part in images.items()}
    claim(job.output_dir, _facts(job, loaded, rows))
    seen: dict[str, Seen] = {}
    for name, part in rows.items():
        tell(f"{name}: looking at {part.size:,} pictures")
        seen[name] = viewer(in_order(part, job.per_device_eval_batch_size), part.size)
    labels = normal_classes(job, images["normal"].table)
    detectors = {
        method: fit_detector(
            method, seen["normal"], labels,
            neighbours=job.neighbours, coreset=job.coreset, seed=job.seed,
        )
        for method in job.methods
    }  # fmt: skip
    kept = {name: found.score(seen["threshold"]) for name, found in detectors.items()}
    cuts = {name: threshold_of(kept[name], job.false_alarms) for name in detectors}
    count = rows["threshold"].size
    if 1 / (count + 1) > job.false_alarms:
        tell(
            f"{count} normal pictures are too few to promise {job.false_alarms:.0%} false alarms; "
            "the strangest of them is the threshold"
        )
    scores = {name: found.score(seen["test"]) for name, found in detectors.items()}
    kinds = kinds_of(job, images["test"].table)
    found = {
        name: _measured(values, cuts[name], kinds, rows["test"]) for name, values in scores.items()
    }
    drawn = _draw(job, detectors, seen["test"], images["test"], scores, cuts, kinds)
    _write(job, loaded, stages, rows, detectors, scores, cuts, kinds, found, drawn)
    shown = _table(found, cuts)
    tell(table_markdown(shown, list(shown[0])))
    tell(f"detectors, scores, report and plots: {job.output_dir}")
    return Strange(found, scores, cuts, job.output_dir)


def threshold_of(scores: np.ndarray, share: float) -> float:
    """Return the score that at most this share of new normal rows exceeds, in the mean.

    It is the `ceil((n + 1)(1 - share))`-th smallest of n normal rows, or the largest of too few.

    >>> threshold_of(np.arange(1.0, 10.0), 0.1), threshold_of(np.arange(1.0, 10.0), 0.5)
    (9.0, 5.0)
    """
    rank = int(np.ceil(round((len(scores) + 1) * (1 - share), 9)))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def _measured(
    scores: np.ndarray, cut: float, kinds: Kinds, rows: PictureRows
) -> dict[str, Interval | float]:
    if not kinds:
        return {"called strange": float((scores > cut).mean())}
    strange = (~kinds["normal"]).astype(int)
    found = with_intervals(
        {"auroc": auroc, "auprc": average_precision}, scores, strange, groups=rows.groups
    )
    for name, mask in kinds.items():
        groups = rows.groups
        if name != "normal" and len(kinds) > 2:
            both = mask | kinds["normal"]
            own = None if groups is None else [g for g, m in zip(groups, both, strict=True) if m]
            pair = {f"auroc, {name}": auroc}
            found |= with_intervals(pair, scores[both], strange[both], groups=own)
        own = None if groups is None else [g for g, m in zip(groups, mask, strict=True) if m]
        share = {f"called strange, {name}": row_mean}
        found |= with_intervals(share, scores[mask] > cut, strange[mask], groups=own)
    return found


def _draw(
    job: Anomaly,
    detectors: dict[str, Detector],
    seen: Seen,
    images: Images,
    scores: dict[str, np.ndarray],
    cuts: dict[str, float],
    kinds: Kinds,
) -> list[tuple[str, str]]:
    plots, done = job.output_dir / "plots", []
    every = {"all": np.ones(len(images.pixels), bool)}
    few = dict(list((kinds or every).items())[:7])
    names = np.full(len(images.pixels), "picture", object)
    for name, mask in kinds.items():
        names[mask] = name
    for method, values in scores.items():
        parts = {name: values[mask] for name, mask in few.items()}
        line = (cuts[method], "threshold")
        title = f"Scores of {method}"
        score_histogram(parts, plots / f"scores-{method}.png", title=title, line=line)
        done.append((f"scores-{method}", title))
        top = np.argsort(-values, kind="stable")[:12]
        gallery(
            images.pixels[top], [f"{names[row]}\n{values[row]:.3g}" for row in top],
            plots / f"strangest-{method}.png", title=f"The strangest by {method}",
        )  # fmt: skip
        done.append((f"strangest-{method}", f"the strangest by {method}"))
    for method, detector in detectors.items():
        if detector.maps is None or not job.heat_maps:
            continue
        values = scores[method]
        order = _shown(values, kinds, job.heat_maps)
        maps = detector.maps(Seen(*(part[order] for part in seen)))
        low, high = float(np.quantile(maps, 0.05)), float(maps.max())
        overlays(
            images.pixels[order], maps, plots / f"heat-{method}.png",
            titles=[f"{names[row]}: {values[row]:.3g}" for row in order],
            title=f"Where {method} finds pictures strange", scale=(low, high),
            label="distance to normal",
        )  # fmt: skip
        done.append((f"heat-{method}", f"where {method} finds pictures strange"))
    return done


def _shown(scores: np.ndarray, kinds: Kinds, most: int) -> np.ndarray:
    """Return the rows to look at: of each kind in turn, the middle of its scores and around it."""
    if not kinds:
        return np.argsort(-scores, kind="stable")[:most]
    each = max(1, most // len(kinds))
    chosen: list[int] = []
    for mask in kinds.values():
        mine = np.flatnonzero(mask)
        ranked = mine[np.argsort(scores[mine], kind="stable")]
        places = np.linspace(0, len(ranked) - 1, min(each + 2, len(ranked)))[1:-1]
        chosen += [int(ranked[round(place)]) for place in places] or [int(ranked[0])]
    return np.array(chosen[:most])


def _table(
    found: dict[str, dict[str, Interval | float]], cuts: dict[str, float]
) -> list[dict[str, Any]]:
    return [
        {"method": name, "threshold": f"{cuts[name]:.4g}", **row} for name, row in found.items()
    ]


def _write(
    job: Anomaly,
    loaded: LoadedImages,
    stages: tuple[str, ...],
    rows: dict[str, PictureRows],
    detectors: dict[str, Detector],
    scores: dict[str, np.ndarray],
    cuts: dict[str, float],
    kinds: Kinds,
    found: dict[str, dict[str, Interval | float]],
    drawn: list[tuple[str, str]],
) -> None:
    folder, test = job.output_dir, rows["test"]
    save_detectors(job, detectors, cuts, stages, loaded.processor)
    write_json(folder / "metrics.json", {"test": found, "thresholds": cuts, "stages": list(stages)})
    names = [""] * test.size
    for kind, mask in kinds.items():
        names = [kind if inside else name for name, inside in zip(names, mask, strict=True)]
    numbers = np.asarray(test.table.rows) if len(test.table.rows) else np.arange(1, test.size + 1)
    with (folder / "scores.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "kind", *scores, *(f"strange_{name}" for name in scores)])
        for i in range(test.size):
            values = [f"{each[i]:.6g}" for each in scores.values()]
            marks = [int(each[i] > cuts[name]) for name, each in scores.items()]
            writer.writerow([int(numbers[i]), names[i], *values, *marks])
    shown = _table(found, cuts)
    what = "the classes " + ", ".join(job.normal) if job.normal else "every picture of the source"
    over = "pictures" if test.groups is None else f"{len(set(test.groups)):,} groups"
    text = [
        f"# What is strange in {pathlib.Path(job.data).name}",
        f"Normal is {what}. Features and patches are those of `{job.model}`, as they are: "
        "nothing was trained.",
        "\n".join(f"- {name}: {part.size:,} pictures" for name, part in rows.items()),
        f"Detectors were fitted on the first, thresholds set on the second so that "
        f"{job.false_alarms:.0%} of normal pictures are called strange there, and the third was "
        f"only measured. Size {' x '.join(map(str, loaded.processor.size))}"
        + (f"; patchcore reads {', '.join(stages)}" if "patchcore" in detectors else "")
        + ".",
        "## Test",
        f"With 95 % bootstrap intervals over {over}. A score says how unlike the normal pictures "
        "one is, not what is wrong with it; dirt, blur and another camera are strange too.",
        table_markdown(
            [
                {"measure": measure, **{name: row.get(measure) for name, row in found.items()}}
                for measure in next(iter(found.values()))
            ],
            ["measure", *found],
        ),
        table_markdown(
            [{"method": row["method"], "threshold": row["threshold"]} for row in shown],
            ["method", "threshold"],
        ),
        *[f"![{title}](plots/{name}.png)" for name, title in drawn],
    ]
    write_text(folder / "report.md", "\n\n".join(text) + "\n")


def _facts(job: Anomaly, loaded: LoadedImages, rows: dict[str, PictureRows]) -> dict[str, Any]:
    settings = dataclasses.asdict(job)
    for name in (
        "output_dir", "model", "data", "test_data", "pictures", "dataloader_num_workers",
    ):  # fmt: skip
        settings.pop(name)
    return {
        "recipe": job.command,
        "weights": loaded.report.sha256,
        "parts": {name: part.fingerprint for name, part in rows.items()},
        **settings,
    }
