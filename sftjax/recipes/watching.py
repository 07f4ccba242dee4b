"""What goes on around a run's loop: signals, logs, prefetch, profile, and what is worth telling."""

import contextlib
import pathlib
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax

from sftjax.core import Batch
from sftjax.data import ahead
from sftjax.recipes import startup
from sftjax.recipes.progress import progress
from sftjax.recipes.report_to import Write, reporting
from sftjax.recipes.training import Training
from sftjax.train import (
    STARVING,
    Event,
    Step,
    apart,
    identity_of,
    peak_flops,
    spread,
    step_flops,
    stop_on_signals,
)

_FIRST_PROFILED = 3
"""Updates before a profile begins: the first ones compile."""


class Watched(NamedTuple):
    """A loop's surroundings."""

    options: dict[str, Any]
    """Arguments of `train.fit`: `log`, `watch`, `interrupted`."""
    batch_at: Callable[[int], Batch]
    """Batches, made ahead and already on the device."""
    around: Callable[[Step], Step]
    """Counts the arithmetic of a compiled step, and takes a profile of some updates."""


@contextlib.contextmanager
def watching(
    training: Training,
    folder: pathlib.Path | None,
    batch_at: Callable[[int], Batch],
    num_steps: int,
    *,
    title: str,
    tell: Callable[[str], None],
) -> Generator[Watched, None, None]:
    """Surround a loop.

    SIGTERM and Ctrl-C save and stop it (where it has a folder to save in); events go to the
    folder's `log.jsonl` and to `--report-to`; two batches are made ahead on a thread; the first
    update tells where the time went, and a device that waits for its batches is told of once.

    Args:
      training: how the run trains.
      folder: the run's, already claimed; None writes nothing.
      batch_at: the batch of an update.
      num_steps: updates in the whole run.
      title: of the progress bar.
      tell: is given what a person wants to read.

    Yields:
      A `Watched`.
    """
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"log": stack.enter_context(progress(title, num_steps))}
        writes: list[Write] = []
        if folder is not None:
            facts = identity_of(folder) or {}
            writes.append(stack.enter_context(reporting(folder, training.report_to, facts)))
            options["interrupted"] = stack.enter_context(stop_on_signals())
        flops = _Flops()
        notices = _notices(tell)

        def watch(event: Event) -> None:
            event = flops.added(event)
            notices(event)
            for write in writes:
                write(event)

        where = folder or pathlib.Path("runs")
        profile = stack.enter_context(_profile(training.profile, where / "profile", tell))
        with apart(False):
            placed = spread(batch_at)
        place = (lambda number: jax.device_put(placed(number))) if placed is batch_at else placed
        made = stack.enter_context(ahead(place, num_steps + 1))
        yield Watched({**options, "watch": watch}, made, lambda step: flops.counted(profile(step)))


def faults_told(faults: tuple[Event, ...]) -> list[str]:
    """Return the paragraph of a report on updates that were not finite; none if all were.

    >>> faults_told(({"update": 4, "what": "loss is nan", "did": "skipped", "rows": [7]},))
    ['1 update was not finite: update 4 (loss is nan; rows 7): skipped.']
    """
    if not faults:
        return []
    some = []
    for fault in faults[:20]:
        rows = f"; rows {', '.join(map(str, fault['rows']))}" if fault.get("rows") else ""
        some.append(f"update {fault['update']} ({fault['what']}{rows}): {fault['did']}")
    left = len(faults) - len(some)
    more = f"; and {left} more, all in log.jsonl" if left else ""
    were = "1 update was" if len(faults) == 1 else f"{len(faults)} updates were"
    return [f"{were} not finite: {'; '.join(some)}{more}."]


def _notices(tell: Callable[[str], None]) -> Write:
    said: set[str] = set()

    def once(what: str, text: str) -> None:
        if text and what not in said:
            said.add(what)
            tell(text)

    def notice(event: Event) -> None:
        kind = event["event"]
        if kind == "resume":
            tell(f"going on from update {event['step']}")
        elif kind == "update":
            once("first", startup.told())
        elif kind == "fault":
            tell(f"update {event['update']}: {event['what']}; {event['did']}")
        elif kind == "record" and event.get("waiting", 0.0) > STARVING and event["seconds"] > 1:
            once(
                "starving",
                f"the device waits for its batches for {event['waiting']:.0%} of the time: make "
                "them cheaper (smaller pictures on disk, fewer augmentations on the host, "
                "--packing), or larger (--batch), or train above a kept prefix (--keep-prefix)",
            )

    return notice


class _Flops:
    """Operations of the updates since the last record; nothing where the peak is not known."""

    def __init__(self) -> None:
        self._peak = peak_flops(jax.devices()[0].device_kind)
        self._of_shape: dict[Any, float | None] = {}
        self._done = 0.0

    def counted(self, step: Step) -> Step:
        if self._peak is None:
            return step

        def counting(state: Any, fixed: Any, batch: Any) -> Any:
            shape = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch))
            if shape not in self._of_shape:
                self._of_shape[shape] = step_flops(step, state, fixed, batch)
            self._done += self._of_shape[shape] or 0.0
            return step(state, fixed, batch)

        return counting

    def added(self, event: Event) -> Event:
        if event["event"] != "record" or self._peak is None or not self._done:
            return event
        done, self._done = self._done, 0.0
        if event["seconds"] <= 0:
            return event
        rate = done / event["seconds"]
        return {**event, "mfu": rate / (self._peak * jax.device_count())}


@contextlib.contextmanager
def _profile(
    updates: int, folder: pathlib.Path, tell: Callable[[str], None]
) -> Generator[Callable[[Step], Step], None, None]:
    """Trace some updates of whatever step is given first, and say where the trace is."""
    if not updates:
        yield lambda step: step
        return
    calls, running = 0, False

    def stop() -> None:
        nonlocal running
        jax.profiler.stop_trace()
        running = False
        tell(f"profile of {updates} updates: {folder} (open with tensorboard or xprof)")

    def profiled(step: Step) -> Step:
        def traced(state: Any, fixed: Any, batch: Any) -> Any:
            nonlocal calls, running
            calls += 1
            if calls == _FIRST_PROFILED:
                jax.profiler.start_trace(str(folder))
                running = True
            found = step(state, fixed, batch)
            if running and calls == _FIRST_PROFILED + updates - 1:
                jax.block_until_ready(found[1])
                stop()
            return found

        lower = getattr(step, "lower", None)
        if lower is not None:
            traced.lower = lower  # type: ignore[attr-defined]
        return traced

    try:
        yield profiled
    finally:
        if running:
            stop()
