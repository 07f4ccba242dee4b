"""Tokenised rows of any length in one flat array, and the file that keeps them."""

import dataclasses
import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokenised rows: row i is `ids[offsets[i]:offsets[i + 1]]`.

    >>> rows = pack([[101, 7, 102], [101, 102]], pad_id=0, max_length=8)
    >>> len(rows), rows.lengths, rows.ids
    (2, array([3, 2]), array([101,   7, 102, 101, 102], dtype=int32))
    """

    ids: np.ndarray
    """(T,) int32: the tokens of all rows, special tokens included."""
    offsets: np.ndarray
    """(N + 1,) int64."""
    pad_id: int
    max_length: int
    """Most tokens a row may have."""
    type_ids: np.ndarray | None = None
    """(T,) int32: 0 for the first text, 1 for the second; None if the model has no such thing."""
    token_labels: np.ndarray | None = None
    """(T,) int32: the class of the word that starts at this token, else -100."""
    truncated: int = 0
    """Rows that were cut to `max_length`."""
    lost: int = 0
    """Tokens that were cut off."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64: tokens of each row."""
        return np.diff(self.offsets)


def pack(
    ids: Sequence[Sequence[int]],
    *,
    pad_id: int,
    max_length: int,
    type_ids: Sequence[Sequence[int]] | None = None,
    token_labels: Sequence[np.ndarray] | None = None,
    truncated: int = 0,
    lost: int = 0,
) -> Encoded:
    """Lay rows end to end; the arguments are the fields of `Encoded`, row by row."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    return Encoded(
        _flat(ids, offsets),
        offsets,
        pad_id,
        max_length,
        type_ids=None if type_ids is None else _flat(type_ids, offsets),
        token_labels=None if token_labels is None else _flat(token_labels, offsets),
        truncated=truncated,
        lost=lost,
    )


def cached(path: Path | None, rows: int, make: Callable[[], Encoded]) -> Encoded:
    """Return what the file at `path` holds, or make it and write the file.

    A file that cannot be read, or holds another number of rows, is warned of and made again.
    """
    if path is None:
        return make()
    if path.exists():
        try:
            return _load(path, rows)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warnings.warn(f"{path} is damaged ({error}) and is made again", stacklevel=3)
    encoded = make()
    _save(path, encoded)
    return encoded


def _flat(rows: Sequence[Sequence[int] | np.ndarray], offsets: np.ndarray) -> np.ndarray:
    flat = np.empty(offsets[-1], np.int32)
    for row, start, stop in zip(rows, offsets[:-1], offsets[1:], strict=True):
        flat[start:stop] = row
    return flat


def _save(path: Path, encoded: Encoded) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: value for name, value in vars(encoded).items() if value is not None}
    # Renamed when whole: a run that is killed here leaves no half file under this name.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        np.savez(file, format=_FORMAT, **fields)
    os.replace(file.name, path)


def _load(path: Path, rows: int) -> Encoded:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
        fields = {name: content[name] for name in content.files}
    if fields.pop("format") != _FORMAT:
        raise ValueError("written in another format")
    values: dict[str, Any] = {
        name: value if value.ndim else int(value) for name, value in fields.items()
    }
    encoded = Encoded(**values)
    flat = [encoded.ids, encoded.type_ids, encoded.token_labels]
    if len(encoded) != rows or any(
        array is not None and array.shape != (encoded.offsets[-1],) for array in flat
    ):
        raise ValueError(f"it does not hold {rows} rows")
    return encoded
