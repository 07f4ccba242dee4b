"""Detectors of strange pictures in a run's folder, and what they say of new pictures.

sftjax predict runs/strange --data new-pictures/
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sftjax.data import Processor, load_images, processor_config, processor_of
from sftjax.data.decode import name_of
from sftjax.evaluate import overlays, table
from sftjax.hub import TensorFile, write_tensor_file
from sftjax.models import Head
from sftjax.recipes.anomaly_job import Anomaly
from sftjax.recipes.detectors import OF_LOGITS, STATES, Detector, Seen, Viewer, detector_of
from sftjax.recipes.image_models import load_images_model
from sftjax.recipes.picture_rows import PictureRows
from sftjax.recipes.predict_job import Predict
from sftjax.recipes.predict_masks import pictures_of
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import write_json
from sftjax.recipes.streams import in_order

FACTS = "detectors.json"
TENSORS = "detectors.safetensors"
SHOWN = 9
"""At most so many pictures, the strangest, are drawn with their heat maps."""


def save_detectors(
    job: Anomaly,
    detectors: Mapping[str, Detector],
    thresholds: Mapping[str, float],
    stages: tuple[str, ...],
    processor: Processor,
) -> None:
    """Write what detectors keep, and how pictures reach them, into the run's folder."""
    tensors = {
        f"{name}/{field}": np.asarray(value)
        for name, detector in detectors.items()
        if name in STATES
        for field, value in detector.state._asdict().items()
    }
    if tensors:
        write_tensor_file(job.output_dir / TENSORS, tensors)
    # A folder by its whole path: the run may be asked from elsewhere.
    here = pathlib.Path(job.model)
    write_json(
        job.output_dir / FACTS,
        {
            "model": str(here.absolute()) if here.exists() else job.model,
            "methods": list(detectors),
            "thresholds": dict(thresholds),
            "stages": list(stages),
            "neighbours": job.neighbours,
            "processor": processor_config(processor),
            "false_alarms": job.false_alarms,
        },
    )


def has_detectors(name: str) -> bool:
    """Tell whether a folder is that of an `anomaly` run."""
    return (pathlib.Path(name).expanduser() / FACTS).is_file()


def load_detectors(folder: pathlib.Path) -> tuple[dict[str, Detector], dict[str, Any]]:
    """Return the detectors of a run, and its facts.

    Raises:
      ValueError: if a file is missing or is of another run.
    """
    facts = json.loads((folder / FACTS).read_text("utf8"))
    kept = [name for name in facts["methods"] if name in STATES]
    if kept and not (folder / TENSORS).is_file():
        raise ValueError(f"{folder} has {FACTS} and no {TENSORS}; run sftjax anomaly again")
    tensors = TensorFile(folder / TENSORS) if kept else {}
    detectors = {}
    for name in facts["methods"]:
        state: Any = {}
        if name in STATES:
            kind = STATES[name]
            lacking = [f for f in kind._fields if f"{name}/{f}" not in tensors]
            if lacking:
                raise ValueError(
                    f"{folder / TENSORS} has no {name}/{lacking[0]}, so it is not the file that "
                    f"{FACTS} beside it tells of; run sftjax anomaly again"
                )
            state = kind(*(jnp.asarray(tensors[f"{name}/{f}"]) for f in kind._fields))
        detectors[name] = detector_of(name, state, facts["neighbours"])
    return detectors, facts


def predict_strange(job: Predict, tell: Callable[[str], None] = say) -> np.ndarray:
    """Score new pictures with the detectors of an `anomaly` run.

    Returns:
      (N, M) scores, a column a method; higher is stranger.

    Raises:
      ValueError: if there are no pictures, or one cannot be read.
    """
    if job.data is None or job.text:
        raise ValueError(
            f"{job.model} reads pictures and no --text; say where they are with --data"
        )
    folder = pathlib.Path(job.model).expanduser()
    detectors, facts = load_detectors(folder)
    head = None if set(detectors) & set(OF_LOGITS) else Head("features")
    processor = processor_of(facts["processor"])
    loaded = load_images_model(facts["model"], head, size=processor.size[0])
    viewer = Viewer(loaded.model, loaded.params, list(detectors), facts["stages"])
    images = load_images(pictures_of(job.data), processor)
    rows = PictureRows(images, None)
    seen = viewer(in_order(rows, job.batch_size), rows.size)
    scores = {name: detector.score(seen) for name, detector in detectors.items()}
    cuts = facts["thresholds"]
    lines: list[dict[str, Any]] = [
        {
            "picture": name_of(reference),
            **{name: f"{values[row]:.6g}" for name, values in scores.items()},
            "strange by": ", ".join(n for n, v in scores.items() if v[row] > cuts[n]) or "-",
        }
        for row, reference in enumerate(images.table["image"])
    ]
    if job.output is None:
        tell(table(lines, list(lines[0])))
    else:
        _write(job.output, lines, tell)
        _heat(job.output.parent, detectors, seen, scores, rows, tell)
    tell(
        f"thresholds let {facts['false_alarms']:.0%} of normal pictures be called strange; a score "
        "says how unlike normal pictures one is, not what is wrong with it"
    )
    return np.stack(list(scores.values()), 1)


def _write(path: pathlib.Path, lines: list[dict[str, Any]], tell: Callable[[str], None]) -> None:
    import csv

    if path.suffix != ".csv":
        raise ValueError(f"scores go to a .csv file, not to {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    tell(f"{len(lines):,} scores: {path}")


def _heat(
    folder: pathlib.Path,
    detectors: Mapping[str, Detector],
    seen: Seen,
    scores: Mapping[str, np.ndarray],
    rows: PictureRows,
    tell: Callable[[str], None],
) -> None:
    for name, detector in detectors.items():
        if detector.maps is None:
            continue
        top = np.argsort(-scores[name], kind="stable")[:SHOWN]
        maps = detector.maps(Seen(*(part[top] for part in seen)))
        drawn = overlays(
            rows.images.pixels[top], maps, folder / f"heat-{name}.png",
            titles=[f"{scores[name][row]:.3g}" for row in top],
            scale=(float(np.quantile(maps, 0.05)), float(maps.max())), label="distance to normal",
        )  # fmt: skip
        tell(f"the strangest by {name}: {drawn}")
