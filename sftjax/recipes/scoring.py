"""Evaluate a model on fixed rows: numbers while training, numbers with intervals at the end."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.core import Batch, PyTree
from sftjax.evaluate import Interval, metrics, predict, standard, with_intervals
from sftjax.objectives import (
    binary_cross_entropy,
    cross_entropy,
    squared_error,
    token_cross_entropy,
)
from sftjax.recipes.streams import Batched, Stream
from sftjax.recipes.text_rows import PROBLEM_TYPES, Rows

_LOSSES = {
    "single-label": cross_entropy,
    "multi-label": binary_cross_entropy,
    "regression": squared_error,
    "token": token_cross_entropy,
}


Run = Callable[[PyTree, Batch], jax.Array]
"""A compiled `(params, batch) -> logits`."""


def check_metric(name: str, task: str, names: Sequence[str]) -> None:
    """Refuse a metric that a `Scorer` of the task does not report.

    >>> check_metric("eval_accuracy", "single-label", ["no", "yes"])
    """
    known = ["eval_loss", *(f"eval_{metric}" for metric in standard(_problem(task), names))]
    if name not in known:
        raise ValueError(
            f"--metric-for-best-model {name} is not measured; there are: {', '.join(known)}"
        )


def _problem(task: str) -> str:
    return "token_classification" if task == "token" else PROBLEM_TYPES[task]


class Scorer:
    """Labelled rows, and the compiled model that runs over them."""

    def __init__(self, run: Run, rows: Batched, task: str, stream: Stream):
        """Take the rows, a program that scorers of other rows may share, and the rows' batches."""
        assert rows.labels is not None
        self._run = run
        self._stream = stream
        self._count = rows.size
        self._task = task
        self._names = rows.labels.names
        self.labels: Any = rows.labels.values
        if task == "token":
            assert isinstance(rows, Rows)
            assert rows.encoded.token_labels is not None
            self.labels = np.split(rows.encoded.token_labels, rows.encoded.offsets[1:-1])

    def outputs(self, params: PyTree) -> Any:
        """Return the logits of every row, in the order of the table; of tokens, a list."""
        tokens = self._task == "token"
        return predict(self._run, params, self._stream, self._count, per_token=tokens)

    def scores(self, params: PyTree) -> dict[str, float]:
        """Return `eval_loss` and the task's usual metrics, NaN where one has no value."""
        outputs = self.outputs(params)
        found = metrics(
            _problem(self._task), outputs, self.labels, names=self._names, prefix="eval_"
        )
        return {"eval_loss": self._loss(outputs), **found}

    def intervals(
        self, outputs: Any, groups: Sequence[Any] | None = None
    ) -> dict[str, Interval | float]:
        """Return the same metrics with 95 % bootstrap intervals, over rows or whole groups."""
        usual = standard(_problem(self._task), self._names)
        found = with_intervals(usual, outputs, self.labels, groups=groups)
        named = {f"eval_{name}": value for name, value in found.items()}
        return {"eval_loss": self._loss(outputs), **named}

    def _loss(self, outputs: Any) -> float:
        token = self._task == "token"
        logits = jnp.asarray(np.concatenate(outputs) if token else outputs)
        labels = jnp.asarray(np.concatenate(self.labels) if token else self.labels)
        return float(_LOSSES[self._task](logits, labels).mean)
