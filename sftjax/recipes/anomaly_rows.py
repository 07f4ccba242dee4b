"""The rows of a search for anomalies: to fit on, to set thresholds on, to test."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sftjax.data import Table, hold_out, image_splits, read_images
from sftjax.data.holdout import permutation
from sftjax.recipes.anomaly_job import Anomaly
from sftjax.recipes.picture_rows import group_of

SHARES = (0.6, 0.2, 0.2)
"""Of normal pictures: fitted on, for the threshold, and tested."""

Kinds = dict[str, np.ndarray]
"""Kind -> which test rows are of it."""


def normal_and_others(
    job: Anomaly, tell: Callable[[str], None]
) -> tuple[dict[str, Table], str | None]:
    """Return the rows to fit on, for the threshold and to test, and the column of groups."""
    columns = job.pictures
    found = image_splits(job.data, split_column=columns.split)

    def read(source: str, split: str | None) -> Table:
        return read_images(source, split, image=columns.image, split_column=columns.split)

    first = read(job.data, "train" if found else None)
    group = group_of(first, columns)
    test = None
    if job.test_data is not None:
        kinds = image_splits(job.test_data, split_column=columns.split)
        test = read(job.test_data, "test" if "test" in kinds else None)
    elif "test" in found:
        test = read(job.data, "test")
    if test is None and not job.normal:
        raise ValueError(
            "all pictures of --data are normal, as no --normal class is named, and there is "
            "nothing to test: give --test-data, or name the normal classes"
        )
    normal = _normal(job, first)
    if not normal.any():
        raise ValueError(
            f"{first.name} has no picture of {', '.join(job.normal)}; its classes are "
            f"{', '.join(sorted({str(v) for v in first[columns.label]}))}"
        )
    fit, check, held = SHARES
    own = first.take(np.flatnonzero(normal))
    if test is None:
        own, rest = hold_out(own, held, job.seed, group=group)
        others = np.flatnonzero(~normal)
        if group is not None:
            used = {str(value) for value in own[group]}
            apart = [row for row in others if str(first[group][int(row)]) not in used]
            if len(apart) < len(others):
                tell(
                    f"{len(others) - len(apart)} strange pictures of {len(others)} share a {group} "
                    "with normal ones that are fitted on, and are left out of the test"
                )
            others = np.asarray(apart, np.int64)
        numbers = {int(row) for row in np.asarray(rest.rows)}
        all_rows = np.asarray(first.rows) if len(first.rows) else np.arange(1, len(first) + 1)
        mine = [row for row in range(len(first)) if int(all_rows[row]) in numbers]
        test = first.take(np.sort(np.concatenate([mine, others]).astype(np.int64)))
    own, threshold = hold_out(own, check / (fit + check), job.seed + 1, group=group)
    tables = {
        "normal": _few(own, job.fit_rows, job.seed),
        "threshold": _few(threshold, job.fit_rows, job.seed),
        "test": _few(test, job.test_rows, job.seed),
    }
    for name, table in tables.items():
        tell(f"{name}: {len(table):,} pictures, {table.name}")
    return tables, group


def with_classes_left_out(job: Anomaly) -> Anomaly:
    """Return the job with `normal` said, where it says what is not (`leave_out`).

    Raises:
      ValueError: if both are given, or a class is not there, or none is left.
    """
    if not job.leave_out:
        return job
    if job.normal:
        raise ValueError(
            "--normal names the normal classes and --leave-out those that are not; give one of them"
        )
    columns = job.pictures
    found = image_splits(job.data, split_column=columns.split)
    table = read_images(
        job.data, "train" if found else None, image=columns.image, split_column=columns.split
    )
    names = table.label_names.get(columns.label, ())
    present = sorted({_word(value, names) for value in table[columns.label]})
    unknown = [name for name in job.leave_out if name not in present]
    normal = tuple(name for name in present if name not in job.leave_out)
    if unknown or not normal:
        raise ValueError(
            f"--leave-out {' '.join(job.leave_out)}: {table.name} has the classes "
            f"{', '.join(present)}; leave out some of them, not all"
        )
    return dataclasses.replace(job, normal=normal)


def _few(table: Table, most: int, seed: int) -> Table:
    if not most or len(table) <= most:
        return table
    return table.take(np.sort(permutation(len(table), seed)[:most]))


def _normal(job: Anomaly, table: Table) -> np.ndarray:
    """Return which rows are of a normal class."""
    if not job.normal:
        return np.ones(len(table), bool)
    names = table.label_names.get(job.pictures.label, ())
    words = [_word(value, names) for value in table[job.pictures.label]]
    return np.array([word in job.normal for word in words])


def _word(value: Any, names: tuple[str, ...]) -> str:
    return names[int(value)] if names and isinstance(value, int | np.integer) else str(value)


def normal_classes(job: Anomaly, table: Table) -> np.ndarray:
    if job.pictures.label not in table.columns:
        return np.zeros(len(table), np.int64)
    words = [str(value) for value in table[job.pictures.label]]
    return np.unique(words, return_inverse=True)[1]


def kinds_of(job: Anomaly, table: Table) -> Kinds:
    """Return which test rows are normal, and which of each other class; none if nobody knows."""
    if not job.normal or job.pictures.label not in table.columns:
        return {}
    names = table.label_names.get(job.pictures.label, ())
    words = np.array([_word(value, names) for value in table[job.pictures.label]])
    normal = np.isin(words, job.normal)
    others = {str(name): words == name for name in sorted(set(words[~normal]))}
    return {"normal": normal, **others} if normal.any() and others else {}
