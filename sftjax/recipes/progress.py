"""A progress bar with an ETA on a terminal, plain lines elsewhere."""

import collections
import contextlib
import time
from collections.abc import Callable, Generator

import jax

from sftjax.core import redact
from sftjax.train import Record

Advance = Callable[[Record], None]


def say(text: str) -> None:
    """Print for a person, without secrets (`core.redact`).

    >>> say("fetched with hf_" + "A1" * 17)
    fetched with [redacted]
    """
    print(redact(text))


@contextlib.contextmanager
def progress(
    title: str, num_steps: int, *, every_seconds: float = 15.0
) -> Generator[Advance, None, None]:
    """Show how far a run is, its last numbers and the time left; stderr, so stdout stays a table.

    Args:
      title: what runs.
      num_steps: updates in the whole run.
      every_seconds: where there is no terminal, a line at most this often.

    Yields:
      A function to be called with each record of the history.
    """
    if jax.process_index():  # the first process tells of all
        yield lambda record: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title, num_steps, every_seconds, console.print)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=num_steps, numbers="")
        yield lambda record: bar.update(
            task, completed=int(record["step"]), numbers=_numbers(record)
        )


def _lines(title: str, num_steps: int, every: float, write: Callable[[str], None]) -> Advance:
    start, last = time.monotonic(), -every
    # The pace is that of the last records: the first updates compile.
    seen: collections.deque[tuple[int, float]] = collections.deque(maxlen=8)

    def advance(record: Record) -> None:
        nonlocal last
        step, now = int(record["step"]), time.monotonic() - start
        seen.append((step, now))
        if now - last < every and step < num_steps:
            return
        last = now
        (before, then), left = seen[0], ""
        if step > before:
            left = f", {(now - then) / (step - before) * (num_steps - step):.0f} s left"
        write(f"{title}: {step}/{num_steps} {_numbers(record)} ({now:.0f} s{left})")

    return advance


def _numbers(record: Record) -> str:
    shown = ("loss", "eval_loss", "eval_accuracy", "accuracy")
    return " ".join(f"{name} {record[name]:.3f}" for name in shown if name in record)
