"""Hold rows out of a table, by class and by group, always the same ones for the same seed."""

import numpy as np

from sftjax.data.table import Column, Table


def hold_out(
    table: Table,
    fraction: float,
    seed: int,
    *,
    stratify: str | None = None,
    group: str | None = None,
) -> tuple[Table, Table]:
    """Split a table in two, `fraction` of the rows (and of every class) in the second part.

    Without `group` the parts are exact: `round(fraction * n)` rows are held out, each class gives
    its share rounded down or up, and a class of two rows or more is in both parts. With `group`,
    whole groups are held out, chosen one after another when that brings the held-out counts of the
    classes nearer to their shares.

    Args:
      table: the rows.
      fraction: share held out, in (0, 1).
      seed: a non-negative integer; the same seed gives the same rows on every machine.
      stratify: a column whose values keep their proportions (the label).
      group: a column whose values never cross (patient, document, author).

    Returns:
      `(kept, held)`, both in the order of the table.

    Raises:
      ValueError: if the fraction is not in (0, 1) or one part would be empty.

    >>> table = Table({"label": [0, 1] * 10}, name="toy")
    >>> kept, held = hold_out(table, 0.2, seed=0, stratify="label")
    >>> len(kept), sorted(held["label"])
    (16, [0, 0, 1, 1])
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction to hold out must lie between 0 and 1, not {fraction}")
    rows = len(table)
    classes = _codes(table[stratify]) if stratify else np.zeros(rows, np.int64)
    order = permutation(rows, seed)
    if group is None:
        held = _by_class(classes, order, fraction)
    else:
        held = _by_group(classes, _codes(table[group]), order, fraction)
    if held.all() or not held.any():
        what = f"groups of {group!r}" if group else "rows"
        raise ValueError(
            f"{table.name}: holding out {fraction:g} of {rows} rows leaves one part without "
            f"{what}. Give more data, another fraction, or a separate validation file."
        )
    return table.take(np.flatnonzero(~held)), table.take(np.flatnonzero(held))


def permutation(count: int, *seeds: int) -> np.ndarray:
    """Return a permutation of `range(count)` that depends on the seeds and on nothing else.

    numpy promises that the raw stream of a bit generator never changes, and does not promise it of
    `Generator.permutation`; so the raw stream is sorted.

    Args:
      count: how many.
      *seeds: non-negative integers.

    Returns:
      (count,) int64.

    >>> permutation(6, 0, 1), permutation(6, 0, 2)
    (array([3, 4, 2, 1, 5, 0]), array([4, 3, 5, 2, 0, 1]))
    """
    stream = np.random.Philox(np.random.SeedSequence(seeds))
    return np.argsort(stream.random_raw(count), kind="stable")


def _codes(values: Column) -> np.ndarray:
    """Number the distinct values in order of first appearance."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(repr(value), len(seen)) for value in values], np.int64)


def _by_class(classes: np.ndarray, order: np.ndarray, fraction: float) -> np.ndarray:
    sizes = np.bincount(classes)
    shares = sizes * fraction
    quota = np.floor(shares).astype(np.int64)
    # Largest remainders get the rows that rounding down left over, so that the total is exact.
    left = round(fraction * len(classes)) - quota.sum()
    quota[np.argsort(quota - shares, kind="stable")[: max(left, 0)]] += 1
    quota = np.clip(quota, np.minimum(1, sizes - 1), np.maximum(sizes - 1, 0))
    held = np.zeros(len(classes), bool)
    for index, count in enumerate(quota):
        held[order[classes[order] == index][:count]] = True
    return held


def _by_group(
    classes: np.ndarray, groups: np.ndarray, order: np.ndarray, fraction: float
) -> np.ndarray:
    counts = np.zeros((groups.max() + 1, classes.max() + 1))
    np.add.at(counts, (groups, classes), 1)
    missing = counts.sum(0) * fraction
    chosen = np.zeros(len(counts), bool)
    for group in dict.fromkeys(groups[order].tolist()):
        after = missing - counts[group]
        if np.square(after).sum() < np.square(missing).sum():
            chosen[group], missing = True, after
    return chosen[groups]
