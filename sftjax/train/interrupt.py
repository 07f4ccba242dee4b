"""SIGTERM and Ctrl-C ask a run to stop; it finishes its update, saves, and says how to go on."""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType

from sftjax.train.together import together

RESUME = 75
"""The exit code of a run that was asked to stop and has saved: start the same command again.
(EX_TEMPFAIL of sysexits.h: "try again later".)"""


class Interrupted(Exception):
    """A run was asked to stop, and has saved what it has."""

    def __init__(self, step: int | None, saved: bool):
        """Say where it stopped.

        Args:
          step: updates done; None outside of the loop.
          saved: whether what was done is in a checkpoint.
        """
        self.step, self.saved = step, saved
        where = "" if step is None else f" after update {step}"
        then = (
            "saved; the same command goes on from there"
            if saved
            else "nothing was saved, for the run has no folder of checkpoints"
        )
        if step is None:
            then = "the same command goes on from the last checkpoint, if there is one"
        super().__init__(f"stopped{where}: {then}")


@contextlib.contextmanager
def stop_on_signals(*, every: int = 1) -> Generator[Callable[[int], bool], None, None]:
    """Turn SIGTERM and the first SIGINT into a question that a loop may ask.

    A second Ctrl-C is a KeyboardInterrupt as ever. Outside of the main thread, where Python lets
    nobody change signal handlers, nothing is changed. One of several processes tells the others,
    and all of them answer yes at the same update (`together`), whichever was asked.

    Args:
      every: several processes look whether another was asked at multiples of this.

    Yields:
      `interrupted(step)`: whether somebody has asked to stop; what `fit` takes.

    >>> import os
    >>> with stop_on_signals() as interrupted:
    ...     before = interrupted(0)
    ...     os.kill(os.getpid(), signal.SIGTERM)
    ...     print(before, interrupted(1))
    False True
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in asked:
            signal.default_int_handler(number, frame)
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield together(lambda step: False, every=every)
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield together(lambda step: bool(asked), every=every)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
