"""Metrics between two records: read one update late, averaged, and judged for being finite."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sftjax.core import Batch, Metrics

Record = dict[str, float]
"""`step` and named numbers: training means since the last record, or `eval_*` values."""

Event = dict[str, Any]
"""Something that happened in a run, as JSON: `event` says what (see `fit`)."""


class NotFinite(NamedTuple):
    """An update whose metrics are not finite."""

    update: int
    """Its number, counted from 0."""
    name: str
    value: float

    @property
    def what(self) -> str:
        """What is wrong, in words."""
        return f"{self.name} is {self.value}"


def computed(metrics: Metrics) -> bool:
    """Return whether the device has finished these metrics.

    >>> computed({"loss": 0.5})
    True
    """
    ready = getattr(metrics.get("loss"), "is_ready", None)
    return ready is None or bool(ready())


class Window:
    """Means of the metrics since the last record.

    Reading an update's metrics waits for the device, so it is done when the next update has been
    dispatched.
    """

    rows: list[dict[str, float]]
    """The metrics of the updates since the last record."""

    def __init__(
        self,
        record: Callable[[Record], None],
        skipped: Callable[[NotFinite], None],
        watch: Callable[[Event], None],
        rows: Sequence[dict[str, float]] = (),
    ):
        """Start with the rows that a checkpoint in the middle of a window holds.

        Args:
          record: is given each record.
          skipped: is given each update that the step itself left out.
          watch: is given an event for each update.
          rows: of updates before.
        """
        self._record, self._skipped, self._watch = record, skipped, watch
        self._pending: tuple[int, Metrics] | None = None
        self._last = 0
        self.rows = list(rows)

    def add(self, number: int, metrics: Metrics) -> NotFinite | None:
        """Take the metrics of an update, and return what was wrong with the one before."""
        fault = self.read()
        self._pending = number, metrics
        return fault

    def idle(self) -> bool:
        """Return whether the device has finished all that it was given."""
        return self._pending is None or computed(self._pending[1])

    def read(self) -> NotFinite | None:
        """Wait for the metrics of the last update; return what is wrong with them."""
        if self._pending is None:
            return None
        number, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in metrics.items()}
        self._watch({"event": "update", "update": number, **values})
        bad = next(
            (n for n in ("loss", "grad_norm") if not math.isfinite(values.get(n, 0.0))), None
        )
        skipped = values.pop("skipped", 0.0)
        fault = None if bad is None else NotFinite(number, bad, values[bad])
        if skipped:
            self._skipped(fault or NotFinite(number, "the update", math.nan))
            self.rows.append({"skipped": 1.0})
            fault = None
        elif fault is None:
            self.rows.append(values)
        self._last = number + 1
        return fault

    def close(self) -> NotFinite | None:
        """Record the means; return what was wrong with the last update instead, if anything was."""
        if (fault := self.read()) is not None or not self.rows:
            return fault
        sound = [row for row in self.rows if "skipped" not in row]
        means = {name: _mean(name, sound) for name in (sound[0] if sound else ())}
        if left_out := len(self.rows) - len(sound):
            means["skipped"] = left_out
        self.rows = []
        self._record({"step": self._last, **means})
        return None

    def clear(self) -> None:
        """Forget what was not yet recorded."""
        self._pending, self.rows = None, []


def rows_of(batch: Batch) -> list[int]:
    """Return the positions of a batch's rows in the training data, if it says so.

    >>> import numpy as np
    >>> rows_of({"index": np.array([7, 2, -1])}), rows_of({"x": np.ones(2)})
    ([7, 2], [])
    """
    if (index := batch.get("index")) is None:
        return []
    return [int(row) for row in np.asarray(index).ravel() if row >= 0]


def _mean(name: str, rows: list[dict[str, float]]) -> float:
    """Weigh what is a mean over examples by how many those were."""
    over_updates = name in ("grad_norm", "weight")
    weights = [1.0 if over_updates else row.get("weight", 1.0) for row in rows]
    total = math.fsum(w * row[name] for w, row in zip(weights, rows, strict=True))
    return total / (math.fsum(weights) or 1.0)
