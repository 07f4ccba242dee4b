"""From a source of pictures to decoded rows and labels, split so that nothing is known twice."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sftjax.data import (
    ImageBatches,
    Images,
    Labels,
    Processor,
    Table,
    classes,
    hold_out,
    image_splits,
    multi_label,
    read_images,
    refuse_leaks,
    split_table,
)
from sftjax.data.holdout import permutation
from sftjax.recipes.decoding import decoded
from sftjax.recipes.images_job import PictureColumns, TuneImages

SEPARATOR = "|"
"""Between the labels of a picture that has several."""
ALONE = "none"
"""In place of a group column: each picture stands alone."""


class PictureRows:
    """One split of pictures, ready to be batched."""

    mask = None
    """Pictures have no tokens to mark (see `train.keep_prefix`)."""

    def __init__(self, images: Images, labels: Labels | None, group: str | None = None):
        """Take decoded pictures, their labels, and the column of their groups."""
        self.images, self.labels, self._group = images, labels, group

    @property
    def table(self) -> Table:
        """The rows as they were read."""
        return self.images.table

    @property
    def size(self) -> int:
        """How many pictures."""
        return len(self.images.pixels)

    @property
    def groups(self) -> list[str] | None:
        """The group of each picture; None where each stands alone."""
        return None if self._group is None else [str(value) for value in self.table[self._group]]

    @property
    def counts(self) -> np.ndarray:
        """(C,) how many pictures each class, or label, has."""
        assert self.labels is not None
        values = np.asarray(self.labels.values)
        if values.ndim == 2:
            return values.sum(0).astype(np.int64)
        return np.bincount(values, minlength=len(self.labels.names))

    @property
    def identity(self) -> dict[str, Any]:
        """What the pixels are, wherever they were read from."""
        pixels, processor = self.images.pixels, self.images.processor
        return {"pixels": self._digest, "shape": list(pixels.shape), "processor": list(processor)}

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.images.pixels).data).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of pixels and labels."""
        values = None if self.labels is None else np.asarray(self.labels.values).tolist()
        facts = json.dumps([self.identity, values], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    def first(self, most: int) -> "PictureRows":
        """Return at most so many of the rows, the first."""
        if self.size <= most:
            return self
        i, labels = self.images, self.labels
        few = Images(i.pixels[:most], i.processor, i.table.take(range(most)))
        own = None if labels is None else labels._replace(values=labels.values[:most])
        return PictureRows(few, own, self._group)

    def batches(self, size: int, *, seed: int = 0, shuffle: bool = False) -> ImageBatches:
        """Cut the rows into batches; shuffled ones hold raw pixels, which the step normalizes."""
        values = None if self.labels is None else np.asarray(self.labels.values)
        return ImageBatches(
            self.images, values, size, seed=seed, shuffle=shuffle, normalized=not shuffle
        )


def group_of(table: Table, columns: PictureColumns) -> str | None:
    """Return the column of the groups, None if each picture stands alone.

    >>> group_of(Table({"image": ["a.png"], "group": ["p"]}, "one"), PictureColumns())
    'group'
    """
    if columns.group == ALONE:
        return None
    if columns.group is not None:
        table[columns.group]  # refused if it is not there
        return columns.group
    return "group" if "group" in table.columns else None


def picture_labels(
    table: Table, columns: PictureColumns, names: Sequence[str] | None = None, *, least: int = 2
) -> Labels:
    """Return one class a picture, or any number of labels, as the columns say.

    >>> several = PictureColumns(task="multi-label")
    >>> picture_labels(Table({"label": ["a|b", "", "b"]}, "three"), several).values.tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    """
    if columns.task == "single-label":
        return classes(table, columns.label, names, least=least)
    return multi_label(table, columns.label, names, separator=SEPARATOR)


def labels_of_row(value: Any, columns: PictureColumns) -> list[str]:
    """Return the names in one cell of labels.

    >>> labels_of_row("a|b", PictureColumns(task="multi-label"))
    ['a', 'b']
    """
    if columns.task == "single-label":
        return [str(value)]
    if isinstance(value, str):
        return [name.strip() for name in value.split(SEPARATOR) if name.strip()]
    return [str(name) for name in np.atleast_1d(value)]


def read_parts(
    job: TuneImages, parts: Mapping[str, float], tell: Callable[[str], None]
) -> dict[str, Table]:
    """Return the tables of a run, nothing decoded yet.

    The source's own splits are taken where it has them (`evaluation` is its validation or test
    split). What is missing is held out, by class and group: `calibration` from half of the
    validation rows, the others from the training rows.

    Args:
      job: names the source.
      parts: name -> share, where nothing is split; "train" first.
      tell: is given how many rows and groups each part has.

    Raises:
      ValueError: if a class has too few pictures, or groups, to be in every part.
    """
    columns, seed = job.pictures, job.training.seed
    found = image_splits(job.data, split_column=columns.split)

    def read(source: str, split: str | None) -> Table:
        return read_images(source, split, image=columns.image, split_column=columns.split)

    def called(name: str) -> str | None:
        names = {"evaluation": ("validation", "val", "test"), "validation": ("validation", "val")}
        return next((split for split in names.get(name, (name,)) if split in found), None)

    first = read(job.data, called("train")) if found else read(job.data, None)
    group = group_of(first, columns)
    tables = {"train": first}
    last = list(parts)[-1]
    if job.eval_data is not None:
        kinds = image_splits(job.eval_data, split_column=columns.split)
        held = next((s for s in ("test", "validation", "val") if s in kinds), None)
        tables[last] = read(job.eval_data, held)
    for name in parts:
        if name not in tables and name != "train" and (split := called(name)) is not None:
            tables[name] = read(job.data, split)
    missing = [name for name in parts if name not in tables]
    _enough(first, columns, group, 1 + len(missing))
    if missing == ["calibration"] and "validation" in tables:
        kept, held = hold_out(tables["validation"], 0.5, seed, stratify=columns.label, group=group)
        tables |= {"validation": kept, "calibration": held}
    elif missing:
        shares = {name: parts[name] for name in ("train", *missing)}
        total = sum(shares.values())
        shares = {name: share / total for name, share in shares.items()}
        tables |= split_table(first, shares, seed, stratify=columns.label, group=group)
    tables = {name: tables[name] for name in parts}
    if job.rows_per_class and columns.task == "multi-label":
        raise ValueError(
            "--rows-per-class draws pictures of one class each, and with --task multi-label a "
            "picture has several; leave one of the two out"
        )
    if job.rows_per_class:
        tables["train"] = drawn(tables["train"], columns.label, job.rows_per_class, seed)
    if job.eval_rows and len(tables[last]) > job.eval_rows:
        order = permutation(len(tables[last]), seed)[: job.eval_rows]
        tables[last] = tables[last].take(np.sort(order))
    for name, table in tables.items():
        groups = f" of {len(set(table[group])):,} {group}s" if group else ""
        tell(f"{name}: {len(table):,} pictures{groups}, {table.name}")
    return tables


def drawn(table: Table, label: str, each: int, seed: int) -> Table:
    """Return so many rows of each class, drawn by a seed.

    Raises:
      ValueError: if a class has too few rows.

    >>> table = Table({"label": ["a", "b", "a", "b"]}, "four")
    >>> drawn(table, "label", 1, seed=0)["label"]
    ['a', 'b']
    """
    labels = np.asarray([str(value) for value in table[label]])
    chosen = []
    for number, name in enumerate(np.unique(labels)):
        mine = np.flatnonzero(labels == name)
        if len(mine) < each:
            raise ValueError(
                f"--rows-per-class {each}: class {str(name)!r} has {len(mine)} rows in "
                f"{table.name}; ask for fewer, or leave the class out"
            )
        chosen.append(mine[permutation(len(mine), seed, number)[:each]])
    return table.take(np.sort(np.concatenate(chosen)))


def load_parts(
    job: TuneImages,
    tables: Mapping[str, Table],
    processor: Processor,
    labels: Labels,
    tell: Callable[[str], None],
    *,
    least: int = 1,
) -> dict[str, PictureRows]:
    """Decode the pictures of every part and look for what two parts must not share.

    Args:
      job: says how strict to be.
      tables: from `read_parts`; "train" first.
      processor: of the model.
      labels: of the training rows; their names are those of all parts.
      tell: is given the pictures that could not be read, and the leaks where they are told.
      least: how many pictures of each class every part must have; 0 asks for none.

    Raises:
      ValueError: naming unreadable pictures, pairs that leak, or a class that a part lacks.
    """
    images = decoded(job, tables, processor)
    group = group_of(images["train"].table, job.pictures)
    tell_of_pictures(images, group, job.leaks, tell)
    rows = {
        name: PictureRows(
            part,
            picture_labels(part.table, job.pictures, labels.names, least=1),
            group,
        )
        for name, part in images.items()
    }
    for name, part in rows.items():
        lacking = [n for n, count in zip(labels.names, part.counts, strict=True) if count < least]
        if lacking:
            raise ValueError(
                f"{name} has fewer than {least} pictures of class {', '.join(map(repr, lacking))} "
                f"({tables[name].name}); give more of them, or leave the class out"
            )
    return rows


def tell_of_pictures(
    images: Mapping[str, Images], group: str | None, leaks: str, tell: Callable[[str], None]
) -> None:
    """Say which pictures were left out, and refuse (or tell) what two parts must not share.

    Raises:
      ValueError: showing the pairs, unless `leaks` is "tell".
    """
    bad = [f"{name}: {e.name}: {e.reason}" for name, part in images.items() for e in part.corrupt]
    if bad:
        tell(f"{len(bad)} pictures cannot be read and are left out:\n" + "\n".join(bad))
    try:
        refuse_leaks(images, group=group)
    except ValueError as error:
        if leaks == "refuse":
            raise ValueError(f"{error}\nOr go on knowingly: --leaks tell") from error
        tell(str(error))


def _enough(table: Table, columns: PictureColumns, group: str | None, parts: int) -> None:
    """Refuse a class that cannot be both learned and measured."""
    labels = [labels_of_row(value, columns) for value in table[columns.label]]
    units: Any = range(len(table)) if group is None else table[group]
    for name in dict.fromkeys(label for row in labels for label in row):
        rows = [row for row, own in enumerate(labels) if name in own]
        have = len({str(units[row]) for row in rows})
        if have < max(parts, 2):
            what = "picture" if group is None else group
            raise ValueError(
                f"{table.locate(rows)}: class {name!r} has {have} {what}{'s' * (have > 1)}, and "
                f"{max(parts, 2)} are needed to learn it and to measure it on others; give more, "
                "or leave the class out"
            )
