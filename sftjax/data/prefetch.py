"""Make the next batches on another thread while the device computes."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(at: Callable[[int], T], start: int, stop: int, depth: int = 2) -> Iterator[T]:
    """Yield `at(start), ..., at(stop - 1)`, calling `depth` steps ahead on one thread.

    What `at` raises is raised here, at its own step. The thread ends with the iterator, also when
    that is closed early.

    Args:
      at: a function of the step.
      start: the first step.
      stop: the step after the last.
      depth: how many results may wait.

    >>> list(prefetch(lambda step: step * step, 2, 5))
    [4, 9, 16]
    """
    if depth < 1:
        raise ValueError(f"depth must be positive, not {depth}")
    worker = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(worker.submit(at, step) for step in range(start, min(start + depth, stop)))
        for step in range(start, stop):
            result = waiting.popleft().result()
            if step + depth < stop:
                waiting.append(worker.submit(at, step + depth))
            yield result
    finally:
        worker.shutdown(cancel_futures=True)


@contextlib.contextmanager
def ahead(
    at: Callable[[int], T], stop: int, depth: int = 2
) -> Generator[Callable[[int], T], None, None]:
    """Yield `at` with its next results made on one thread, `depth` of them at most.

    For a loop that asks for 0, 1, 2, ... from wherever it stands; a number out of turn (a batch
    looked at again, a run that goes back) is made on the spot and what waits is dropped. What `at`
    raises is raised at its own number. Nothing is made at or beyond `stop`, and never more than
    `depth` results wait, whatever the speed of either side.

    Args:
      at: a function of the number; called from one thread at a time.
      stop: the number after the last.
      depth: how many results may wait.

    >>> with ahead(lambda step: step * step, 9) as at:
    ...     at(3), at(4), at(0)
    (9, 16, 0)
    """
    if depth < 1:
        raise ValueError(f"depth must be positive, not {depth}")
    worker = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    waiting: deque[tuple[int, Future[T]]] = deque()

    def get(number: int) -> T:
        if not waiting or waiting[0][0] != number:
            while waiting:
                waiting.popleft()[1].cancel()
            waiting.append((number, worker.submit(at, number)))
        result = waiting.popleft()[1].result()
        while len(waiting) < depth and (last := waiting[-1][0] if waiting else number) + 1 < stop:
            waiting.append((last + 1, worker.submit(at, last + 1)))
        return result

    try:
        yield get
    finally:
        worker.shutdown(cancel_futures=True)
