"""What a run on pictures needs before it trains: pictures, a model, an objective, its identity."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from sftjax.core import Objective
from sftjax.data import augmentation, hold_out
from sftjax.models import Head
from sftjax.objectives import (
    Apply,
    augmented,
    classification,
    effective_number_weights,
    focal_loss,
    labelled,
    logit_adjusted,
)
from sftjax.recipes.image_models import LoadedImages, load_images_model
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.many_labels import objective_of_labels
from sftjax.recipes.mask_rows import MaskRows
from sftjax.recipes.methods import METHODS, parse
from sftjax.recipes.picture_parts import picture_parts
from sftjax.recipes.picture_rows import (
    PictureRows,
    group_of,
    load_parts,
    picture_labels,
    read_parts,
)
from sftjax.recipes.prepare import Prepared, quantized
from sftjax.recipes.segment_job import Segment

J = TypeVar("J", TuneImages, Segment)

REFERENCE = 1000
"""At most so many pictures measure what the features keep."""


class PreparedImages(NamedTuple):
    """A job on pictures, read and decoded."""

    job: TuneImages
    """With what follows from --scratch filled in."""
    run: Prepared
    loaded: LoadedImages
    parts: dict[str, PictureRows]
    """Every part, by name; the last is the one to evaluate on, unless the recipe says otherwise."""


def prepare_images(
    job: TuneImages,
    tell: Callable[[str], None],
    *,
    shares: Mapping[str, float] | None = None,
    chosen_on: str = "evaluation",
    least: int = 0,
) -> PreparedImages:
    """Read and decode the pictures, and load the model.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.
      shares: the parts and their shares, as `read_parts` takes them; train and evaluation if None.
      chosen_on: the part that picks the best weights.
      least: how many pictures of each class every part must have.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    job = filled_in(job)
    fraction, seed = fraction_of(job), job.training.seed
    shares = shares or {"train": 1 - fraction, "evaluation": fraction}
    tables = read_parts(job, shares, tell)
    names = list(job.pictures.labels) or None
    labels = picture_labels(tables["train"], job.pictures, names)
    if METHODS[parse(job.training.anchor)[0]].holds_out:
        group = group_of(tables["train"], job.pictures)
        tables["train"], tables["held_out"] = hold_out(
            tables["train"], fraction, seed + 1, stratify=job.pictures.label, group=group
        )
    loaded = load_for(job, Head("image", labels.names, labels.problem_type), tell)
    rows = load_parts(job, tables, loaded.processor, labels, tell, least=least)
    held_out = rows.pop("held_out", None)
    make = functools.partial(
        picture_parts,
        loaded.model,
        objective_of_images(job, loaded, rows["train"]),
        processor=loaded.processor,
        statistics=job.policy,
    )
    run = Prepared(
        loaded.model,
        loaded.params,
        loaded.report,
        "",
        rows["train"],
        held_out,
        rows[chosen_on],
        rows[chosen_on].first(REFERENCE),
        make,
        job.pictures.task,
        picture_facts(job, "pictures", loaded, rows),
        redrawn=bool(job.augment),
    )
    return PreparedImages(job, run, loaded, rows)


def filled_in(job: TuneImages) -> TuneImages:
    """Return the job with what follows from its options said, and refuse what goes not together.

    Raises:
      ValueError: naming the two options of which one must go.
    """
    if job.augment and job.keep_prefix:
        raise ValueError(
            "--keep-prefix computes the frozen blocks once, and --augment gives them other "
            "pictures at every update; leave one of the two out"
        )
    if job.imbalance != "none" and job.label_smoothing_factor and job.imbalance == "focal":
        raise ValueError("--imbalance focal takes no --label-smoothing-factor; leave one out")
    if job.pictures.task == "multi-label" and job.label_smoothing_factor:
        raise ValueError(
            "--label-smoothing-factor spreads the target over classes of which one is true; with "
            "--task multi-label leave it out"
        )
    return from_scratch(job) if job.scratch else job


def from_scratch(job: J) -> J:
    """Return a job without pretrained weights: all of it moves and nothing is held.

    Raises:
      ValueError: naming an option that keeps to pretrained weights.
    """
    training = job.training
    for name in ("adapter", "phases", "anchor"):
        if getattr(training, name) and getattr(training, name) != "none":
            raise ValueError(
                f"--scratch has no pretrained weights, and --{name} keeps to them; leave one out"
            )
    train = training.train or ("all",)
    return dataclasses.replace(
        job, training=dataclasses.replace(training, train=train, anchor="none")
    )


def fraction_of(job: TuneImages | Segment) -> float:
    """Return the share of the rows that is held out to evaluate on.

    Raises:
      ValueError: if it is none.
    """
    fraction = job.validation_fraction
    if not 0 < fraction < 1:
        raise ValueError(f"--validation-fraction is {fraction:g}; it is a share between 0 and 1")
    return fraction


def load_for(
    job: TuneImages | Segment, head: Head, tell: Callable[[str], None], *, whole: bool = False
) -> LoadedImages:
    """Load the model of a job on pictures, and tell what was loaded and how it will read.

    Args:
      job: what to do.
      head: to put on the trunk.
      tell: is given both lines.
      whole: as `load_images_model` takes it.
    """
    loaded = load_images_model(
        job.model,
        head,
        size=job.image_size,
        key=jax.random.key(job.training.seed),
        dtype=jnp.bfloat16 if job.training.bf16 else None,
        scratch=job.scratch,
        quantize=quantized(job.training),
        whole=whole,
    )
    tell(str(loaded.report))
    size = " x ".join(map(str, loaded.processor.size))
    tell(f"pictures are {size}; batch norms: --statistics {job.policy}")
    return loaded


def picture_facts(
    job: TuneImages | Segment,
    columns: str,
    loaded: LoadedImages,
    rows: Mapping[str, PictureRows | MaskRows],
) -> dict[str, Any]:
    """Return what makes a run on pictures the one it is; `columns` is the job's field of them."""
    settings = dataclasses.asdict(job)
    beside = ("output_dir", "model", "data", "eval_data", columns, "training")
    for name in (*beside, "dataloader_num_workers"):
        settings.pop(name)
    return {
        "recipe": job.command,
        "weights": loaded.report.sha256,
        "parts": {name: part.fingerprint for name, part in rows.items()},
        "classes": list(loaded.model.head.labels),
        "devices": job.training.row_devices,
        **settings,
        "statistics": job.policy,
        **dataclasses.asdict(getattr(job, columns)),
        **job.training.facts(),
    }


def objective_of_images(
    job: TuneImages, loaded: LoadedImages, train: PictureRows
) -> Callable[[Apply], Objective]:
    """Return the objective of any function that gives logits, its augmentation in the step."""
    smoothing, dropout, counts = job.label_smoothing_factor, job.training.dropout, train.counts
    names = loaded.model.head.labels
    augment = augmentation(job.augment, loaded.processor, len(names)) if job.augment else None

    def plain(apply: Apply) -> Objective:
        if job.pictures.task == "multi-label":
            return objective_of_labels(job, train.size, counts)(apply)
        if job.imbalance == "logit-adjusted":
            loss = functools.partial(logit_adjusted, counts=counts, label_smoothing=smoothing)
            return labelled(apply, loss, dropout=dropout)
        if job.imbalance == "focal":
            return labelled(apply, focal_loss, dropout=dropout)
        weights = effective_number_weights(counts) if job.imbalance == "class-balanced" else None
        return classification(
            apply, dropout=dropout, label_smoothing=smoothing, class_weights=weights
        )

    if augment is None:
        return plain
    return lambda apply: augmented(plain(apply), augment)
