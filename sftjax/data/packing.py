"""Conversations in batches: several in a row, or one, and each batch a function of its number.

Rows that share a row of a batch have numbers (`segment_ids`, from 1, padding is 0) and positions of
their own, so that none sees another: packing changes what a batch holds, never what is computed.
"""

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from sftjax.core import WHOLE, Share
from sftjax.data.batches import Batches, NumpyBatch
from sftjax.data.chat import Chat
from sftjax.data.encoded import Encoded
from sftjax.data.holdout import permutation


class Packing(NamedTuple):
    """How well rows fill batches, over an epoch."""

    filled: float
    """Share of the tokens in a batch that are real."""
    rows_per_update: float
    """Conversations in a batch: with packing an update sees more of them, and there are fewer."""
    updates: int
    """Batches in an epoch."""
    learned_per_update: float
    """Tokens that count in a batch."""

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.updates:,} batches an epoch of {self.rows_per_update:.1f} conversations and "
            f"{self.learned_per_update:,.0f} learned tokens on average, {self.filled:.1%} filled"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ChatBatches:
    """Rows in batches of equal size; `at(step)` is batch number `step`.

    Every epoch holds every row exactly once and has the same number of batches: how many rows fit
    together depends on their lengths alone. Which rows of a length share a batch differs by epoch.

    Raises:
      ValueError: for sizes that make no batches.
    """

    chat: Chat
    batch_size: int = 8
    packing: bool = True
    """Whether conversations share rows of `length` tokens; else each has one, padded to one of a
    few lengths."""
    length: int = 0
    """Tokens in a row with packing; 0 is the `max_length` of the data."""
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse what could not make batches, before the first step."""
        if self.batch_size < 1 or self.seed < 0 or self.length < 0:
            raise ValueError(
                f"batch_size={self.batch_size} must be positive, seed={self.seed} and "
                f"length={self.length} not negative (length=0 takes the data's max_length)"
            )
        longest = int(self.chat.lengths.max())
        if self.packing and longest > self.row_length:
            raise ValueError(
                f"row {int(self.chat.lengths.argmax())} of the kept ones (counted from 0) has "
                f"{longest} tokens and a packed row {self.row_length}; pack into longer rows, or "
                "encode with less max_length"
            )

    @property
    def row_length(self) -> int:
        """Tokens in a packed row."""
        return self.length or self.chat.max_length

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same in every one."""
        if not self.packing:
            return self._unpacked.steps_per_epoch
        return -(-len(self._epoch(0)) // self.batch_size)

    @cached_property
    def report(self) -> Packing:
        """How full the batches of an epoch are."""
        steps = self.steps_per_epoch
        if self.packing:
            room = steps * self.batch_size * self.row_length
        else:
            room = self.batch_size * sum(n * count for n, count in self._unpacked.shapes.items())
        learned = self.chat.learned / steps
        return Packing(len(self.chat.ids) / room, len(self.chat) / steps, steps, learned)

    def at(self, step: int, share: Share = WHOLE) -> NumpyBatch:
        """Return batch number `step` of the run, counted from 0, through all epochs.

        Args:
          step: any non-negative integer.
          share: which of the batch's rows, for one of several processes; others are not read.

        Returns:
          `input_ids`, `attention_mask`, `segment_ids` (from 1; 0 is padding) and `position_ids`
          (from 0 in each segment): (B, T) int32; `loss_weights`: (B, T) float32, how much each
          token counts as a target; `valid`: (B,) float32, 0 for the copies that fill up the last
          batch of an epoch.
        """
        if step < 0:
            raise ValueError(f"batches are counted from 0; there is no batch {step}")
        if not self.packing:
            found, own = self._unpacked.at(step), share.of(self.batch_size)
            rows = found["index"]
            filler = int(rows[0])
            bins = [[filler if row < 0 else int(row)] for row in rows[own]]
            return self._lay(bins, found["input_ids"].shape[1]) | {"valid": found["valid"][own]}
        epoch, position = divmod(int(step), self.steps_per_epoch)
        plan = self._epoch(epoch if self.shuffle else 0)
        bins = plan[position * self.batch_size : (position + 1) * self.batch_size]
        own = share.of(self.batch_size)
        valid = (np.arange(self.batch_size) < len(bins)).astype(np.float32)[own]
        bins = (bins + bins[:1] * (self.batch_size - len(bins)))[own]
        return self._lay(bins, self.row_length) | {"valid": valid}

    @cached_property
    def _unpacked(self) -> Batches:
        chat = self.chat
        rows = Encoded(chat.ids, chat.offsets, chat.pad_id, chat.max_length)
        return Batches(rows, None, self.batch_size, seed=self.seed, shuffle=self.shuffle)

    @cached_property
    def _epoch(self) -> Callable[[int], list[list[int]]]:
        # A cache of this object's own: prefetching across the border of two epochs needs both.
        return lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> list[list[int]]:
        count = len(self.chat)
        order = permutation(count, self.seed, epoch) if self.shuffle else np.arange(count)
        found = best_fit(self.chat.lengths[order], self.row_length)
        bins = [[int(order[i]) for i in rows] for rows in found]
        if not self.shuffle:
            return bins
        return [bins[i] for i in permutation(len(bins), self.seed, epoch, 1)]

    def _lay(self, bins: Sequence[Sequence[int]], length: int) -> NumpyBatch:
        shape = (len(bins), length)
        ids = np.full(shape, self.chat.pad_id, np.int32)
        segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        weights = np.zeros(shape, np.float32)
        for i, rows in enumerate(bins):
            start = 0
            for number, row in enumerate(rows, 1):
                own, counts = self.chat[row]
                part = slice(start, start + len(own))
                ids[i, part], weights[i, part] = own, counts
                segments[i, part], positions[i, part] = number, np.arange(len(own))
                start += len(own)
        return {
            "input_ids": ids,
            "attention_mask": (segments > 0).astype(np.int32),
            "segment_ids": segments,
            "position_ids": positions,
            "loss_weights": weights,
        }


def best_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Put rows into bins by best-fit decreasing: the longest first, each where least is left.

    Args:
      lengths: (N,) tokens of each row, at most `room`.
      room: tokens in a bin.

    Returns:
      The rows of each bin. Their number depends on the lengths, not on their order.

    Raises:
      ValueError: if a row is longer than a bin.

    >>> best_fit(np.array([5, 3, 4, 8, 1]), 9)
    [[3, 4], [0, 2], [1]]
    """
    lengths = np.asarray(lengths)
    if len(lengths) and int(lengths.max()) > room:
        raise ValueError(
            f"row {int(lengths.argmax())} has {int(lengths.max())} tokens, a bin holds {room}"
        )
    bins: list[list[int]] = []
    waiting: dict[int, list[int]] = {}  # room left -> bins
    lefts: list[int] = []  # its keys, ascending
    for row in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[row])
        at = bisect.bisect_left(lefts, size)
        if at == len(lefts):
            left, number = room, len(bins)
            bins.append([])
        else:
            left = lefts[at]
            number = waiting[left].pop()
            if not waiting[left]:
                del waiting[left], lefts[at]
        bins[number].append(row)
        left -= size
        if left not in waiting:
            bisect.insort(lefts, left)
        waiting.setdefault(left, []).append(number)
    return bins
