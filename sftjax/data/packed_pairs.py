"""Several pairs in one row: sources side by side, targets side by side, told apart by segment."""

import dataclasses
from functools import cached_property

import numpy as np

from sftjax.data.batches import NumpyBatch
from sftjax.data.holdout import permutation
from sftjax.data.labels import IGNORED
from sftjax.data.pairs import Pairs


@dataclasses.dataclass(frozen=True, eq=False)
class PackedPairs:
    """Pairs packed into rows of one shape; `at(step)` is batch number `step`.

    Pair number 1 of a row has segment 1 in its source and in its target, and so on; padding has
    segment 0. Attention of the encoder, of the decoder and across stays within a segment, so the
    loss is that of the pairs alone. Every target begins with the start token.

    Pairs are placed once, in an order drawn by the seed, each into the first row with room for both
    of its sides; epochs shuffle the rows. So each epoch holds every pair exactly once and has the
    same number of batches, all of one shape.

    >>> from sftjax.data.encoded import pack
    >>> source = pack([[5] * n for n in (3, 4, 7)], pad_id=0, max_length=8)
    >>> target = pack([[7] * n for n in (2, 1, 3)], pad_id=0, max_length=4)
    >>> packed = PackedPairs(Pairs(source, target, start_id=9), 1, 8, 4, shuffle=False)
    >>> packed.steps_per_epoch, packed.at(0)["segment_ids"], packed.at(0)["decoder_input_ids"]
    (2, array([[1, 1, 1, 2, 2, 2, 2, 0]], dtype=int32), array([[9, 7, 9, 0]], dtype=int32))
    """

    pairs: Pairs
    batch_size: int
    source_length: int
    target_length: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse pairs that fit no row."""
        if not len(self.pairs) or self.batch_size < 1 or self.seed < 0:
            raise ValueError(
                f"there are {len(self.pairs)} pairs, batch_size={self.batch_size} and "
                f"seed={self.seed}; packing needs at least one pair, a positive batch_size and a "
                "seed that is not negative"
            )
        for name, side, most in (
            ("source", self.pairs.source, self.source_length),
            ("target", self.pairs.target, self.target_length),
        ):
            if side.lengths.max() > most:
                row = int(side.lengths.argmax())
                raise ValueError(
                    f"row {row} (counted from 0) has a {name} of {side.lengths[row]} tokens, and "
                    f"packed rows have {most}; encode with less max_{name}_length or pack longer"
                )

    @cached_property
    def rows(self) -> list[list[int]]:
        """The pairs of each packed row, by their position in the table."""
        count = len(self.pairs)
        order = permutation(count, self.seed, 0, 2) if self.shuffle else np.arange(count)
        sources, targets = self.pairs.source.lengths, self.pairs.target.lengths
        # Room left in every row that is still open, so that first fit is one look at two arrays.
        room = np.zeros((count, 2), np.int64)
        rows: list[list[int]] = []
        opened = 0
        for pair in order.tolist():
            need = np.array([sources[pair], targets[pair]])
            fitting = np.flatnonzero((room[opened : len(rows)] >= need).all(axis=1))
            if len(fitting):
                place = opened + int(fitting[0])
            else:
                place = len(rows)
                rows.append([])
                room[place] = self.source_length, self.target_length
            rows[place].append(pair)
            room[place] -= need
            while opened < len(rows) and room[opened].min() <= 0:
                opened += 1
        return rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same in every one."""
        return -(-len(self.rows) // self.batch_size)

    @property
    def padding(self) -> tuple[float, float]:
        """Share of the tokens that are padding over an epoch, of sources and of targets."""
        count = self.steps_per_epoch * self.batch_size
        return (
            1 - int(self.pairs.source.offsets[-1]) / (count * self.source_length),
            1 - int(self.pairs.target.offsets[-1]) / (count * self.target_length),
        )

    def at(self, step: int) -> NumpyBatch:
        """Return batch number `step` of the run, counted from 0, through all epochs.

        Returns:
          What `PairBatches.at` gives, and `segment_ids` (B, T), `decoder_segment_ids` (B, U) int32;
          `index` counts packed rows.
        """
        if step < 0:
            raise ValueError(f"batches are counted from 0; there is no batch {step}")
        epoch, position = divmod(int(step), self.steps_per_epoch)
        count = len(self.rows)
        order = permutation(count, self.seed, epoch) if self.shuffle else np.arange(count)
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        index = np.full(self.batch_size, -1, np.int32)
        index[: len(chosen)] = chosen
        batch = self._gather([self.rows[chosen[0] if row < 0 else row] for row in index])
        valid = (index >= 0).astype(np.float32)
        batch["loss_weights"] *= valid[:, None]
        return batch | {"valid": valid, "index": index}

    def _gather(self, rows: list[list[int]]) -> NumpyBatch:
        pairs, sources, targets = self.pairs, self.pairs.source, self.pairs.target
        long, short = (len(rows), self.source_length), (len(rows), self.target_length)
        batch = {
            "input_ids": np.full(long, sources.pad_id, np.int32),
            "segment_ids": np.zeros(long, np.int32),
            "decoder_input_ids": np.full(short, targets.pad_id, np.int32),
            "decoder_segment_ids": np.zeros(short, np.int32),
            "labels": np.full(short, IGNORED, np.int32),
            "loss_weights": np.zeros(short, np.float32),
        }
        for row, members in enumerate(rows):
            here, there = 0, 0
            for segment, pair in enumerate(members, start=1):
                start, stop = sources.offsets[pair], sources.offsets[pair + 1]
                read = slice(here, here := here + int(stop - start))
                batch["input_ids"][row, read] = sources.ids[start:stop]
                batch["segment_ids"][row, read] = segment
                start, stop = targets.offsets[pair], targets.offsets[pair + 1]
                said = slice(there, there := there + int(stop - start))
                ids = targets.ids[start:stop]
                batch["decoder_input_ids"][row, said] = [pairs.start_id, *ids[:-1]]
                batch["decoder_segment_ids"][row, said] = segment
                batch["labels"][row, said] = ids
                weights = 1.0 if pairs.weights is None else pairs.weights[start:stop]
                batch["loss_weights"][row, said] = weights
        batch["attention_mask"] = (batch["segment_ids"] > 0).astype(np.int32)
        batch["decoder_attention_mask"] = (batch["decoder_segment_ids"] > 0).astype(np.int32)
        return batch
