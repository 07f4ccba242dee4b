"""What the pretrained model says of each row, as a column of the batch.

Distillation compares the model with what it was. Either the step runs the pretrained weights beside
the current ones (`with_reference`), or their outputs are computed once for a data set
(`reference_columns`) and looked up by row (`with_columns`). Objectives see a column either way.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax import Array

from sftjax.core import Batch, Fixed, Metrics, PyTree, TrainState, combine, holes
from sftjax.core.paths import path_of
from sftjax.train.step import Step

Outputs = Callable[[PyTree, Batch], Array]
"""`(pretrained params, batch) -> (B, ...)`, without randomness."""


def with_reference(step: Step, outputs: Outputs, name: str) -> Step:
    """Return the step whose batch gains the pretrained model's outputs as the column `name`.

    The pretrained weights are the anchor and the frozen leaves, which the step holds anyway: no
    further copy is kept, and the price is one forward pass. A leaf without a pretrained value (a
    fresh head, or one left out of the anchor) is a hole, so `outputs` must not read it.

    Args:
      step: a step of `make_step`, not yet compiled.
      outputs: `(pretrained params, batch) -> (B, ...)`, such as the old head's logits.
      name: the column, such as `"reference_logits"`.

    Raises:
      ValueError: when tracing, if the batch has that column already, the first axis of the outputs
        is not the rows, or `outputs` fails where leaves have no pretrained value (they are listed).

    >>> import jax.numpy as jnp
    >>> state = TrainState(jnp.int32(0), {"w": jnp.ones(())}, (), {}, jax.random.key(0))
    >>> fixed = Fixed({"w": None}, {}, anchor={"w": jnp.full((), 3.0)})
    >>> step = with_reference(
    ...     lambda state, fixed, batch: (state, batch), lambda p, b: p["w"] * b["x"], "reference")
    >>> step(state, fixed, {"x": jnp.ones(2)})[1]["reference"]
    Array([3., 3.], dtype=float32)
    """

    def with_column(state: TrainState, fixed: Fixed, batch: Batch) -> tuple[TrainState, Metrics]:
        if name in batch:
            raise ValueError(
                f"the batch has a column {name!r} already; compute it in the step or look it up, "
                "not both"
            )
        trees = (fixed.frozen,) if fixed.anchor is None else (fixed.anchor, fixed.frozen)
        pretrained = combine(*trees)
        try:
            column = outputs(pretrained, batch)
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            if missing := _holes_of(pretrained):
                raise ValueError(
                    f"{name!r} could not be computed from the pretrained weights ({error}). These "
                    f"leaves have none: {', '.join(missing[:5])}"
                    f"{', ...' if len(missing) > 5 else ''}. Compute outputs that do not pass "
                    "through them (the trunk's, or the old head's), or anchor them if they are "
                    "pretrained."
                ) from error
            raise
        _check_rows(column.shape, jax.tree.leaves(dict(batch))[0].shape[0], name)
        return step(state, fixed, {**batch, name: jax.lax.stop_gradient(column)})

    return with_column


def reference_columns(
    outputs: Outputs, pretrained: PyTree, batches: Iterable[Batch], num_rows: int
) -> np.ndarray:
    """Return the pretrained model's outputs for every row of a data set, by row number.

    Args:
      outputs: `(pretrained params, batch) -> (B, ...)`, the same shape for every padded length:
        outputs of rows, not of tokens.
      pretrained: the pretrained params; holes where `outputs` reads nothing.
      batches: each with `index` (B,), the row number of each row, negative for filler rows.
        One epoch is enough; a row that comes again is written again.
      num_rows: rows in all.

    Returns:
      (num_rows, ...) in host memory.

    Raises:
      ValueError: if a batch has no `index`, a row never comes or lies outside, or the outputs do
        not fit.

    >>> batches = [{"x": np.array([1.0, 2.0]), "index": np.array([1, -1])},
    ...            {"x": np.array([5.0]), "index": np.array([0])}]
    >>> reference_columns(lambda params, batch: params * batch["x"], 2.0, batches, 2).tolist()
    [10.0, 2.0]
    """
    run = jax.jit(outputs)
    seen = np.zeros(num_rows, bool)
    table = np.zeros(0)
    for batch in batches:
        index = _index_of(batch)
        values = np.asarray(run(pretrained, {k: v for k, v in batch.items() if k != "index"}))
        _check_rows(values.shape, len(index), "the reference")
        if not seen.any():
            table = np.zeros((num_rows, *values.shape[1:]), values.dtype)
        if values.shape[1:] != table.shape[1:]:
            raise ValueError(
                f"the outputs of a batch have shape {values.shape} and those before "
                f"(..., {', '.join(map(str, table.shape[1:]))}). Only outputs of one shape a row "
                "can be kept; pool over the tokens, or use with_reference"
            )
        _check_index(index, num_rows)
        rows = index[index >= 0]
        table[rows] = values[index >= 0]
        seen[rows] = True
    if not seen.all():
        raise ValueError(
            f"{np.count_nonzero(~seen)} of {num_rows} rows are in no batch, row "
            f"{int(np.argmin(seen))} first; give the batches of a whole epoch"
        )
    return table


def with_columns(
    batch_at: Callable[[int], Batch], columns: Mapping[str, np.ndarray]
) -> Callable[[int], Batch]:
    """Return `batch_at` whose batches gain columns that are looked up by row number.

    Args:
      batch_at: `batch_at(i)` is the batch of update i, with `index` (B,).
      columns: `{name: (num_rows, ...)}`, as `reference_columns` gives them. Filler rows (index
        below zero) get some row's values; they do not count.

    Raises:
      ValueError: from the returned function, if a batch has no `index`, has such a column already,
        or holds a row that the columns do not have.

    >>> at = with_columns(lambda step: {"index": np.array([2, -1])}, {"y": np.array([5, 6, 7])})
    >>> at(0)["y"].tolist()
    [7, 5]
    """

    def at(step: int) -> Batch:
        batch = batch_at(step)
        index = _index_of(batch)
        for name, column in columns.items():
            if name in batch:
                raise ValueError(f"batch {step} has a column {name!r} already; rename one of them")
            _check_index(index, len(column))
        rows = np.maximum(index, 0)
        return {**batch, **{name: column[rows] for name, column in columns.items()}}

    return at


def _index_of(batch: Batch) -> np.ndarray:
    if "index" not in batch:
        raise ValueError(
            f"a batch has no 'index' (it has {', '.join(batch)}), the row number that the "
            "reference is kept by"
        )
    return np.asarray(batch["index"])


def _check_index(index: np.ndarray, num_rows: int) -> None:
    if index.size and index.max() >= num_rows:
        raise ValueError(
            f"a batch holds row {int(index.max())}, and the reference has rows 0 to "
            f"{num_rows - 1}: it was computed from another data set"
        )


def _check_rows(shape: tuple[int, ...], rows: int, name: str) -> None:
    if not shape or shape[0] != rows:
        raise ValueError(
            f"{name} has shape {shape} for a batch of {rows} rows; its first axis must be the rows"
        )


def _holes_of(tree: PyTree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=holes)
    return [path_of(keys) for keys, leaf in leaves if leaf is None]
