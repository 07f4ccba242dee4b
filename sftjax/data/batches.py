"""Batches of a handful of padded lengths, each a pure function of its number."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import numpy as np

from sftjax.core import WHOLE, Share
from sftjax.data.encoded import Encoded
from sftjax.data.holdout import permutation
from sftjax.data.labels import IGNORED

NumpyBatch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Rows in batches of equal size and of few padded lengths; `at(step)` is batch number `step`.

    Every epoch holds every row exactly once. A row belongs to the shortest padded length that it
    fits; those left over when a length's rows are cut into full batches move up to the next length.
    So each epoch has the same number of batches of each length, only its last batch may be filled
    up, and a compiled step is traced once for each of `shapes`.

    >>> from sftjax.data.encoded import pack
    >>> rows = pack([[1] * n for n in (3, 9, 4, 20, 5)], pad_id=0, max_length=32)
    >>> batches = Batches(rows, batch_size=2, lengths=(16, 32), shuffle=False)
    >>> batches.steps_per_epoch, batches.shapes
    (3, {16: 2, 32: 1})
    >>> batches.at(2)["index"], batches.at(2)["valid"]
    (array([ 3, -1], dtype=int32), array([1., 0.], dtype=float32))
    """

    encoded: Encoded
    """The tokenised rows."""
    labels: np.ndarray | None = None
    """(N, ...) one label a row; None to predict, or when `encoded` has labels of tokens."""
    batch_size: int = 32
    lengths: Sequence[int] | None = None
    """Padded lengths, ascending; default `bucket_lengths` of the rows."""
    seed: int = 0
    shuffle: bool = True
    """False keeps one order (short rows first, then as in the table) in every epoch."""

    def __post_init__(self) -> None:
        """Refuse what could not make batches, before the first step."""
        rows = len(self.encoded)
        if not rows:
            raise ValueError("there are no rows to make batches of")
        if self.batch_size < 1 or self.seed < 0:
            raise ValueError(
                f"batch_size={self.batch_size} must be positive and seed={self.seed} not negative"
            )
        if self.labels is not None and self.encoded.token_labels is not None:
            raise ValueError(
                "the encoded rows have a label for each token (encode_words) already; leave out "
                "labels, which has one for each row"
            )
        if self.labels is not None and len(self.labels) != rows:
            raise ValueError(
                f"there are {rows} rows and {len(self.labels)} labels; give one label for each row"
            )
        longest = int(self.encoded.lengths.max())
        if longest > self.padded_lengths[-1]:
            row = int(self.encoded.lengths.argmax())
            raise ValueError(
                f"row {row} (counted from 0) has {longest} tokens, more than the greatest padded "
                f"length {self.padded_lengths[-1]}. Add a length, or encode with less max_length."
            )

    @cached_property
    def padded_lengths(self) -> tuple[int, ...]:
        """The padded lengths, ascending."""
        if self.lengths is None:
            return bucket_lengths(self.encoded.lengths, longest=self.encoded.max_length)
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"the padded lengths must ascend, not {self.lengths}")
        return tuple(self.lengths)

    @cached_property
    def shapes(self) -> dict[int, int]:
        """`{padded length: batches of it in an epoch}`, the lengths that occur."""
        return {length: count for length, count in self._counts.items() if count}

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same in every one: rows / batch_size, rounded up."""
        return -(-len(self.encoded) // self.batch_size)

    @property
    def padding(self) -> float:
        """Share of the tokens in a batch that are padding, over an epoch."""
        total = self.batch_size * sum(length * count for length, count in self.shapes.items())
        return 1 - int(self.encoded.offsets[-1]) / total

    def at(self, step: int, share: Share = WHOLE) -> NumpyBatch:
        """Return batch number `step` of the run, counted from 0, through all epochs.

        Args:
          step: any non-negative integer.
          share: which of the batch's rows, for one of several processes; others are not read.

        Returns:
          `input_ids`, `attention_mask` and, if the model has them, `token_type_ids`: (B, T) int32;
          `labels` if there are any: (B, ...), of tokens (B, T) with -100 where none counts;
          `valid`: (B,) float32, 0 for the copies that fill up the last batch of an epoch;
          `index`: (B,) int32, the position of each row in the table, -1 for those copies.
        """
        if step < 0:
            raise ValueError(f"batches are counted from 0; there is no batch {step}")
        epoch, position = divmod(int(step), self.steps_per_epoch)
        length, rows = self._epoch(epoch if self.shuffle else 0)[position]
        index = np.full(self.batch_size, -1, np.int32)
        index[: len(rows)] = rows
        index = index[share.of(self.batch_size)]
        # Fillers are copies of a real row: nothing in them can overflow or divide by zero.
        source = np.where(index < 0, rows[0], index)
        return self._gather(source, length) | {
            "valid": (index >= 0).astype(np.float32),
            "index": index,
        }

    @cached_property
    def _bucket(self) -> np.ndarray:
        """(N,) which of the padded lengths each row fits."""
        return np.searchsorted(self.padded_lengths, self.encoded.lengths)

    @cached_property
    def _counts(self) -> dict[int, int]:
        left, counts = 0, {}
        for bucket, length in enumerate(self.padded_lengths):
            left += int(np.count_nonzero(self._bucket == bucket))
            counts[length], left = divmod(left, self.batch_size)
        counts[self.padded_lengths[-1]] += left > 0
        return counts

    @cached_property
    def _epoch(self) -> Callable[[int], list[tuple[int, np.ndarray]]]:
        # A cache of this object's own: prefetching across the border of two epochs needs both.
        return lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Return `(padded length, rows)` of every batch of an epoch."""
        rows, size = len(self.encoded), self.batch_size
        order = permutation(rows, self.seed, epoch) if self.shuffle else np.arange(rows)
        left = order[:0]
        plan: list[tuple[int, np.ndarray]] = []
        for bucket, length in enumerate(self.padded_lengths):
            # Rows that moved up come first, so that they do not move up for ever.
            waiting = np.concatenate([left, order[self._bucket[order] == bucket]])
            full = len(waiting) - len(waiting) % size
            plan += [(length, batch) for batch in waiting[:full].reshape(-1, size)]
            left = waiting[full:]
        if self.shuffle:
            plan = [plan[i] for i in permutation(len(plan), self.seed, epoch, 1)]
        return plan + ([(self.padded_lengths[-1], left)] if len(left) else [])

    def _gather(self, rows: np.ndarray, length: int) -> NumpyBatch:
        starts, stops = self.encoded.offsets[rows], self.encoded.offsets[rows + 1]
        columns = starts[:, None] + np.arange(length)
        mask = columns < stops[:, None]
        where = np.where(mask, columns, 0)

        def padded(flat: np.ndarray, fill: int) -> np.ndarray:
            return np.where(mask, flat[where], np.int32(fill))

        batch = {
            "input_ids": padded(self.encoded.ids, self.encoded.pad_id),
            "attention_mask": mask.astype(np.int32),
        }
        if self.encoded.type_ids is not None:
            batch["token_type_ids"] = padded(self.encoded.type_ids, 0)
        if self.encoded.token_labels is not None:
            batch["labels"] = padded(self.encoded.token_labels, IGNORED)
        elif self.labels is not None:
            batch["labels"] = self.labels[rows]
        return batch


def bucket_lengths(
    lengths: np.ndarray, *, most: int = 4, multiple: int = 16, longest: int | None = None
) -> tuple[int, ...]:
    """Choose the padded lengths that pad the least: `sum over rows of (padded - length)`.

    Args:
      lengths: (N,) tokens of each row.
      most: how many lengths at most; each compiles once.
      multiple: padded lengths are multiples of this.
      longest: the model's limit, which the greatest length does not exceed.

    Returns:
      The padded lengths, ascending; the greatest holds the longest row.

    >>> bucket_lengths(np.array([5, 6, 7, 30, 120]), most=2)
    (32, 128)
    """
    steps = np.maximum(-(-np.asarray(lengths) // multiple), 1)
    rows = np.concatenate([[0], np.cumsum(np.bincount(steps)[1:])])  # rows of at most k multiples
    last = len(rows) - 1
    # cost[k]: least padded tokens (in multiples) of the rows up to length k, whose end is k.
    cost = np.arange(last + 1) * rows
    ends: list[tuple[int, ...]] = [(k,) for k in range(last + 1)]
    for _ in range(most - 1):
        better, chosen = cost.copy(), list(ends)
        for end in range(1, last + 1):
            for start in range(1, end):
                total = cost[start] + end * (rows[end] - rows[start])
                if total < better[end]:
                    better[end], chosen[end] = total, (*ends[start], end)
        cost, ends = better, chosen
    limit = longest or last * multiple
    return tuple(min(end * multiple, limit) for end in ends[last])
