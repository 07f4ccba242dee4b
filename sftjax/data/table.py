"""A table: named columns of equal length that remember which rows of which file they came from."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sftjax.core import nearest

Column = Sequence[Any] | np.ndarray
"""The values of one column: a list (of text, of lists) or a numpy array."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Named columns of equal length.

    >>> table = Table({"text": ["good", "bad"], "label": [1, 0]}, name="reviews.csv")
    >>> len(table), table["label"], table.locate([1])
    (2, [1, 0], 'reviews.csv row 2')
    """

    columns: Mapping[str, Column]
    """Every column by name."""
    name: str
    """Where the rows came from, as error messages say it."""
    split: str | None = None
    """`"train"`, `"validation"`, `"test"`, or None when the source has no splits."""
    rows: Sequence[int] | np.ndarray = ()
    """Number of every row in its source, the first is 1; empty means 1, 2, 3, ..."""
    label_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Names of the classes, in the order of their integers, of columns whose source knows them."""

    def __post_init__(self) -> None:
        """Refuse columns of different lengths and tables of nothing."""
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: the columns differ in length: {lengths}")
        if not lengths or not len(self):
            raise ValueError(f"{self.name} holds no rows; give it at least one")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> Column:
        """Return a column.

        Raises:
          ValueError: if there is none of this name; lists those there are.
        """
        if column not in self.columns:
            like = nearest(column, list(self.columns), count=1)
            raise ValueError(
                f"{self.name} has no column {column!r}; its columns are "
                f"{', '.join(map(repr, self.columns))}."
                + (f" Did you mean {like[0]!r}?" if like else " Name the one to use.")
            )
        return self.columns[column]

    def __contains__(self, column: object) -> bool:
        """Tell whether there is a column of this name."""
        return column in self.columns

    def __repr__(self) -> str:
        """Say what there is, not all of it.

        >>> Table({"text": ["good", "bad"], "label": [1, 0]}, name="reviews.csv")
        Table(reviews.csv: 2 rows of text, label)
        """
        part = f", {self.split}" * bool(self.split)
        return f"Table({self.name}{part}: {len(self):,} rows of {', '.join(self.columns)})"

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) of the columns' names and values, whatever their source and order."""
        digest = hashlib.sha256()
        for name in sorted(self.columns):
            for part in (name.encode(), _bytes(self.columns[name])):
                digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def only(self, *columns: str) -> "Table":
        """Return the table with these columns alone."""
        return dataclasses.replace(self, columns={name: self[name] for name in columns})

    def take(self, indices: Sequence[int] | np.ndarray, split: str | None = None) -> "Table":
        """Return the table of these rows (0-based positions), which keep their row numbers."""
        numbers = np.asarray(self.rows) if len(self.rows) else np.arange(1, len(self) + 1)
        indices = np.asarray(indices, np.int64)
        columns = {
            name: values[indices]
            if isinstance(values, np.ndarray)
            else [values[i] for i in indices]
            for name, values in self.columns.items()
        }
        return dataclasses.replace(
            self, columns=columns, rows=numbers[indices], split=split or self.split
        )

    def locate(self, indices: Sequence[int] | np.ndarray, most: int = 5) -> str:
        """Say where rows (0-based positions) are in the source, for an error message."""
        numbers = [int(self.rows[i]) if len(self.rows) else int(i) + 1 for i in indices]
        shown = ", ".join(map(str, numbers[:most]))
        more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
        return f"{self.name} row{'s' if len(numbers) > 1 else ''} {shown}{more}"


def texts(table: Table, column: str) -> list[str]:
    """Return a column of text as `str`; bytes are decoded as UTF-8.

    Raises:
      ValueError: naming the rows whose value is missing (None, NaN, blank), is no text, or is not
        UTF-8.

    >>> texts(Table({"text": [b"caf\\xc3\\xa9", "tea"]}, name="menu"), "text")
    ['café', 'tea']
    """
    values = [bytes_to_str(value) for value in table[column]]
    missing = [i for i, value in enumerate(values) if is_missing(value)]
    if missing:
        raise ValueError(
            f"{table.locate(missing)}: column {column!r} holds no text there (empty, null or NaN). "
            f"Fill in or remove {'these rows' if len(missing) > 1 else 'this row'}."
        )
    for i, value in enumerate(values):
        if isinstance(value, bytes):
            raise ValueError(
                f"{table.locate([i])}: column {column!r} is not valid UTF-8 text. "
                "Convert the source to UTF-8."
            )
        if not isinstance(value, str):
            raise ValueError(
                f"{table.locate([i])}: column {column!r} holds {value!r}, a "
                f"{type(value).__name__} and not text. Name a column of text."
            )
    return values


def is_missing(value: Any) -> bool:
    """Tell whether a value is None, NaN or blank text.

    >>> [is_missing(value) for value in (None, float("nan"), "  ", 0, "a")]
    [True, True, True, False, False]
    """
    if isinstance(value, str | bytes):
        return not value.strip()
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def bytes_to_str(value: Any) -> Any:
    """Decode bytes that are UTF-8 and leave everything else, other bytes too, as it is."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


def _bytes(values: Column) -> bytes:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return f"{values.dtype.str}{values.shape}".encode() + np.ascontiguousarray(values).tobytes()
    return json.dumps(list(values), default=_plain, ensure_ascii=True).encode()


def _plain(value: Any) -> Any:
    """Give JSON a stand-in for what it does not know, distinct from the values it does."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return {type(value).__name__: str(value)}
