"""Make the next batches on another thread while the device computes."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
