"""From pictures with masks to decoded rows, split so that nothing is known twice."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np

from sftjax.data import (
    Labels,
    Processor,
    Table,
    hold_out,
    split_table,
)
from sftjax.data.image_sources import image_splits
from sftjax.data.masks import Masks, class_names, load_masks, read_masked
from sftjax.recipes.decoding import decoded
from sftjax.recipes.picture_rows import ALONE, PictureRows, tell_of_pictures
from sftjax.recipes.segment_job import Segment

DENSE = "dense"
"""The problem type of labels that are masks."""


class MaskRows(PictureRows):
    """One split of pictures with masks; labels are (N, H, W)."""

    @property
    def counts(self) -> np.ndarray:
        """(K,) how many pixels each class has."""
        assert self.labels is not None
        values = np.asarray(self.labels.values)
        return np.bincount(values[values >= 0], minlength=len(self.labels.names))

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of pixels and masks."""
        assert self.labels is not None
        digest = hashlib.sha256(self._digest.encode())
        digest.update(np.ascontiguousarray(self.labels.values).data)
        return digest.hexdigest()


def read_mask_parts(job: Segment, tell: Callable[[str], None]) -> dict[str, Table]:
    """Return the tables `train` and `evaluation`, nothing decoded yet.

    Raises:
      ValueError: if there are too few pictures, or groups, to learn from some and measure others.
    """
    columns, seed = job.masks, job.training.seed

    def read(source: str, split: str | None) -> Table:
        return read_masked(
            source, split, image=columns.image, mask=columns.mask, split_column=columns.split,
            plane=job.plane, every=job.every,
        )  # fmt: skip

    def split_of(source: str, names: tuple[str, ...]) -> str | None:
        found = image_splits(source, split_column=columns.split)
        return next((name for name in names if name in found), None)

    held = ("validation", "val", "test")
    first = read(job.data, split_of(job.data, ("train",)))
    group = mask_group(first, job)
    if job.eval_data is not None:
        tables = {"train": first, "evaluation": read(job.eval_data, split_of(job.eval_data, held))}
    elif (own := split_of(job.data, held)) is not None:
        tables = {"train": first, "evaluation": read(job.data, own)}
    else:
        units = len(first) if group is None else len(set(map(str, first[group])))
        if units < 2:
            what = "picture" if group is None else f"value of {group!r}"
            raise ValueError(
                f"{first.name} has one {what}, and two are needed to learn from one and measure on "
                "another; give more, or --eval-data"
            )
        share = job.validation_fraction
        tables = split_table(
            first, {"train": 1 - share, "evaluation": share}, seed, stratify=None, group=group
        )
    for name, table in tables.items():
        groups = f" of {len(set(map(str, table[group]))):,} {group}s" if group else ""
        tell(f"{name}: {len(table):,} pictures{groups}, {table.name}")
    return tables


def mask_group(table: Table, job: Segment) -> str | None:
    """Return the column of the groups, None if each picture stands alone."""
    if job.masks.group == ALONE:
        return None
    if job.masks.group is not None:
        table[job.masks.group]  # refused if it is not there
        return job.masks.group
    return "group" if "group" in table.columns else None


def without_held(job: Segment, train: Table) -> tuple[Table, Table]:
    """Return the training rows in two: to learn from, and for a method that looks at others."""
    group = mask_group(train, job)
    return hold_out(train, job.validation_fraction, job.training.seed + 1, group=group)


def masks_of(job: Segment, tables: Mapping[str, Table], size: tuple[int, int]) -> dict[str, Masks]:
    """Read the masks of every part; the training rows settle the classes.

    Raises:
      ValueError: naming masks that cannot be used, or training rows of a single class.
    """
    names = job.masks.labels or class_names(job.data)
    found: dict[str, Masks] = {}
    for name, table in tables.items():
        settled = found["train"].seen if found else ()
        names = found["train"].names if found else names
        found[name] = load_masks(table, size, names, seen=settled, ignore=job.masks.ignore)
    train = found["train"]
    if len(train.names) < 2 or len(np.unique(train.values[train.values >= 0])) < 2:
        raise ValueError(
            f"{tables['train'].name}: the masks hold a single class ({', '.join(train.names)}); "
            "there is nothing to tell apart"
        )
    return found


def load_mask_parts(
    job: Segment,
    tables: Mapping[str, Table],
    processor: Processor,
    tell: Callable[[str], None],
) -> dict[str, MaskRows]:
    """Decode pictures and masks of every part, and look for what two parts must not share.

    Raises:
      ValueError: naming unreadable pictures or masks, or pairs that leak.
    """
    images = decoded(job, tables, processor)
    group = mask_group(images["train"].table, job)
    tell_of_pictures(images, group, job.leaks, tell)
    read = {name: part.table for name, part in images.items()}
    masks = masks_of(job, read, processor.size)
    return {
        name: MaskRows(part, Labels(masks[name].values, masks[name].names, DENSE), group)
        for name, part in images.items()
    }
