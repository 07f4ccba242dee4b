"""Never compute the frozen prefix twice: its outputs are kept, and the step runs what is above it.

Where everything below a block is frozen and draws no randomness, what enters that block is the same
in every epoch. `keep_prefix` computes it once for a data set; `with_prefix` adds it to the batches.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sftjax.core import Batch, PyTree

Prefix = Callable[[PyTree, Batch], Any]
"""`(params, batch) -> hidden`, first axis the batch's rows."""


class Kept(NamedTuple):
    """What a prefix gave for every row of a data set."""

    values: np.ndarray
    """(N, ...) one entry a row; with `offsets`, (tokens of all rows, ...). May be mapped."""
    offsets: np.ndarray | None
    """(N + 1,) int64: row i holds `values[offsets[i] : offsets[i + 1]]`."""
    mask: str | None
    """Name of the batch entry (B, T) that marks a row's tokens."""

    def of(self, batch: Batch) -> np.ndarray:
        """Return the entries of a batch's rows, (B, ...) or (B, T, ...), 0 beyond a row's end.

        >>> kept = Kept(np.array([[1.0], [2.0], [3.0]]), np.array([0, 1, 3]), "mask")
        >>> kept.of({"index": np.array([1, 0]), "mask": np.ones((2, 2))})[..., 0].tolist()
        [[2.0, 3.0], [1.0, 0.0]]
        """
        # A filler row (-1) is given row 0: it is real, and the filler does not count.
        rows = np.maximum(np.asarray(batch["index"]), 0)
        if self.offsets is None:
            return np.asarray(self.values[rows])
        assert self.mask is not None
        starts, stops = self.offsets[rows], self.offsets[rows + 1]
        columns = starts[:, None] + np.arange(np.shape(batch[self.mask])[1])
        there = columns < stops[:, None]
        found = self.values[np.where(there, columns, starts[:, None])]
        found[~there] = 0
        return found


def keep_prefix(
    prefix: Prefix,
    params: PyTree,
    batches: Iterable[Batch],
    num_rows: int,
    *,
    mask: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Kept:
    """Run a frozen prefix over a data set once and keep its outputs.

    Args:
      prefix: `(params, batch) -> (B, ...)`; frozen, and the same at every call.
      params: an argument of the compiled prefix.
      batches: one pass over the data, iterable twice (a list, or an object that starts anew), each
        with `index` (B,), the row numbers, and `valid` (B,), 0 for fillers.
      num_rows: rows in all.
      mask: name of the entry (B, T) that marks tokens. The output is (B, T, ...) then, and a row
        keeps the tokens up to its last marked one. `None` keeps a row's output whole.
      folder: keep the values in a file there, mapped into memory; `None` keeps them in memory.
      facts: JSON that says what the values depend on: weights, data, cut, code version. Required
        with a folder; the same facts find the same file.
      tell: is given the size before anything is computed.

    Returns:
      A `Kept`, float32 (float64 stays): smaller floats are held exactly.

    Raises:
      ValueError: if a row comes twice or never, a folder has no facts, or the output's rows are not
        the batch's.

    >>> batches = [{"x": np.array([[3.0], [1.0]]), "index": np.array([1, 0]), "valid": np.ones(2)}]
    >>> keep_prefix(lambda w, batch: w * batch["x"], 2.0, batches, num_rows=2).values.tolist()
    [[2.0], [6.0]]
    """
    if folder is not None and not facts:
        raise ValueError(
            "values kept in a file need facts (the weights' hash, the data's, the code's version) "
            "to be found by; without them another run would read the wrong ones"
        )
    counts, example = _survey(batches, num_rows, mask)
    shape = jax.eval_shape(prefix, params, example)
    rows = len(np.asarray(example["index"]))
    if shape.ndim < 1 or shape.shape[0] != rows:
        raise ValueError(
            f"the prefix gives shape {shape.shape} for a batch of {rows} rows; its first axis must "
            "be the rows"
        )
    offsets = None if mask is None else np.concatenate([[0], np.cumsum(counts)])
    total = num_rows if offsets is None else int(offsets[-1])
    whole = (total, *shape.shape[1 if mask is None else 2 :])
    dtype = np.dtype("float64") if shape.dtype == np.float64 else np.dtype("float32")
    path = None if folder is None else pathlib.Path(folder) / f"{_digest(facts)}.npy"
    size = f"{np.prod(whole, dtype=np.int64) * dtype.itemsize / 2**20:.0f} MiB"
    if path is not None and path.exists():
        found = np.load(path, mmap_mode="r")
        if found.shape == whole and found.dtype == dtype:
            tell(f"outputs of the frozen prefix: {size}, read from {path}")
            return Kept(found, offsets, mask)
        tell(f"{path} holds {found.shape} {found.dtype}, not {whole} {dtype}; computing it anew")
    tell(f"outputs of the frozen prefix for {num_rows:,} rows: {size}, computed once")
    values, partial = _room(whole, dtype, path)
    _fill(values, jax.jit(prefix), params, batches, offsets)
    if path is not None and partial is not None:
        values.flush()  # type: ignore[attr-defined]
        del values
        path.with_suffix(".json").write_text(json.dumps(dict(facts or {}), indent=2) + "\n", "utf8")
        partial.replace(path)
        values = np.load(path, mmap_mode="r")
    return Kept(values, offsets, mask)


def with_prefix(
    batch_at: Callable[[int], Batch], kept: Kept, *, name: str = "hidden"
) -> Callable[[int], Batch]:
    """Return `batch_at` with the kept outputs of each batch's rows under `name`.

    >>> kept = Kept(np.array([[2.0], [6.0]]), None, None)
    >>> with_prefix(lambda step: {"index": np.array([1])}, kept)(0)["hidden"].tolist()
    [[6.0]]
    """

    def at(step: int) -> Batch:
        batch = batch_at(step)
        return {**batch, name: kept.of(batch)}

    return at


def _survey(batches: Iterable[Batch], num_rows: int, mask: str | None) -> tuple[np.ndarray, Batch]:
    """Return the tokens of each row and a batch without fillers' marks, having seen every row."""
    counts, seen, example = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64), None
    for batch in batches:
        if lacking := [n for n in ("index", "valid", *([mask] if mask else [])) if n not in batch]:
            raise ValueError(
                f"a batch has no {lacking[0]!r} (it has {', '.join(batch)}); keep_prefix needs "
                "'index' (row numbers), 'valid' (0 for filler rows) and the mask that it was given"
            )
        index, real = np.asarray(batch["index"]), np.asarray(batch["valid"]) > 0
        if real.any() and not (index[real].min() >= 0 and index[real].max() < num_rows):
            raise ValueError(
                f"a batch holds rows {index[real].min()} to {index[real].max()}, outside 0 to "
                f"{num_rows - 1}; give the batches of the data that num_rows counts"
            )
        np.add.at(seen, index[real], 1)
        if mask is not None:
            counts[index[real]] = _lengths(np.asarray(batch[mask]))[real]
        example = batch
    if example is None or (seen != 1).any():
        row = int(np.argmax(seen != 1))
        raise ValueError(
            f"row {row} comes {int(seen[row]) if num_rows else 0} times in the batches; one pass "
            "over the data holds every row once"
        )
    return counts, example


def _lengths(mask: np.ndarray) -> np.ndarray:
    """Return for each row the place after its last marked token."""
    return (np.arange(1, mask.shape[1] + 1) * (mask != 0)).max(axis=1)


def _fill(
    values: np.ndarray,
    prefix: Prefix,
    params: PyTree,
    batches: Iterable[Batch],
    offsets: np.ndarray | None,
) -> None:
    for batch in batches:
        inputs = {name: x for name, x in batch.items() if name not in ("index", "valid")}
        outputs = np.asarray(prefix(params, inputs))
        index = np.asarray(batch["index"])
        for place in np.flatnonzero(np.asarray(batch["valid"]) > 0):
            row = index[place]
            if offsets is None:
                values[row] = outputs[place]
            else:
                start, stop = offsets[row], offsets[row + 1]
                values[start:stop] = outputs[place, : stop - start]


def _room(
    shape: tuple[int, ...], dtype: np.dtype, path: pathlib.Path | None
) -> tuple[np.ndarray, pathlib.Path | None]:
    """Return an array to fill, in memory or in a file that gets its name once it is full."""
    if path is None:
        return np.empty(shape, dtype), None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    return np.lib.format.open_memmap(partial, "w+", dtype, shape), partial


def _digest(facts: Mapping[str, Any] | None) -> str:
    return hashlib.sha256(json.dumps(dict(facts or {}), sort_keys=True).encode()).hexdigest()[:32]
