"""How fast updates go, and what share of the time the device waits for its batch."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from sftjax.core import Batch

STARVING = 0.1
"""The share of the time spent waiting for data above which a run is told so."""


class Pace:
    """A stopwatch of one loop: work, waiting, and what went through since it was last read."""

    seconds: float
    """Spent in updates so far, evaluation and saving left out."""
    waited: float
    """Of these, spent by an idle device waiting for a batch."""

    def __init__(self) -> None:
        """Start."""
        self.seconds = self.waited = 0.0
        self._updates = self._rows = self._places = 0
        self._waited = self._work = 0.0
        self._tick = time.perf_counter()

    def fetch(self, at: Callable[[int], Batch], number: int, idle: Callable[[], bool]) -> Batch:
        """Call `at(number)`; the time counts as waiting where the device is idle at its end."""
        began = time.perf_counter()
        batch = at(number)
        if self._updates + self.seconds and idle():  # nothing runs yet before the first update
            self._waited += time.perf_counter() - began
        rows, places = sizes(batch)
        self._updates, self._rows = self._updates + 1, self._rows + rows
        self._places += places
        return batch

    def pause(self) -> None:
        """Stop the watch, for an evaluation or a save."""
        self._work += time.perf_counter() - self._tick

    def go_on(self) -> None:
        """Start it again."""
        self._tick = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return rates since the last reading; the watch must be paused."""
        work, updates = self._work, self._updates
        self.seconds, self.waited = self.seconds + work, self.waited + self._waited
        found = {"seconds": work, "waiting": self._waited / work if work > 0 else 0.0}
        if work > 0:
            found["updates_per_second"] = updates / work
            found["rows_per_second"] = self._rows / work
            if self._places:
                found["tokens_per_second"] = self._places / work
        self._updates = self._rows = self._places = 0
        self._waited = self._work = 0.0
        return found


def sizes(batch: Mapping[str, Any]) -> tuple[int, int]:
    """Return the rows of a batch and its places for tokens, padding among them (0 without tokens).

    >>> import numpy as np
    >>> sizes({"input_ids": np.zeros((2, 8))}), sizes({"image": np.zeros((4, 3, 3))})
    ((2, 16), (4, 0))
    """
    leaves = jax.tree.leaves(batch)
    rows = next((leaf.shape[0] for leaf in leaves if getattr(leaf, "ndim", 0)), 0)
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return rows, 0 if ids is None else int(ids.size)
