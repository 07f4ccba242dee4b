"""The shares of several processes are the batch, and a share is all that is read."""

import numpy as np
import pytest

from sftjax.core import Share
from sftjax.data import Audit, Batches, Chat, ChatBatches
from sftjax.data.encoded import pack
from sftjax.data.images import ImageBatches, Images
from sftjax.data.pair_batches import PairBatches
from sftjax.data.pairs import Pairs
from sftjax.data.processor import Processor
from sftjax.data.table import Table

WORDS = [[1 + n % 7] * n for n in (3, 9, 4, 20, 5, 11, 2, 6, 7, 13)]
LABELS = np.arange(10, dtype=np.int32) % 3


def chat():
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in WORDS])]).astype(np.int64)
    ids = np.concatenate(WORDS).astype(np.int32)
    return Chat(ids, np.ones(len(ids), np.float32), offsets, np.arange(10), 0, 32, Audit(), None)


def pictures():
    pixels = np.arange(10 * 12, dtype=np.uint8).reshape(10, 2, 2, 3)
    return Images(pixels, Processor((2, 2)), Table({"image": ["x"] * 10}, name="toy"))


def pairs():
    source = pack(WORDS, pad_id=0, max_length=32)
    return Pairs(source, pack([row[:4] for row in WORDS], pad_id=0, max_length=8), 9)


STREAMS = {
    "rows": lambda: Batches(pack(WORDS, pad_id=0, max_length=32), LABELS, batch_size=4),
    "packed": lambda: ChatBatches(chat(), 4),
    "padded": lambda: ChatBatches(chat(), 4, packing=False),
    "pairs": lambda: PairBatches(pairs(), batch_size=4),
    "pictures": lambda: ImageBatches(pictures(), LABELS, batch_size=4),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("count", [2, 4])
def test_shares_are_the_batch(name, count):
    batches = STREAMS[name]()
    for step in range(2 * batches.steps_per_epoch):
        whole = batches.at(step)
        parts = [batches.at(step, Share(n, n + 1, count)) for n in range(count)]
        for entry, values in whole.items():
            assert all(len(part[entry]) == 4 // count for part in parts)
            np.testing.assert_array_equal(np.concatenate([part[entry] for part in parts]), values)
    with pytest.raises(ValueError, match="4 rows of a batch cannot be cut into 3 equal parts"):
        batches.at(0, Share(0, 1, 3))
