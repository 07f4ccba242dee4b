"""Fine-tune a CNN or vision transformer to find a class for every pixel.

sftjax segment --model asset:efficientnet-lite0 --data asset:mni152-slices --image-size 96 \\
    --train last:3 --leaks tell --output-dir runs/s
"""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sftjax.core import Objective
from sftjax.data.augment_masks import masked_augmentation
from sftjax.evaluate import Interval, Retention, mask_overlays, table_markdown
from sftjax.models import Head
from sftjax.objectives import Apply, augmented, dense_classification
from sftjax.recipes.decoding import left_out_told, origin_told
from sftjax.recipes.image_models import LoadedImages
from sftjax.recipes.mask_rows import (
    MaskRows,
    load_mask_parts,
    masks_of,
    read_mask_parts,
    without_held,
)
from sftjax.recipes.mask_scores import MaskScorer, counts_of, dice_of
from sftjax.recipes.methods import METHODS, parse
from sftjax.recipes.one_run import (
    Ran,
    carry_out,
    closing,
    opening,
    tell_end,
    write_model,
    write_numbers,
)
from sftjax.recipes.picture_parts import picture_parts
from sftjax.recipes.prepare import Prepared
from sftjax.recipes.prepare_images import (
    REFERENCE,
    fraction_of,
    from_scratch,
    load_for,
    picture_facts,
)
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import write_text
from sftjax.recipes.segment_job import Segment
from sftjax.recipes.training import Tuned

QUICK = (8, 8)
"""Masks are read so small when only their classes are asked for."""


class Segmented(NamedTuple):
    """What the recipe found."""

    metrics: dict[str, Interval | float]
    """On the evaluation pictures, `eval_*`, with 95 % bootstrap intervals."""
    retention: Retention | None
    """None with --scratch."""
    tuned: Tuned
    folder: pathlib.Path


class PreparedMasks(NamedTuple):
    """A job on masks, read and decoded."""

    job: Segment
    """With what follows from --scratch filled in."""
    run: Prepared
    loaded: LoadedImages
    parts: dict[str, MaskRows]
    seen: tuple[int, ...]
    """The value in the source's masks of each class."""


def segment(job: Segment, tell: Callable[[str], None] = say) -> Segmented:
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    ready = prepare_masks(job, tell)
    job = ready.job
    evaluation = ready.parts["evaluation"]
    ran = carry_out(job, ready.run, tell, evaluation.groups)
    _write(job, ready, ran)
    tell_end(job, ran, tell)
    return Segmented(ran.metrics, ran.retention, ran.tuned, job.output_dir)


def prepare_masks(job: Segment, tell: Callable[[str], None]) -> PreparedMasks:
    """Read and decode pictures and masks, and load the model with a decoder.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    fraction_of(job)
    if job.scratch:
        job = from_scratch(job)
    tables = read_mask_parts(job, tell)
    if METHODS[parse(job.training.anchor)[0]].holds_out:
        tables["train"], tables["held_out"] = without_held(job, tables["train"])
    first = masks_of(job, {"train": tables["train"]}, QUICK)["train"]
    loaded = load_for(job, Head("segment", first.names), tell, whole=True)
    processor = loaded.processor
    augment = masked_augmentation(job.augment, processor) if job.augment else None
    rows = load_mask_parts(job, tables, processor, tell)
    held_out = rows.pop("held_out", None)

    def objective(apply: Apply) -> Objective:
        plain = dense_classification(
            apply, dropout=job.training.dropout, dice_weight=job.dice_weight, background=False
        )
        return plain if augment is None else augmented(plain, augment)

    make = functools.partial(
        picture_parts, loaded.model, objective, processor=processor, statistics=job.policy
    )
    run = Prepared(
        loaded.model,
        loaded.params,
        loaded.report,
        "",
        rows["train"],
        held_out,
        rows["evaluation"],
        rows["evaluation"].first(REFERENCE),
        make,
        "single-label",
        picture_facts(job, "masks", loaded, rows),
        redrawn=bool(job.augment),
        scorer=MaskScorer,
    )
    return PreparedMasks(job, run, loaded, rows, first.seen)


def _write(job: Segment, ready: PreparedMasks, ran: Ran) -> None:
    folder, rows = job.output_dir, ready.parts["evaluation"]
    corrupt = [(bad.name, bad.reason) for p in ready.parts.values() for bad in p.images.corrupt]
    adapted = write_model(job, ready.run, ran)
    write_numbers(folder, ran, corrupt=corrupt, mask_values=list(ready.seen))
    each = dice_each(ran.outputs, rows)
    drawn = _draw(job, ran.outputs, rows, each)
    over = "pictures" if rows.groups is None else f"{len(set(rows.groups)):,} groups"
    text = [
        *opening(job, ran),
        *_about(job, ready, corrupt),
        f"## Evaluation\n\nWith 95 % bootstrap intervals over {over}. Dice is over the pixels of "
        "all evaluation pictures together, at the size that the model sees; `eval_dice` is the "
        "mean over the classes but the background.",
        table_markdown(
            [{"metric": name, "value": value} for name, value in ran.metrics.items()],
            ["metric", "value"],
        ),
        *([f"![masks](plots/{drawn})"] if drawn else []),
        *closing(ran, adapted),
    ]
    write_text(folder / "report.md", "\n\n".join(text) + "\n")


def dice_each(found: np.ndarray, rows: MaskRows) -> np.ndarray:
    """Return the mean Dice of each picture over the classes that are there or found but 0."""
    assert rows.labels is not None
    counts = counts_of(found, np.asarray(rows.labels.values), len(rows.labels.names))
    each = np.stack([dice_of(one)[1:] for one in counts])
    there = ~np.isnan(each)
    total = np.where(there, each, 0.0).sum(1)
    return np.where(there.any(1), total / np.maximum(there.sum(1), 1), np.nan)


def _draw(job: Segment, found: np.ndarray, rows: MaskRows, each: np.ndarray) -> str:
    """Draw pictures from the worst to the best; return the file's name."""
    known = np.flatnonzero(~np.isnan(each))
    if not job.overlays or not len(known):
        return ""
    ranked = known[np.argsort(each[known], kind="stable")]
    chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, job.overlays).round().astype(int))]
    assert rows.labels is not None
    mask_overlays(
        rows.images.pixels[chosen], np.asarray(rows.labels.values)[chosen], found[chosen],
        rows.labels.names, job.output_dir / "plots" / "masks.png",
        titles=[f"Dice {each[row]:.2f}" for row in chosen],
        title="From the worst to the best evaluation picture",
    )  # fmt: skip
    return "masks.png"


def _about(job: Segment, ready: PreparedMasks, corrupt: list[tuple[str, str]]) -> list[str]:
    names, processor = ready.loaded.model.head.labels, ready.loaded.processor
    lines = []
    for name, part in ready.parts.items():
        of = f" of {len(set(part.groups)):,} groups" if part.groups else ""
        shares = part.counts / max(part.counts.sum(), 1)
        pixels = ", ".join(f"{n} {share:.1%}" for n, share in zip(names, shares, strict=True))
        lines.append(f"- {name}: {part.size:,} pictures{of}; pixels: {pixels}")
    values = ", ".join(f"{value} {name}" for value, name in zip(ready.seen, names, strict=True))
    lines.append(f"- values in the masks: {values}")
    lines.append(
        f"- size {' x '.join(map(str, processor.size))}; augmentation: "
        f"{', '.join(job.augment) or 'none'}; loss: cross-entropy and {job.dice_weight:g} Dice"
        + ("; random weights (--scratch)" if job.scratch else "")
    )
    lines += [*origin_told(job.data), *left_out_told(corrupt)]
    return ["## Pictures", "\n".join(lines)]
