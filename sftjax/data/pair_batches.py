"""Batches of sources and targets, each of a few padded lengths of its own: a grid of few shapes."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import numpy as np

from sftjax.core import WHOLE, Share
from sftjax.data.batches import NumpyBatch, bucket_lengths
from sftjax.data.encoded import Encoded
from sftjax.data.holdout import permutation
from sftjax.data.labels import IGNORED
from sftjax.data.pairs import Pairs

Shape = tuple[int, int]
"""Padded lengths of the sources and of the targets."""


@dataclasses.dataclass(frozen=True, eq=False)
class PairBatches:
    """Pairs in batches of equal size and of few shapes; `at(step)` is batch number `step`.

    Every epoch holds every row exactly once. A row belongs to the smallest source length and the
    smallest target length that it fits; those left over when a shape's rows are cut into full
    batches move up, to longer targets first and then to longer sources. So each epoch has the same
    number of batches of each shape, only its last batch may be filled up, and a compiled step is
    traced once for each of `shapes`.

    >>> from sftjax.data.encoded import pack
    >>> source = pack([[5] * n for n in (3, 9, 40, 20)], pad_id=0, max_length=64)
    >>> target = pack([[7] * n for n in (2, 3, 4, 9)], pad_id=0, max_length=16)
    >>> pairs = Pairs(source, target, start_id=0)
    >>> batches = PairBatches(pairs, 2, (16, 64), (4, 16), shuffle=False)
    >>> batches.steps_per_epoch, batches.shapes
    (2, {(16, 4): 1, (64, 16): 1})
    >>> batches.at(0)["decoder_input_ids"]
    array([[0, 7, 0, 0],
           [0, 7, 7, 0]], dtype=int32)
    """

    pairs: Pairs
    batch_size: int = 16
    source_lengths: Sequence[int] | None = None
    """Padded lengths of sources, ascending; default three `bucket_lengths`."""
    target_lengths: Sequence[int] | None = None
    """Padded lengths of targets, ascending; default two `bucket_lengths`, multiples of 8."""
    seed: int = 0
    shuffle: bool = True
    """False keeps one order (shape by shape, then as in the table) in every epoch."""

    def __post_init__(self) -> None:
        """Refuse what could not make batches, before the first step."""
        if not len(self.pairs):
            raise ValueError("there are no rows to make batches of")
        if self.batch_size < 1 or self.seed < 0:
            raise ValueError(
                f"batch_size={self.batch_size} must be positive and seed={self.seed} not negative"
            )
        for name, side, lengths in (
            ("source", self.pairs.source, self._sources),
            ("target", self.pairs.target, self._targets),
        ):
            if not lengths or list(lengths) != sorted(set(lengths)):
                raise ValueError(f"the padded {name} lengths must ascend, not {lengths}")
            if side.lengths.max() > lengths[-1]:
                row = int(side.lengths.argmax())
                raise ValueError(
                    f"row {row} (counted from 0) has a {name} of {side.lengths[row]} tokens, more "
                    f"than the greatest padded length {lengths[-1]}. Add a length, or encode with "
                    f"less max_{name}_length."
                )

    @cached_property
    def _sources(self) -> tuple[int, ...]:
        if self.source_lengths is not None:
            return tuple(self.source_lengths)
        side = self.pairs.source
        return bucket_lengths(side.lengths, most=3, multiple=16, longest=side.max_length)

    @cached_property
    def _targets(self) -> tuple[int, ...]:
        if self.target_lengths is not None:
            return tuple(self.target_lengths)
        side = self.pairs.target
        return bucket_lengths(side.lengths, most=2, multiple=8, longest=side.max_length)

    @cached_property
    def shapes(self) -> dict[Shape, int]:
        """`{(source length, target length): batches of it in an epoch}`, those that occur."""
        counts: dict[Shape, int] = {}
        for shape, _ in self._plan(0):
            counts[shape] = counts.get(shape, 0) + 1
        return dict(sorted(counts.items()))

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same in every one: rows / batch_size, rounded up."""
        return -(-len(self.pairs) // self.batch_size)

    @property
    def padding(self) -> tuple[float, float]:
        """Share of the tokens that are padding over an epoch, of sources and of targets."""
        totals = np.sum([np.array(s) * n for s, n in self.shapes.items()], axis=0) * self.batch_size
        sides = (self.pairs.source, self.pairs.target)
        source, target = (
            1 - int(side.offsets[-1]) / int(all_) for side, all_ in zip(sides, totals, strict=True)
        )
        return source, target

    def at(self, step: int, share: Share = WHOLE) -> NumpyBatch:
        """Return batch number `step` of the run, counted from 0, through all epochs.

        Args:
          step: any non-negative integer.
          share: which of the batch's rows, for one of several processes; others are not read.

        Returns:
          `input_ids`, `attention_mask`: (B, T) int32; `decoder_input_ids` (the labels shifted right
          after the start token), `decoder_attention_mask`: (B, U) int32; `labels`: (B, U) int32,
          -100 in padding; `loss_weights`: (B, U) float32, what counts; `valid`: (B,) float32, 0 for
          the copies that fill up the last batch of an epoch; `index`: (B,) int32, the position of
          each row in the table, -1 for those copies.
        """
        if step < 0:
            raise ValueError(f"batches are counted from 0; there is no batch {step}")
        epoch, position = divmod(int(step), self.steps_per_epoch)
        shape, rows = self._epoch(epoch if self.shuffle else 0)[position]
        index = np.full(self.batch_size, -1, np.int32)
        index[: len(rows)] = rows
        index = index[share.of(self.batch_size)]
        # Fillers are copies of a real row: nothing in them can overflow or divide by zero.
        batch = gather_pairs(self.pairs, np.where(index < 0, rows[0], index), shape)
        valid = (index >= 0).astype(np.float32)
        batch["loss_weights"] = batch["loss_weights"] * valid[:, None]
        return batch | {"valid": valid, "index": index}

    @cached_property
    def _epoch(self) -> Callable[[int], list[tuple[Shape, np.ndarray]]]:
        # A cache of this object's own: prefetching across the border of two epochs needs both.
        return lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> list[tuple[Shape, np.ndarray]]:
        """Return `(shape, rows)` of every batch of an epoch."""
        rows, size = len(self.pairs), self.batch_size
        order = permutation(rows, self.seed, epoch) if self.shuffle else np.arange(rows)
        across = np.searchsorted(self._sources, self.pairs.source.lengths)[order]
        down = np.searchsorted(self._targets, self.pairs.target.lengths)[order]
        left = order[:0]
        plan: list[tuple[Shape, np.ndarray]] = []
        for i, source in enumerate(self._sources):
            longer, left = left, order[:0]
            for j, target in enumerate(self._targets):
                last = j == len(self._targets) - 1
                # What was left of shorter sources has targets of any length: it waits for the last.
                moved = [longer, left] if last else [left]
                waiting = np.concatenate([*moved, order[(across == i) & (down == j)]])
                full = len(waiting) - len(waiting) % size
                plan += [((source, target), b) for b in waiting[:full].reshape(-1, size)]
                left = waiting[full:]
        if self.shuffle:
            plan = [plan[k] for k in permutation(len(plan), self.seed, epoch, 1)]
        return plan + ([((self._sources[-1], self._targets[-1]), left)] if len(left) else [])


def gather_pairs(pairs: Pairs, rows: np.ndarray, shape: Shape) -> NumpyBatch:
    """Return the arrays of some rows, padded to a shape; what `PairBatches.at` says of them.

    >>> from sftjax.data.encoded import pack
    >>> pairs = Pairs(
    ...     pack([[5, 6, 1]], pad_id=0, max_length=8), pack([[7, 1]], pad_id=0, max_length=4), 9)
    >>> batch = gather_pairs(pairs, np.array([0]), (4, 3))
    >>> batch["decoder_input_ids"], batch["labels"], batch["loss_weights"]
    (array([[9, 7, 0]], dtype=int32), array([[   7,    1, -100]], dtype=int32),
     array([[1., 1., 0.]], dtype=float32))
    """
    source, target = pairs.source, pairs.target
    there, read = _places(source, rows, shape[0])
    counted, labels_at = _places(target, rows, shape[1])
    labels = target.ids[labels_at]
    shifted = np.concatenate([np.full((len(rows), 1), pairs.start_id, np.int32), labels], axis=1)
    weights = np.float32(1.0) if pairs.weights is None else pairs.weights[labels_at]
    return {
        "input_ids": np.where(there, source.ids[read], np.int32(source.pad_id)),
        "attention_mask": there.astype(np.int32),
        "decoder_input_ids": np.where(counted, shifted[:, :-1], np.int32(target.pad_id)),
        "decoder_attention_mask": counted.astype(np.int32),
        "labels": np.where(counted, labels, np.int32(IGNORED)),
        "loss_weights": np.where(counted, weights, 0).astype(np.float32),
    }


def _places(side: Encoded, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which places of the padded rows hold tokens, and where those are in the flat array."""
    starts, stops = side.offsets[rows], side.offsets[rows + 1]
    columns = starts[:, None] + np.arange(length)
    there = columns < stops[:, None]
    return there, np.where(there, columns, 0)
