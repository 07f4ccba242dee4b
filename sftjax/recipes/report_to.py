"""Where a run's events go: JSON lines always, TensorBoard and Weights & Biases if asked."""

import contextlib
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from sftjax.core import redact
from sftjax.recipes.run_folder import plain
from sftjax.train import Event

LOG_FILE = "log.jsonl"
REPORTERS = ("tensorboard", "wandb")
Write = Callable[[Event], None]


@contextlib.contextmanager
def reporting(
    folder: pathlib.Path, report_to: Sequence[str], facts: Mapping[str, Any]
) -> Generator[Write, None, None]:
    """Open a run's log and the writers that were asked for.

    Args:
      folder: the run's folder. `log.jsonl` in it gets a line for each event (see `train.fit`), with
        the time; a resumed run adds to it.
      report_to: of `REPORTERS`; their packages are imported here and not before.
      facts: what identifies the run, for those that show it.

    Yields:
      What `train.fit` takes as `watch`.

    Raises:
      ValueError: for an unknown word, or one whose package is not installed (says how to).
    """
    check(report_to)
    openers = {"tensorboard": _tensorboard, "wandb": _wandb}
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_lines(folder / LOG_FILE))]
        for name in report_to:
            writers.append(stack.enter_context(openers[name](folder, facts)))

        def write(event: Event) -> None:
            for writer in writers:
                writer(event)

        yield write


def check(report_to: Sequence[str]) -> None:
    """Refuse a word that is unknown, before anything is read.

    Raises:
      ValueError: names the known ones.
    """
    if unknown := [name for name in report_to if name not in REPORTERS]:
        raise ValueError(
            f"--report-to {unknown[0]}: known are {' and '.join(REPORTERS)}; JSON lines are always "
            f"written ({LOG_FILE} in the run's folder)"
        )


def read_log(folder: pathlib.Path) -> list[Event]:
    """Return the events of a run, oldest first; a line that a kill cut short is left out.

    Raises:
      FileNotFoundError: if the folder has no log.
      ValueError: if a line before the last is no JSON object; names it.
    """
    path = pathlib.Path(folder) / LOG_FILE
    lines = path.read_text("utf8").split("\n")
    events = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            after = next((text for text in lines[number:] if text), "")
            if not after or after.startswith(('{"event": "resume"', '{"event": "start"')):
                continue  # killed while it was written
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        events.append(event)
    return events


@contextlib.contextmanager
def _lines(path: pathlib.Path) -> Generator[Write, None, None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a", encoding="utf8") as file:
        file.write("\n" * torn)

        def write(event: Event) -> None:
            line = json.dumps(plain({**event, "time": round(time.time(), 3)}), allow_nan=False)
            file.write(redact(line) + "\n")
            if event["event"] != "update":
                file.flush()

        yield write


def _numbers(event: Event) -> dict[str, float]:
    """Return what can be drawn: the finite numbers of a record or an evaluation, by group.

    >>> _numbers({"event": "record", "step": 5, "loss": [0.5, 0.25], "seconds": 2.0})
    {'train/loss/0': 0.5, 'train/loss/1': 0.25, 'train/seconds': 2.0}
    """
    kinds = {"record": "train", "evaluation": "eval"}
    if (kind := kinds.get(event["event"])) is None:
        return {}
    found: dict[str, Any] = {}
    for name, value in event.items():
        word = f"{kind}/{name.removeprefix('eval_')}"
        runs = dict(enumerate(value)) if isinstance(value, list) else {}
        found |= {f"{word}/{number}": one for number, one in runs.items()} or {word: value}
    return {
        word: float(value)
        for word, value in found.items()
        if word != f"{kind}/step" and isinstance(value, int | float) and math.isfinite(value)
    }


@contextlib.contextmanager
def _tensorboard(folder: pathlib.Path, facts: Mapping[str, Any]) -> Generator[Write, None, None]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(
            '--report-to tensorboard needs a writer: pip install "sftjax[tensorboard]"'
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))
    writer.add_text("run", redact(json.dumps(plain(dict(facts)), indent=2, sort_keys=True)))

    def write(event: Event) -> None:
        for name, value in _numbers(event).items():
            writer.add_scalar(name, value, int(event["step"]))

    try:
        yield write
    finally:
        writer.close()


@contextlib.contextmanager
def _wandb(folder: pathlib.Path, facts: Mapping[str, Any]) -> Generator[Write, None, None]:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            '--report-to wandb needs its package: pip install "sftjax[wandb]"'
        ) from error
    # The same folder is the same run: a resumed one goes on where it was.
    identity = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    run = wandb.init(
        project="sftjax", name=folder.name, id=identity, resume="allow", dir=str(folder),
        config=json.loads(redact(json.dumps(plain(dict(facts))))),
    )  # fmt: skip

    def write(event: Event) -> None:
        if numbers := _numbers(event):
            run.log(numbers, step=int(event["step"]))

    try:
        yield write
    finally:
        run.finish()
