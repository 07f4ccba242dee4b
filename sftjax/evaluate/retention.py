"""What a fine-tuned model kept of its pretraining, in one call.

Weights: how far each block moved. Features and outputs: how far they drifted on reference data.
Labelled tasks: what was forgotten. Only the distances need nothing but the weights; whatever else
was not given is reported as not measured.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.core import PyTree
from sftjax.evaluate.bootstrap import Interval, paired_bootstrap
from sftjax.evaluate.checks import Undefined, scores
from sftjax.evaluate.metric import row_mean
from sftjax.evaluate.moved import Moved, moved, whole
from sftjax.evaluate.retrieval import Retrieval, same_group_retrieval
from sftjax.evaluate.similarity import kl_divergence, linear_cka
from sftjax.evaluate.tables import cell, table

Pair = tuple[ArrayLike, ArrayLike]
"""`(before, after)`: of the pretrained and of the fine-tuned model, on the same rows."""

RETRIEVAL = "same-group retrieval P@1"
"""The name of the task that embeddings and groups make."""

COLUMNS = ("measure", "of", "value", "low", "high", "rows", "note")
"""Of `Retention.rows`."""


class Forgetting(NamedTuple):
    """A labelled task that pretraining could do, before and after fine-tuning."""

    task: str
    before: float
    """Mean score of the pretrained model."""
    after: float
    """Mean score of the fine-tuned model, on the same rows: what is retained."""
    forgotten: Interval
    """`before - after` with its bootstrap interval; negative where fine-tuning helped."""
    rows: int
    """How many rows were asked."""
    excluded: int = 0
    """How many could not be asked (retrieval: rows alone in their group)."""


class Drift(NamedTuple):
    """A distance between the two models on reference rows."""

    value: float
    """NaN where it is undefined: the features of one model are the same for every row."""
    rows: int


class Retention(NamedTuple):
    """What a run kept, and how far it went."""

    whole: Moved
    """All pretrained weights as one block."""
    moved: tuple[Moved, ...]
    """Block by block."""
    features: Drift | None = None
    """Linear CKA of the embeddings: 1 is the same up to rotation and scale."""
    outputs: Drift | None = None
    """Mean `KL(p0 || p)` of the outputs, in nats: 0 is the same."""
    tasks: tuple[Forgetting, ...] = ()
    """Labelled tasks: retrieval first, then those given, in their order."""
    reference: str = "reference"
    """The data that the drift and the retrieval were measured on."""

    def __str__(self) -> str:
        """Return a text of some lines: tasks, drift, and a table of the blocks."""
        tasks = [_task_line(task) for task in self.tasks] or ["labelled task: not measured"]
        columns = {
            "block": "block",
            "|w - w0|": "distance",
            "relative": "relative",
            "spectral": "spectral",
            "scalars": "scalars",
            "new": "new",
        }
        rows = [
            {name: getattr(block, field) for name, field in columns.items()}
            for block in (*self.moved, self.whole)
        ]
        return "\n".join(
            [
                f"retention, measured on {self.reference}",
                *tasks,
                _drift_line("features, linear CKA with the pretrained", self.features),
                _drift_line("outputs, mean KL(p0 || p) in nats", self.outputs),
                "",
                table(rows, list(columns)),
            ]
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a measure (`COLUMNS`), for tables and JSON; nothing is left out.

        `value` is None where the note says why: "not measured", "undefined" or "infinite".
        `rows` is how many scalars (weights) or rows of data the value is over.
        """
        distances = [
            _fact(measure, block.block, getattr(block, measure), block.scalars)
            for block in (self.whole, *self.moved)
            for measure in ("distance", "relative", "spectral")
        ]
        drifts = [
            _fact(measure, self.reference, drift and drift.value, drift and drift.rows)
            for measure, drift in (("linear CKA", self.features), ("KL(p0 || p)", self.outputs))
        ]
        if not self.tasks:
            return [*distances, *drifts, _fact("forgotten", "labelled task", None, None)]
        return [*distances, *drifts, *(row for task in self.tasks for row in _task_rows(task))]


def retention(
    anchor: PyTree,
    params: PyTree,
    *,
    embeddings: Pair | None = None,
    logits: Pair | None = None,
    groups: ArrayLike | None = None,
    tasks: Mapping[str, Pair] | None = None,
    reference: str = "reference",
    block: Callable[[str], str] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Retention:
    """Compare a fine-tuned model with the pretrained one it came from. Runs no model.

    Args:
      anchor: the pretrained params, without leaves that are new.
      params: the fine-tuned params, all of them.
      embeddings: (N, D) of both models on text like pretraining's: drift of the features.
      logits: (N, C) of both models on such text, where pretraining came with outputs: their drift.
      groups: (N,) group ids of the embeddings' rows (the article of each sentence): retrieval.
        Its interval draws whole groups of queries; what they are searched among stays the same.
      tasks: name -> (M,) score of each row by both models (1 right, 0 wrong), for any other task
        that pretraining could do. Rows are drawn one by one.
      reference: the name of the data that embeddings and logits are of.
      block: path -> name of its block; `block_names` when left out.
      resamples: of the bootstrap.
      level: of its intervals.
      seed: of its draws.

    Returns:
      A `Retention`; print it, or take its `rows()`.

    Raises:
      ValueError: if the anchor does not fit the params, rows differ in number, a value is not
        finite (naming the row), or groups come without embeddings.
      Undefined: (a ValueError) if groups are given and none has two rows.

    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> kept = retention(
    ...     {"w": np.ones(2)}, {"w": np.ones(2)}, embeddings=(x, x), groups=[0, 0, 1, 1],
    ...     reference="four rows")
    >>> print(kept)
    retention, measured on four rows
    same-group retrieval P@1: 1.000 before, 1.000 after, forgotten 0.000 [0.000, 0.000] (4 rows)
    features, linear CKA with the pretrained: 1.000 (4 rows)
    outputs, mean KL(p0 || p) in nats: not measured
    <BLANKLINE>
    block  |w - w0|  relative  spectral  scalars  new
    w         0.000     0.000     0.000        2    0
    whole     0.000     0.000     0.000        2    0
    """
    distances = moved(anchor, params, block)
    features = outputs = None
    done = []
    if embeddings is not None:
        before, after = _pair("embeddings", embeddings, ndim=2)
        features = Drift(_or_nan(linear_cka, before, after), len(before))
        if groups is not None:
            ids = np.asarray(groups)
            found = same_group_retrieval(before, ids), same_group_retrieval(after, ids)
            done.append(_retrieval(*found, ids, resamples, level, seed))
    elif groups is not None:
        raise ValueError(
            "groups are given without embeddings; retrieval needs both models' embeddings of the "
            "same rows: embeddings=(before, after)"
        )
    if logits is not None:
        before, after = _pair("logits", logits, ndim=2)
        outputs = Drift(kl_divergence(before, after), len(before))
    for name, given in (tasks or {}).items():
        before, after = _pair(f"task {name!r}", given, ndim=1)
        forgotten = _difference(before, after, None, resamples, level, seed)
        done.append(
            Forgetting(name, float(before.mean()), float(after.mean()), forgotten, len(before))
        )
    return Retention(
        whole=whole(distances, anchor),
        moved=distances,
        features=features,
        outputs=outputs,
        tasks=tuple(done),
        reference=reference,
    )


def _pair(name: str, given: Pair, ndim: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(given) != 2:
        raise ValueError(f"{name}: expected (before, after), got {len(given)} items")
    before, after = (
        scores(f"{name}, {when}", values, ndim)
        for when, values in zip(("before", "after"), given, strict=True)
    )
    if len(before) != len(after):
        raise ValueError(
            f"{name}: {len(before)} rows before and {len(after)} after; pass the same rows of both "
            "models, in the same order"
        )
    return before, after


def _or_nan(measure: Callable[..., float], *arrays: NDArray[np.float64]) -> float:
    """Collapsed features are a finding of a run, not a mistake of its caller."""
    try:
        return measure(*arrays)
    except Undefined:
        return math.nan


def _retrieval(
    before: Retrieval,
    after: Retrieval,
    groups: NDArray[Any],
    resamples: int,
    level: float,
    seed: int,
) -> Forgetting:
    forgotten = _difference(before.hits, after.hits, groups[before.rows], resamples, level, seed)
    return Forgetting(
        RETRIEVAL, before.precision, after.precision, forgotten, before.queries, before.excluded
    )


def _difference(
    before: NDArray[Any],
    after: NDArray[Any],
    groups: NDArray[Any] | None,
    resamples: int,
    level: float,
    seed: int,
) -> Interval:
    return paired_bootstrap(
        row_mean,
        before,
        after,
        np.arange(len(before)),
        groups=groups,
        resamples=resamples,
        level=level,
        seed=seed,
    )


def _task_line(task: Forgetting) -> str:
    left_out = f", {task.excluded:,} left out" if task.excluded else ""
    return (
        f"{task.task}: {cell(task.before)} before, {cell(task.after)} after, "
        f"forgotten {cell(task.forgotten)} ({task.rows:,} rows{left_out})"
    )


def _drift_line(what: str, drift: Drift | None) -> str:
    found = "not measured" if drift is None else f"{cell(drift.value)} ({drift.rows:,} rows)"
    return f"{what}: {found}"


def _task_rows(task: Forgetting) -> list[dict[str, Any]]:
    lost = task.forgotten
    return [
        _fact("before", task.task, task.before, task.rows),
        _fact("after", task.task, task.after, task.rows),
        _fact("forgotten", task.task, lost.value, task.rows)
        | {"low": lost.low, "high": lost.high, "note": f"{lost.level:.0%} interval"},
    ]


def _fact(measure: str, of: str, value: float | None, rows: int | None) -> dict[str, Any]:
    note = ""
    if value is None:
        note = "not measured"
    elif not math.isfinite(value):
        value, note = None, "undefined" if math.isnan(value) else "infinite"
    return dict(zip(COLUMNS, (measure, of, value, None, None, rows, note), strict=True))
