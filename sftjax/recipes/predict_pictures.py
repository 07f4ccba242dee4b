"""Predict the class of pictures with a saved model, calibrated where its run calibrated it.

sftjax predict runs/d/model --data new-scans/
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sftjax.data import Table, load_images, read_images
from sftjax.data.decode import IMAGE_ENDINGS, name_of
from sftjax.evaluate import predict, softmax, table, write_predictions
from sftjax.hub.config import read_config
from sftjax.hub.source import find_folder
from sftjax.models.image_model import IMAGE_FAMILIES
from sftjax.recipes.adapter_folder import head_of, is_adapter, load_adapted
from sftjax.recipes.image_models import load_images_model
from sftjax.recipes.judging import Judge, load_judge
from sftjax.recipes.label_judge import SEVERAL, LabelJudge
from sftjax.recipes.named_models import folder_of
from sftjax.recipes.picture_parts import normalizing
from sftjax.recipes.picture_rows import PictureRows
from sftjax.recipes.predict_job import Predict
from sftjax.recipes.predict_labels import tell_labels
from sftjax.recipes.predict_masks import predict_masks
from sftjax.recipes.progress import say
from sftjax.recipes.streams import in_order


def reads_pictures(name: str) -> bool:
    """Tell whether a model, or an adapter's base, reads pictures."""
    if is_adapter(name):
        head = head_of(name)
        return head is not None and head.kind in ("image", "segment")
    folder = folder_of(name)
    if pathlib.Path(folder).is_file():
        return True  # a bare file of weights: only models of images are read from such
    home = find_folder(folder)
    if not (home / "config.json").is_file():
        return True
    return read_config(home).get("model_type") in IMAGE_FAMILIES


def predict_pictures(job: Predict, tell: Callable[[str], None] = say) -> np.ndarray:
    """Predict, and print or write what came out.

    Returns:
      (N, C) logits; or (N, H, W) classes of pixels, at the size that the model sees.

    Raises:
      ValueError: if there are no pictures, one cannot be read, or the model has no classes.
    """
    if job.data is None or job.text:
        raise ValueError(
            f"{job.model} reads pictures and no --text; say where they are with --data"
        )
    if is_adapter(job.model):
        model, apply, params, report, _ = load_adapted(job.model, job.base)
        processor = load_images_model(report.source, model.head).processor
    else:
        model, params, report, processor = load_images_model(job.model)
        apply = model.apply
    if model.head.kind == "segment":
        return predict_masks(job, model, apply, params, processor, tell)
    if model.head.kind != "image":
        raise ValueError(
            f"{job.model} has a {model.head.kind} head; predict needs one of classes, as "
            "`sftjax images` saves it"
        )
    images = load_images(pictures_at(job.data), processor)
    rows = PictureRows(images, None)
    seen = normalizing(processor)
    run = jax.jit(lambda params, batch: apply(params, seen(batch), None))
    logits = predict(run, params, in_order(rows, job.batch_size), rows.size)
    judge, names = load_judge(job.model), model.head.labels
    files = [name_of(reference) for reference in images.table["image"]]
    if model.head.problem_type == SEVERAL:
        assert not isinstance(judge, Judge)
        tell_labels(job, logits, files, names, judge, tell)
        return logits
    assert not isinstance(judge, LabelJudge)
    if judge is None:
        p = softmax(logits)
    else:
        p = judge.probabilities(logits)
        tell("probabilities, flags and sets as calibrated (judgement.json); for research only")
    if job.output is not None:
        write_predictions(
            job.output, np.arange(1, len(files) + 1), np.log(np.maximum(p, 1e-300)), None, names,
            text=files,
        )  # fmt: skip
        tell(f"{len(files):,} predictions: {job.output}")
        return logits
    lines = _lines(files, logits, p, names, judge)
    tell(table(lines, list(lines[0])))
    return logits


def pictures_at(where: str) -> Table:
    """Return a table of one picture, of a folder of pictures, or of any source of pictures.

    Raises:
      ValueError: if there is no picture.
    """
    path = pathlib.Path(where).expanduser()
    if path.suffix.lower() in IMAGE_ENDINGS and path.is_file():
        return Table({"image": [str(path)]}, where)
    if path.is_dir():
        flat = [str(p) for p in sorted(path.iterdir()) if p.suffix.lower() in IMAGE_ENDINGS]
        if flat:
            return Table({"image": flat}, where)
    return read_images(where)


def _lines(
    files: list[str], logits: np.ndarray, p: np.ndarray, names: tuple[str, ...], judge: Judge | None
) -> list[dict[str, Any]]:
    chosen = logits.argmax(1)
    lines: list[dict[str, Any]] = [
        {"picture": file, "prediction": names[k], "probability": float(row[k])}
        for file, k, row in zip(files, chosen, p, strict=True)
    ]
    if judge is None:
        return lines
    flags = judge.flags(p)
    sets = None if judge.conformal is None else judge.conformal.sets(p, never_empty=True)
    for number, line in enumerate(lines):
        line["flagged"] = ", ".join(name for name, marked in flags.items() if marked[number])
        if sets is not None:
            inside = [n for n, member in zip(names, sets[number], strict=True) if member]
            line["set"] = ", ".join(inside)
    return lines
