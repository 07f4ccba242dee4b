"""Pictures decoded in parallel into one array, and batches of them whose position is the step."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from sftjax.core import WHOLE, Share
from sftjax.data.batches import NumpyBatch
from sftjax.data.decode import Pixels, Reference, UnreadableImage, name_of
from sftjax.data.decoders import Decoders, decode_all, decoders
from sftjax.data.holdout import permutation
from sftjax.data.processor import Processor
from sftjax.data.table import Table


class Corrupt(NamedTuple):
    """An image that could not be read."""

    row: int
    """Its position in the table, from 0."""
    name: str
    reason: str


class Images(NamedTuple):
    """The pixels of every row of a table that could be read."""

    pixels: np.ndarray
    """(N, H, W, C) uint8 or uint16, resized and cropped, not normalized."""
    processor: Processor
    """What made them, and what normalizes them."""
    table: Table
    """The N rows that `pixels` holds, in order."""
    corrupt: tuple[Corrupt, ...] = ()
    """Rows left out because the caller asked for it; empty unless `skip_corrupt`."""


def load_images(
    table: Table,
    processor: Processor,
    *,
    column: str = "image",
    skip_corrupt: bool = False,
    threads: int | None = None,
    workers: Decoders | None = None,
) -> Images:
    """Decode, resize and crop every picture of a table, on several threads or processes.

    Rows that share a file (boxes, slices) open it once. Pictures of 8 bits stay 8 bits; one of 16
    among them makes all of them 16 bits, the same shades. All of them live in memory:
    N * H * W * C bytes of 8 bits.

    Args:
      table: rows with a column of `Reference`s (`read_images`).
      processor: of one `size`; its channels are those of the pixels.
      column: the column of images.
      skip_corrupt: leave unreadable pictures out and list them in `corrupt`; otherwise refuse.
      threads: how many decode at once; default the machine's cores.
      workers: who decodes instead (`decoders`), such as processes; the pixels are the same.

    Raises:
      ValueError: naming every picture that cannot be read (the first 20 of many).

    >>> table = Table({"image": [np.zeros((8, 6), np.uint8)]}, name="toy")
    >>> load_images(table, Processor(resize=(4, 4))).pixels.shape
    (1, 4, 4, 3)
    """
    references: Sequence[Reference] = table[column]  # type: ignore[assignment]
    found: list[Pixels | None] = [None] * len(references)
    corrupt: list[Corrupt] = []

    processor.size  # noqa: B018 - refuses a processor without one before anything is decoded
    with contextlib.ExitStack() as stack:
        if workers is None:
            workers = stack.enter_context(decoders(threads=threads))
        for row, picture in decode_all(references, processor, workers):
            if isinstance(picture, str):
                corrupt.append(Corrupt(row, name_of(references[row]), picture))
            else:
                found[row] = picture
    corrupt.sort()
    if corrupt and not skip_corrupt:
        raise UnreadableImage(refusal(table, corrupt))
    rows = [row for row, picture in enumerate(found) if picture is not None]
    if not rows:
        raise UnreadableImage(refusal(table, corrupt))
    pictures = [picture for picture in found if picture is not None]
    return Images(
        _stacked(pictures), processor, table.take(rows) if corrupt else table, tuple(corrupt)
    )


def refusal(table: Table, corrupt: Sequence[Corrupt], most: int = 20) -> str:
    """Say which pictures of a table cannot be read, one a line.

    >>> table = Table({"image": ["a.png"]}, name="pictures")
    >>> print(refusal(table, [Corrupt(0, "a.png", "a.png is empty (0 bytes)")]))
    pictures: 1 of 1 images cannot be read. Replace or remove it, or skip it knowingly:
      row 1: a.png is empty (0 bytes)
    """
    it = "it" if len(corrupt) == 1 else "them"
    numbers = table.rows if len(table.rows) else range(1, len(table) + 1)
    lines = [f"  row {numbers[bad.row]}: {bad.reason}" for bad in corrupt[:most]]
    more = [f"  and {len(corrupt) - most} more"] if len(corrupt) > most else []
    head = (
        f"{table.name}: {len(corrupt)} of {len(table)} images cannot be read. Replace or remove "
        f"{it}, or skip {it} knowingly:"
    )
    return "\n".join([head, *lines, *more])


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBatches:
    """Pictures in batches of one size; `at(step)` is batch number `step`, for ever.

    Every epoch holds every row exactly once; its last batch may be filled up with copies of the
    epoch's first rows, as unlike each other as any (a batch norm sees them).

    >>> images = load_images(
    ...     Table({"image": [np.full((2, 2), 9, np.uint8)] * 3}, name="toy"), Processor((2, 2)))
    >>> batches = ImageBatches(images, np.array([0, 1, 0]), batch_size=2, shuffle=False)
    >>> batches.steps_per_epoch, batches.at(1)["index"], batches.at(1)["pixel_values"].shape
    (2, array([ 2, -1], dtype=int32), (2, 2, 2, 3))
    """

    images: Images
    labels: np.ndarray | None = None
    """(N, ...) one label a row; None to predict."""
    batch_size: int = 32
    seed: int = 0
    shuffle: bool = True
    """False keeps the order of the table in every epoch."""
    normalized: bool = True
    """False gives the pixels as they are (uint8 or uint16): a quarter of the bytes to move, for an
    `augmentation` that normalizes in the step."""

    def __post_init__(self) -> None:
        """Refuse what could not make batches, before the first step."""
        if self.batch_size < 1 or self.seed < 0:
            raise ValueError(
                f"batch_size={self.batch_size} must be positive and seed={self.seed} not negative"
            )
        if self.labels is not None and len(self.labels) != len(self):
            raise ValueError(
                f"there are {len(self)} images and {len(self.labels)} labels; give one label for "
                "each image"
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.images.pixels)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same in every one: rows / batch_size, rounded up."""
        return -(-len(self) // self.batch_size)

    def at(self, step: int, share: Share = WHOLE) -> NumpyBatch:
        """Return batch number `step` of the run, counted from 0, through all epochs.

        Args:
          step: any non-negative integer.
          share: which of the batch's rows, for one of several processes; others are not read.

        Returns:
          `pixel_values` (B, H, W, C), float32 if `normalized`; `labels` (B, ...) if there are any;
          `valid` (B,) float32, 0 for the copies that fill up the last batch of an epoch; `index`
          (B,) int32, the position of each row in the table, -1 for those copies.
        """
        if step < 0:
            raise ValueError(f"batches are counted from 0; there is no batch {step}")
        epoch, position = divmod(int(step), self.steps_per_epoch)
        start = position * self.batch_size
        order = self._order(epoch if self.shuffle else 0)
        places = np.arange(start, start + self.batch_size)[share.of(self.batch_size)]
        source = order[places % len(self)]
        index = np.where(places < len(self), source, -1).astype(np.int32)
        pixels = self.images.pixels[source]
        batch: NumpyBatch = {
            "pixel_values": self.images.processor.normalize(pixels) if self.normalized else pixels,
            "valid": (index >= 0).astype(np.float32),
            "index": index,
        }
        if self.labels is not None:
            batch["labels"] = self.labels[source]
        return batch

    @cached_property
    def _order(self) -> Callable[[int], np.ndarray]:
        return lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        rows = len(self)
        return permutation(rows, self.seed, epoch) if self.shuffle else np.arange(rows)


def _stacked(pictures: list[Pixels]) -> np.ndarray:
    dtype = np.dtype(np.uint16 if any(p.dtype == np.uint16 for p in pictures) else np.uint8)
    out = np.empty((len(pictures), *pictures[0].shape), dtype)
    for row, picture in enumerate(pictures):
        # 255 and 65535 are both white: 257 times the one is the other.
        widen = dtype == np.uint16 and picture.dtype == np.uint8
        out[row] = picture.astype(np.uint16) * 257 if widen else picture
    return out
