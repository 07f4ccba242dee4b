"""Rows as batches: a function of the update's number in training, one pass in order elsewhere."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

from sftjax.core import Batch
from sftjax.data import Table
from sftjax.train import spread

EVAL_ROWS = 64
"""Rows per device in a batch of a pass that trains nothing."""


class Batched(Protocol):
    """One split of labelled rows, of text or of pictures, ready to be batched."""

    @property
    def table(self) -> Table:
        """The rows as they were read."""
        ...

    @property
    def labels(self) -> Any:
        """`data.Labels`, or None."""
        ...

    @property
    def size(self) -> int:
        """How many rows."""
        ...

    @property
    def mask(self) -> str | None:
        """The entry of a batch that marks tokens, if there is one (see `train.keep_prefix`)."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What the inputs are, labels aside."""
        ...

    def batches(self, size: int, *, seed: int = 0, shuffle: bool = False) -> Any:
        """Cut the rows into batches: `steps_per_epoch` and `at(step)`."""
        ...


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches whose content is a function of the update's number."""

    steps_per_epoch: int
    """Batches in one pass."""
    at: Callable[[int], Batch]
    """The batch of an update, counted from 0, through all passes."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the first pass, dealt out over the devices; every time anew."""
        at = spread(self.at)
        return (at(step) for step in range(self.steps_per_epoch))


def in_order(rows: Batched, per_device: int = EVAL_ROWS) -> Stream:
    """Return the rows unshuffled, so many on each device."""
    batches = rows.batches(per_device * jax.local_device_count())
    return Stream(batches.steps_per_epoch, batches.at)


def shuffled(rows: Batched, size: int, seed: int) -> Stream:
    """Return training batches of `size` rows, in an order of its own in every pass."""
    batches = rows.batches(size, seed=seed, shuffle=True)
    return Stream(batches.steps_per_epoch, batches.at)
