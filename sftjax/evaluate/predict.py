"""Run a model over batches and put the outputs back in the order of the rows."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, overload

import jax
import numpy as np
from numpy.typing import NDArray

from sftjax.core import Batch, PyTree

Apply = Callable[[PyTree, Batch], Any]
"""`(params, batch) -> outputs`, first axis the batch's rows."""


class Passes(Protocol):
    """Batches by their number, as `data.Batches` and its kin are."""

    @property
    def steps_per_epoch(self) -> int:
        """How many batches are one pass over the rows."""
        ...

    def at(self, step: int) -> Batch:
        """Return batch number `step`."""
        ...


@overload
def predict(
    apply: Apply,
    params: PyTree,
    batches: Iterable[Batch] | Passes,
    num_rows: int,
    *,
    per_token: Literal[False] = False,
) -> np.ndarray: ...
@overload
def predict(
    apply: Apply,
    params: PyTree,
    batches: Iterable[Batch] | Passes,
    num_rows: int,
    *,
    per_token: Literal[True],
) -> list[np.ndarray]: ...
def predict(
    apply: Apply,
    params: PyTree,
    batches: Iterable[Batch] | Passes,
    num_rows: int,
    *,
    per_token: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Return the outputs of every row, in row order, whatever the order of the batches.

    One compilation a batch shape; the params are an argument of the compiled program. Pass
    `jax.jit(apply)` to keep what was compiled from one call to the next. Outputs are read one
    batch late, so the device does not wait for the host.

    Args:
      apply: `(params, batch) -> (B, ...)`, such as logits (B, C) or embeddings (B, D).
      params: the params.
      batches: one pass of them, or what has them by number (`data.Batches`). Each has `index`
        (B,), the row number of each row, and `valid` (B,), 0 for filler rows; both are kept from
        `apply`.
      num_rows: rows in all.
      per_token: outputs are (B, T, ...); each row keeps the positions that its batch's
        `attention_mask` (B, T) marks.

    Returns:
      (num_rows, ...), or with `per_token` a list of num_rows arrays (T_i, ...).

    Raises:
      ValueError: if a row comes twice, never, or is outside 0 to num_rows - 1, or the outputs do
        not fit the batch.

    >>> batches = [{"x": np.array([[3.0], [1.0]]), "index": np.array([1, 0]), "valid": np.ones(2)}]
    >>> predict(lambda params, batch: params * batch["x"], 2.0, batches, num_rows=2).tolist()
    [[2.0], [6.0]]
    """
    run = apply if hasattr(apply, "lower") else jax.jit(apply)
    rows: list[np.ndarray | None] = [None] * num_rows
    pending: tuple[Any, Batch] | None = None
    if not isinstance(batches, Iterable):
        batches = map(batches.at, range(batches.steps_per_epoch))
    for batch in batches:
        if missing := [name for name in ("index", "valid") if name not in batch]:
            raise ValueError(
                f"a batch has no {missing[0]!r} (it has {', '.join(batch)}); predict needs 'index' "
                "(row numbers) and 'valid' (0 for filler rows)"
            )
        inputs = {name: x for name, x in batch.items() if name not in ("index", "valid")}
        dispatched = run(params, inputs), batch
        if pending is not None:
            _place(*pending, rows, per_token)
        pending = dispatched
    if pending is not None:
        _place(*pending, rows, per_token)
    return _whole(rows, per_token)


def _place(outputs: Any, batch: Batch, rows: list[np.ndarray | None], per_token: bool) -> None:
    values, index = np.asarray(outputs), np.asarray(batch["index"])
    if values.ndim == 0 or len(values) != len(index):
        raise ValueError(
            f"apply returned shape {values.shape} for a batch of {len(index)} rows; its first axis "
            "must be the rows"
        )
    mask = _token_mask(values, batch) if per_token else None
    for place in np.flatnonzero(np.asarray(batch["valid"]) > 0):
        row = int(index[place])
        if not 0 <= row < len(rows):
            raise ValueError(f"a batch holds row {row}, outside 0 to {len(rows) - 1}")
        if rows[row] is not None:
            raise ValueError(f"row {row} comes twice in the batches; predict needs one pass")
        # A copy, so that a row does not keep its whole batch alive.
        rows[row] = values[place].copy() if mask is None else values[place][mask[place]]


def _token_mask(values: np.ndarray, batch: Batch) -> NDArray[np.bool_]:
    mask = np.asarray(batch["attention_mask"]).astype(bool)
    if values.shape[:2] != mask.shape:
        raise ValueError(
            f"apply returned shape {values.shape} for an attention_mask of shape {mask.shape}; "
            "per_token needs one output a token"
        )
    return mask


def _whole(rows: list[np.ndarray | None], per_token: bool) -> np.ndarray | list[np.ndarray]:
    found = [row for row in rows if row is not None]
    if not found:
        raise ValueError(f"the batches hold none of the {len(rows)} rows")
    if len(found) < len(rows):
        first = next(number for number, row in enumerate(rows) if row is None)
        raise ValueError(
            f"{len(rows) - len(found)} of {len(rows)} rows are in no batch, row {first} first"
        )
    if per_token:
        return found
    shapes = {row.shape for row in found}
    if len(shapes) > 1:
        raise ValueError(
            f"the outputs of rows differ in shape ({', '.join(map(str, sorted(shapes)))}); for one "
            "output a token pass per_token=True"
        )
    return np.stack(found)
