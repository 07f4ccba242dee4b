"""Processes decode what threads decode, in the same order, and end when something is wrong."""

import multiprocessing
import os
import time

import numpy as np
import pytest
from PIL import Image

from sftjax.data import Crop, Processor, Table, UnreadableImage, decoders, load_images
from sftjax.data.decoders import AT_ONCE, _in_order, _packed

RNG = np.random.default_rng(0)
PROCESSOR = Processor(shortest=8, crop=(8, 8))


class Deadly:
    """A picture whose reading ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


def pictures(folder, count=20):
    """Make files of several sizes, some of which hold several boxes, and one that is cut off."""
    rows = []
    for number in range(count):
        path = folder / f"{number}.png"
        size = 10 + number % 3
        Image.fromarray(RNG.integers(0, 256, (size, 12, 3), np.uint8)).save(path)
        rows.append(str(path))
        if number % 4 == 0:
            rows += [Crop(str(path), left, 0, left + 6, 8) for left in (0, 5)]
    whole = (folder / "1.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    rows.insert(7, str(folder / "cut.png"))
    rows.append(RNG.integers(0, 256, (9, 9), np.uint8))
    return Table({"image": rows}, name="mixed")


def test_processes_give_the_bytes_of_threads_and_name_the_same_files(tmp_path):
    table = pictures(tmp_path)
    plain = load_images(table, PROCESSOR, skip_corrupt=True)
    with decoders(2) as workers:
        apart = load_images(table, PROCESSOR, skip_corrupt=True, workers=workers)
        np.testing.assert_array_equal(apart.pixels, plain.pixels)
        assert apart.corrupt == plain.corrupt
        assert [bad.row for bad in apart.corrupt] == [7]
        with pytest.raises(UnreadableImage, match=r"row 8: .*cut\.png cannot be decoded"):
            load_images(table, PROCESSOR, workers=workers)
        dead = Table({"image": [str(tmp_path / "0.png"), Deadly()]}, name="deadly")
        with pytest.raises(UnreadableImage, match=r"a process that decodes pictures died.*0\.png"):
            load_images(dead, PROCESSOR, workers=workers)
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not multiprocessing.active_children()
    with pytest.raises(ValueError, match="0 is threads"), decoders(-1):
        pass


def test_no_more_waits_than_was_asked_for_and_the_order_is_that_of_the_tasks():
    sent, asked = [], []
    for task, found in _in_order(lambda task: sent.append(task) or task, range(10), 3):  # type: ignore[arg-type]
        asked.append((task, found))
        assert len(sent) - len(asked) <= 3
    assert asked == [(task, task) for task in range(10)]


def test_errands_hold_whole_groups():
    groups = [[0], [1, 2], list(range(3, 3 + 2 * AT_ONCE)), [50]]
    packed = _packed(groups)
    assert [row for errand in packed for row in errand] == [r for group in groups for r in group]
    assert packed == [[0, 1, 2], groups[2], [50]]
