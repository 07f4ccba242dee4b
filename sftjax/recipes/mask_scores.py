"""Measure masks: Dice of each class, pooled over pixels, with intervals over pictures or groups."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.core import Batch, PyTree
from sftjax.data.labels import IGNORED
from sftjax.evaluate import Interval, Metric, OfSums, Undefined, predict, with_intervals
from sftjax.evaluate.classification import confusion_matrix
from sftjax.objectives import dice_cross_entropy
from sftjax.recipes.scoring import Run
from sftjax.recipes.streams import Batched, Stream


def counts_of(found: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Return for each picture its confusion matrix of pixels, (N, K, K); true classes come first.

    >>> counts_of(np.array([[[0, 1]]]), np.array([[[0, 0]]]), 2).tolist()
    [[[1, 1], [0, 0]]]
    """
    return np.stack(
        [
            confusion_matrix(f[t != IGNORED], t[t != IGNORED], classes)
            if (t != IGNORED).any()
            else np.zeros((classes, classes), np.int64)
            for f, t in zip(found, truth, strict=True)
        ]
    )


def dice_of(total: np.ndarray) -> np.ndarray:
    """Return the Dice of each class, (K,), of a confusion matrix of pixels; NaN of nothing.

    >>> dice_of(np.array([[1, 1], [0, 0]])).round(4).tolist()
    [0.6667, 0.0]
    """
    size = (total.sum(0) + total.sum(1)).astype(np.float64)
    return 2 * np.diagonal(total) / np.where(size > 0, size, np.nan)


def measures(names: Sequence[str]) -> dict[str, Metric]:
    """Return metrics of `(counts (N, K, K), anything)`: mean Dice but background, each, pixels."""

    def checked(value: float) -> float:
        if np.isnan(value):
            raise Undefined("the class is neither there nor found")
        return float(value)

    def mean(sums: np.ndarray) -> float:
        each = dice_of(sums)[1:]
        return checked(float(np.nanmean(each)) if (~np.isnan(each)).any() else float("nan"))

    def of(number: int) -> Callable[[np.ndarray], float]:
        return lambda sums: checked(dice_of(sums)[number])

    def pixels(total: np.ndarray) -> float:
        return checked(np.trace(total) / total.sum() if total.sum() else float("nan"))

    each = {f"dice_{name.replace(' ', '_')}": of(number) for number, name in enumerate(names)}
    scores = {"dice": mean, **each, "pixel_accuracy": pixels}
    return {name: OfSums(score) for name, score in scores.items()}


class MaskScorer:
    """Pictures with masks, and the compiled model that runs over them; as `scoring.Scorer`."""

    def __init__(self, run: Run, rows: Batched, task: str, stream: Stream):
        """Take the rows, a program that gives logits (B, H, W, K), and the rows' batches."""
        del task
        assert rows.labels is not None
        self._stream, self._rows = stream, rows
        self._names, self._truth = rows.labels.names, np.asarray(rows.labels.values)
        classes = len(self._names)
        small = np.uint8 if classes < 256 else np.int32

        def chosen(params: PyTree, batch: Batch) -> jax.Array:
            return jnp.argmax(run(params, batch), -1).astype(small)

        def losses(params: PyTree, batch: Batch) -> jax.Array:
            logits, labels = run(params, batch), batch["labels"]

            def one(z: jax.Array, y: jax.Array) -> jax.Array:
                return jnp.asarray(dice_cross_entropy(z[None], y[None], background=False).sum)

            return jax.vmap(one)(logits, labels)

        self._chosen, self._losses = jax.jit(chosen), jax.jit(losses)

    def outputs(self, params: PyTree) -> np.ndarray:
        """Return the class of every pixel, (N, H, W)."""
        return predict(self._chosen, params, self._stream, self._rows.size)

    def scores(self, params: PyTree) -> dict[str, float]:
        """Return `eval_loss` (with a Dice weight of 1) and the metrics, NaN where undefined."""
        counts = counts_of(self.outputs(params), self._truth, len(self._names))
        found: dict[str, float] = {}
        for name, metric in measures(self._names).items():
            try:
                found[f"eval_{name}"] = metric(counts, None)
            except Undefined:
                found[f"eval_{name}"] = float("nan")
        losses = predict(self._losses, params, self._stream, self._rows.size)
        return {"eval_loss": float(losses.mean()), **found}

    def intervals(
        self, outputs: np.ndarray, groups: Sequence[Any] | None = None
    ) -> dict[str, Interval | float]:
        """Return the metrics with 95 % bootstrap intervals, over pictures or whole groups."""
        counts = counts_of(outputs, self._truth, len(self._names))
        found = with_intervals(
            measures(self._names), counts, np.zeros(len(counts), np.int32), groups=groups
        )
        return {f"eval_{name}": value for name, value in found.items()}
