"""Train, validation and test rows of one table, no group (patient) in two of them."""

import dataclasses
from collections.abc import Mapping

from sftjax.data.holdout import hold_out
from sftjax.data.table import Table

THIRDS = {"train": 0.7, "validation": 0.15, "test": 0.15}
"""The shares of the splits, if none are given."""


def split_table(
    table: Table,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
    *,
    stratify: str | None = "label",
    group: str | None = None,
) -> dict[str, Table]:
    """Split a table into named parts whose classes keep their proportions.

    Args:
      table: the rows.
      shares: name -> share; they sum to 1. Default `THIRDS`.
      seed: the same seed gives the same rows on every machine.
      stratify: the column of the label; None for none.
      group: a column whose values never cross (patient, photograph); then the shares are met as
        nearly as whole groups allow.

    Returns:
      Name -> `Table`, in the order of `shares`, each in the order of the table.

    Raises:
      ValueError: if the shares do not sum to 1, or a part would be empty.

    >>> table = Table({"label": [0, 1] * 20, "patient": [i // 4 for i in range(40)]}, name="toy")
    >>> parts = split_table(table, {"train": 0.6, "validation": 0.2, "test": 0.2}, group="patient")
    >>> {name: len(part) for name, part in parts.items()}
    {'train': 24, 'validation': 8, 'test': 8}
    """
    shares = dict(THIRDS if shares is None else shares)
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) <= 0:
        raise ValueError(f"the shares {shares} must be positive and sum to 1")
    names = list(shares)
    rest, left, parts = table, 1.0, {}
    # The last are cut off first, so that "train" is what remains.
    for number, name in enumerate(reversed(names[1:])):
        rest, held = hold_out(
            rest, shares[name] / left, seed + number, stratify=stratify, group=group
        )
        parts[name] = held
        left -= shares[name]
    parts[names[0]] = rest
    return {name: dataclasses.replace(parts[name], split=name) for name in names}
