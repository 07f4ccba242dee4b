"""Those who decode pictures: threads of this process, or processes of their own.

Pillow lets go of Python's lock while it decodes, so threads use all cores for ordinary files. What
decodes in Python (DICOM, NIfTI, a format of one's own) is faster in processes, and a decoder that
crashes there takes no run with it.
"""

import contextlib
import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TypeVar

from sftjax.data.decode import (
    Pixels,
    Reference,
    UnreadableImage,
    cut,
    name_of,
    open_source,
    source_of,
)
from sftjax.data.processor import Processor

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 16
"""Rows of one errand to a process: a picture alone is too little for the way there and back."""

Decoded = Pixels | str
"""A picture, or why there is none."""


class Decoders(NamedTuple):
    """Who decodes; `decoders` makes them."""

    pool: Executor
    size: int
    """How many work at once."""
    apart: bool
    """Whether they are processes."""


@contextlib.contextmanager
def decoders(processes: int = 0, threads: int | None = None) -> Generator[Decoders, None, None]:
    """Open workers for `load_images`; they end with the block, also when it ends by an error.

    Processes are started anew (never forked: a fork of a process with threads can hang), which
    takes some seconds of imports each, so one set of them serves several tables. A script that asks
    for processes must begin under `if __name__ == "__main__":`, as everywhere in Python; a notebook
    need not.

    Args:
      processes: how many; 0 takes threads.
      threads: how many of those; default the machine's cores.

    Raises:
      ValueError: for less than none.

    >>> import numpy as np
    >>> from sftjax.data import Processor, Table, load_images
    >>> table = Table({"image": [np.zeros((8, 6), np.uint8)]}, name="toy")
    >>> with decoders() as workers:
    ...     load_images(table, Processor(resize=(4, 4)), workers=workers).pixels.shape
    (1, 4, 4, 3)
    """
    if processes < 0:
        raise ValueError(
            f"{processes} processes cannot decode pictures (--dataloader-num-workers): 0 is "
            "threads, 1 or more is that many processes"
        )
    if processes:
        spawn = multiprocessing.get_context("spawn")
        pool, count = ProcessPoolExecutor(processes, mp_context=spawn), processes
    else:
        count = threads or os.cpu_count() or 1
        pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
    try:
        yield Decoders(pool, count, processes > 0)
    finally:
        pool.shutdown(cancel_futures=True)


def decode_all(
    references: Sequence[Reference], processor: Processor, workers: Decoders
) -> Iterator[tuple[int, Decoded]]:
    """Yield row and picture, or why there is none, always in the same order.

    Rows that share a file come together, and open it once. No more than two errands a worker wait
    to be asked for, so that pictures do not pile up before a slow reader.

    Args:
      references: of all rows.
      processor: what to make of each picture.
      workers: who decodes.

    Raises:
      UnreadableImage: if a process died over its pictures; names them.
    """
    errands = _together(references)
    if workers.apart:
        errands = _packed(errands)
    tasks = ((rows, [references[row] for row in rows]) for rows in errands)

    def send(task: tuple[list[int], list[Reference]]) -> Future[list[Decoded]]:
        return workers.pool.submit(decode_some, task[1], processor)

    for (rows, some), found in _in_order(send, tasks, 2 * workers.size):
        try:
            pictures = found.result()
        except BrokenProcessPool as error:
            names = ", ".join(dict.fromkeys(name_of(reference) for reference in some[:4]))
            more = f" and {len(some) - 4} more" if len(some) > 4 else ""
            raise UnreadableImage(
                f"a process that decodes pictures died, over {names}{more} or one of the next. "
                "Either it had too little memory (ask for fewer processes), a damaged file crashed "
                "its decoder, or a script asked for processes outside of "
                'if __name__ == "__main__": (0 processes decode on threads)'
            ) from error
        yield from zip(rows, pictures, strict=True)


def decode_some(references: Sequence[Reference], processor: Processor) -> list[Decoded]:
    """Decode the pictures of one errand; those next to each other of one file open it once."""
    found: list[Decoded] = []
    for _, same in itertools.groupby(enumerate(references), lambda item: _key(*item)):
        some = [reference for _, reference in same]
        try:
            source = open_source(source_of(some[0]))
        except UnreadableImage as error:
            found += [str(error)] * len(some)
            continue
        for reference in some:
            try:
                found.append(processor(cut(source, reference, channels=processor.channels)))
            except UnreadableImage as error:
                found.append(str(error))
    return found


def _in_order(
    send: Callable[[T], Future[R]], tasks: Iterable[T], depth: int
) -> Iterator[tuple[T, Future[R]]]:
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        for task in tasks:
            waiting.append((task, send(task)))
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, left in waiting:
            left.cancel()


def _together(references: Sequence[Reference]) -> list[list[int]]:
    """Group the rows that open the same file, in order of first appearance."""
    groups: dict[object, list[int]] = {}
    for row, reference in enumerate(references):
        groups.setdefault(_key(row, reference), []).append(row)
    return list(groups.values())


def _key(row: int, reference: Reference) -> object:
    """Return what is equal for rows that open the same file; pixels and bytes are their own."""
    source = source_of(reference)
    return source if isinstance(source, str | tuple) else row


def _packed(groups: Iterable[list[int]]) -> list[list[int]]:
    """Join small groups to errands of `AT_ONCE` rows; a large one stays whole."""
    errands: list[list[int]] = [[]]
    for group in groups:
        if errands[-1] and len(errands[-1]) + len(group) > AT_ONCE:
            errands.append([])
        errands[-1] += group
    return [errand for errand in errands if errand]
