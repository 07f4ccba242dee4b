"""Make numbers of a column of labels, and refuse what is no label before anything is compiled."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sftjax.data.table import Column, Table, bytes_to_str, is_missing

IGNORED = -100
"""The label of a token that does not count."""


class Labels(NamedTuple):
    """The labels of every row, and what their numbers mean."""

    values: Any
    """(N,) int32 classes, (N,) float32 regression, (N, L) float32 multi-label, or, for tokens, N
    int32 arrays of one label a word."""
    names: tuple[str, ...]
    """Class names in the order of their integers; of a regression, the column's name."""
    problem_type: str
    """`single_label_classification` (of rows or tokens), `multi_label_classification` or
    `regression`."""


def classes(
    table: Table, column: str = "label", labels: Sequence[str] | None = None, *, least: int = 2
) -> Labels:
    """Return one class a row.

    The names are, the first that applies: `labels`; those the source knows (a ClassLabel of TFDS);
    `LABEL_0`, `LABEL_1`, ... for integers 0 to n-1; the distinct names, sorted.

    Args:
      table: the rows.
      column: integers, names, or text that spells integers.
      labels: all class names, in the order of their integers.
      least: how many different classes must occur: 2 to train, 1 to predict or evaluate.

    Returns:
      `Labels` with (N,) int32 values.

    Raises:
      ValueError: naming the rows of a missing value, a name that `labels` lacks, or an integer out
        of range; and for a table of fewer than `least` classes.

    >>> table = Table({"label": ["pos", "neg", "pos"]}, name="toy.csv")
    >>> classes(table).values.tolist(), classes(table).names
    ([1, 0, 1], ('neg', 'pos'))
    """
    values = _named(table, column, [_plain(value) for value in _present(table, column)], labels)
    names = _names_of(table, column, values, labels)
    ids = _ids(table, column, names, values, np.arange(len(values)))
    _require(table, column, names, np.unique(ids), least)
    return Labels(np.array(ids, np.int32), names, "single_label_classification")


def multi_label(
    table: Table,
    column: str | Sequence[str] = "label",
    labels: Sequence[str] | None = None,
    *,
    separator: str = ",",
) -> Labels:
    """Return any number of classes a row, as 0 and 1.

    Args:
      table: the rows.
      column: of lists of names or integers, or of text with names between separators (empty text
        is no label); or several columns of 0 and 1, one a label.
      labels: all label names in order; default as in `classes`, or the names of the columns.
      separator: between the names in text.

    Returns:
      `Labels` with (N, L) float32 values.

    Raises:
      ValueError: as `classes`; and for a label that no row has.

    >>> table = Table({"label": [["a", "b"], [], ["b"]]}, name="toy.jsonl")
    >>> multi_label(table).values.tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    """
    if not isinstance(column, str):
        columns = list(column)
        hot = np.stack([_zero_one(table, name) for name in columns], 1)
        names = tuple(labels) if labels else tuple(columns)
        if len(names) != len(columns):
            raise ValueError(
                f"{len(columns)} columns of labels ({', '.join(columns)}) and {len(names)} names "
                f"for them in labels ({', '.join(names)}); give one name for each column, in order"
            )
    else:
        rows = _lists(table, column, separator)
        flat = [value for row in rows for value in row]
        where = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        flat = _named(table, column, flat, labels)
        names = _names_of(table, column, flat, labels)
        hot = np.zeros((len(rows), len(names)), np.float32)
        hot[where, _ids(table, column, names, flat, where)] = 1
    unused = [names[i] for i in np.flatnonzero(~hot.any(0))]
    if labels is None and (unused or not names):
        what = f"the label {', '.join(unused)}" if unused else "a label"
        where = column if isinstance(column, str) else ", ".join(column)
        raise ValueError(
            f"{table.name}: no row has {what} (column {where}). Is it the right column? A label "
            "that no row has cannot be learned: leave it out, or give rows with it."
        )
    return Labels(hot, names, "multi_label_classification")


def regression(table: Table, column: str = "label", *, least: int = 2) -> Labels:
    """Return one real number a row.

    Args:
      table: the rows.
      column: numbers, or text that spells them.
      least: how many different values must occur: 2 to train, 1 to predict or evaluate.

    Returns:
      `Labels` with (N,) float32 values.

    Raises:
      ValueError: naming the rows whose value is missing, infinite or no number; and for a constant
        column.

    >>> regression(Table({"score": ["0.5", "-1"]}, name="toy.csv"), "score").values.tolist()
    [0.5, -1.0]
    """
    values = np.array([_number(value) for value in _present(table, column)])
    _refuse(table, column, ~np.isfinite(values), "is not a finite number")
    if len(np.unique(values)) < least:
        raise ValueError(
            f"{table.name}: column {column!r} is {values[0]:g} in every row; nothing to learn there"
        )
    return Labels(values.astype(np.float32), (column,), "regression")


def token_labels(
    table: Table,
    column: str = "tags",
    labels: Sequence[str] | None = None,
    *,
    separator: str = " ",
    least: int = 2,
) -> Labels:
    """Return one class a word; `encode_words` moves it to the word's first sub-token.

    Args:
      table: the rows.
      column: lists of names or integers, or text with names between separators.
      labels: all class names in the order of their integers; default as in `classes`.
      separator: between the names in text.
      least: as in `classes`.

    Returns:
      `Labels` whose values are N int32 arrays; -100 given as an integer stays -100.

    Raises:
      ValueError: as `classes`.

    >>> token_labels(Table({"tags": ["B O", "O"]}, name="toy.csv")).values
    [array([0, 1], dtype=int32), array([1], dtype=int32)]
    """
    rows = _lists(table, column, separator)
    lengths = [len(row) for row in rows]
    flat = [value for row in rows for value in row]
    where = np.repeat(np.arange(len(rows)), lengths)
    counted = np.array([value != IGNORED for value in flat], bool)
    shown = [value for value, counts in zip(flat, counted, strict=True) if counts]
    shown = _named(table, column, shown, labels)
    names = _names_of(table, column, shown, labels)
    ids = np.full(len(flat), IGNORED, np.int32)
    ids[counted] = _ids(table, column, names, shown, where[counted])
    _require(table, column, names, np.unique(ids[counted]), least)
    return Labels(np.split(ids, np.cumsum(lengths)[:-1]), names, "single_label_classification")


def _present(table: Table, column: str) -> Column:
    values = table[column]
    _refuse(table, column, [_no_label(value) for value in values], "is missing (empty, null, NaN)")
    return values


def _no_label(value: Any) -> bool:
    """Whether a cell holds no label; `nan` as text is what spreadsheets write for one."""
    value = bytes_to_str(value)
    return is_missing(value) or (isinstance(value, str) and value.strip().lower() == "nan")


def _refuse(table: Table, column: str, wrong: Sequence[bool] | np.ndarray, what: str) -> None:
    indices = np.flatnonzero(np.asarray(wrong, bool))
    if len(indices):
        value = table[column][indices[0]]
        raise ValueError(
            f"{table.locate(indices)}: column {column!r} {what}"
            + ("" if _no_label(value) else f" ({bytes_to_str(value)!r})")
            + ". Correct or remove the rows."
        )


def _plain(value: Any) -> Any:
    """Return a label as `int` or `str`: whole floats and text of digits are integers."""
    value = bytes_to_str(value)
    if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool):
        return int(value)
    return value.strip() if isinstance(value, str) else value


def _named(table: Table, column: str, values: list[Any], labels: Sequence[str] | None) -> list[Any]:
    """Replace the integers of a source that knows its class names by these names.

    Names can be digits and differ from their own integer: the classes of a known review data set
    are `("1", "2")`. `labels` that lack the source's names are new names for the same integers.
    """
    known: Sequence[str] = table.label_names.get(column, ())
    if known and labels and not set(known) <= set(labels):
        known = labels
    return [
        known[value] if isinstance(value, int) and 0 <= value < len(known) else value
        for value in values
    ]


def _names_of(
    table: Table, column: str, values: list[Any], labels: Sequence[str] | None
) -> tuple[str, ...]:
    if given := labels or table.label_names.get(column):
        if len(set(given)) < len(given):
            raise ValueError(f"a name occurs twice in labels={list(given)}")
        return tuple(given)
    if not all(isinstance(value, int | str) for value in values):
        odd = next(value for value in values if not isinstance(value, int | str))
        raise ValueError(
            f"{table.name}: column {column!r} holds {odd!r}, which names no class. "
            "Numbers with a fraction are for a regression; lists for several labels a row."
        )
    numbers = _all_integers(values)
    if numbers is None:
        return tuple(sorted({str(value) for value in values}))
    distinct = sorted(set(numbers))
    if distinct != list(range(len(distinct))):
        raise ValueError(
            f"{table.name}: the integers in column {column!r} are {_few(distinct)}, and classes "
            f"count from 0 without gaps. Renumber them, or give labels=[...] with a name for each "
            "integer from 0."
        )
    return tuple(f"LABEL_{number}" for number in distinct)


def _all_integers(values: list[Any]) -> list[int] | None:
    try:
        return [int(value) for value in values]
    except ValueError:
        return None


def _ids(
    table: Table, column: str, names: tuple[str, ...], values: list[Any], where: np.ndarray
) -> list[int]:
    """Return the integer of every label; a name wins over the integer that it may spell."""
    id_of = {name: index for index, name in enumerate(names)}
    ids = [id_of.get(str(value), _integer(value)) for value in values]
    wrong = [not 0 <= number < len(names) for number in ids]
    if any(wrong):
        first = values[wrong.index(True)]
        raise ValueError(
            f"{table.locate(np.unique(where[np.array(wrong)]))}: label {first!r} in column "
            f"{column!r} is none of the {len(names)} classes ({_few(names)}), nor an integer "
            f"from 0 to {len(names) - 1}. Correct the rows, or give labels=[...] with every class."
        )
    return ids


def _integer(value: Any) -> int:
    """Return the integer that a label is or spells, else -1."""
    try:
        return int(value) if isinstance(value, int | str) else -1
    except ValueError:
        return -1


def _require(
    table: Table, column: str, names: tuple[str, ...], present: np.ndarray, least: int
) -> None:
    if len(present) < least:
        only = ", ".join(repr(names[i]) for i in present) or "nothing"
        raise ValueError(
            f"{table.name}: column {column!r} holds only {only} in {len(table)} rows, and training "
            f"needs {least} classes or more. Is it the right column, or the file sorted and cut?"
        )


def _lists(table: Table, column: str, separator: str) -> list[list[Any]]:
    rows = [bytes_to_str(value) for value in table[column]]
    # Empty text is a row without labels; None is not.
    _refuse(
        table, column, [not isinstance(row, str) and is_missing(row) for row in rows], "is missing"
    )
    split = [
        row.split(separator)
        if isinstance(row, str)
        else row
        if isinstance(row, list | np.ndarray)
        else [row]
        for row in rows
    ]
    lists = [[_plain(value) for value in row] for row in split]
    if any(isinstance(row, str) for row in rows):
        lists = [[value for value in row if value != ""] for row in lists]
    _refuse(table, column, [any(map(is_missing, row)) for row in lists], "holds a missing label")
    return lists


def _zero_one(table: Table, column: str) -> np.ndarray:
    values = np.array([_number(value) for value in _present(table, column)])
    _refuse(table, column, ~np.isin(values, (0, 1)), "is neither 0 nor 1")
    return values.astype(np.float32)


def _number(value: Any) -> float:
    try:
        return float(bytes_to_str(value))
    except (TypeError, ValueError):
        return float("nan")


def _few(values: Sequence[Any], most: int = 10) -> str:
    shown = ", ".join(str(value) for value in values[:most])
    return shown + (", ..." if len(values) > most else "")
