"""Time things in turns (A B A B ...), and say what the machine was and who else used it.

Two programs timed one after the other see different machines: clocks, caches and neighbours drift.
Timed in turns they see the same one, and the ratio of their medians is what can be trusted; the
ratio within each turn says how far.

Nothing here needs sftjax: peers that live in another environment import it too.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

RESULTS = pathlib.Path(__file__).parent / "results"
README = pathlib.Path(__file__).parent / "README.md"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers", "torch", "accelerate")


class Timing(NamedTuple):
    """What one step of a round took, in seconds."""

    wall: float
    cpu: float
    """Of the process, over all its threads: what the step costs even where others run beside it."""


Round = Callable[[], Timing]


class Ratio(NamedTuple):
    """How much longer one thing takes than another."""

    medians: float
    """Ratio of the median wall times."""
    low: float
    """Least ratio within one turn."""
    high: float
    """Greatest ratio within one turn."""
    cpu: float
    """Ratio of the median CPU times."""

    def __str__(self) -> str:
        return f"{self.medians:.3f} ({self.low:.3f}..{self.high:.3f})"


def rounds_of(step: Callable[[], Any], steps: int) -> Round:
    """Return a round of `steps` calls, timed until the arrays of the last call are there."""
    import jax

    def timed() -> Timing:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            out = step()
        jax.block_until_ready(out)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Timing(wall / steps, cpu / steps)

    return timed


def alternate(
    rounds: Mapping[str, Round],
    turns: int,
    *,
    warmup: int = 1,
    tell: Callable[[str], None] | None = None,
) -> dict[str, list[Timing]]:
    """Run one round of each in order, turn after turn; the first `warmup` turns do not count."""
    if turns < 1:
        raise ValueError(f"turns is {turns}; at least one must count")
    timings: dict[str, list[Timing]] = {name: [] for name in rounds}
    for turn in range(-warmup, turns):
        for name, timed in rounds.items():
            timing = timed()
            if turn >= 0:
                timings[name].append(timing)
        if tell is not None and turn >= 0:
            last = ", ".join(f"{name} {found[-1].wall:.3f}" for name, found in timings.items())
            tell(f"turn {turn + 1}/{turns}, seconds a step: {last}")
    return timings


def median(timings: Iterable[Timing]) -> Timing:
    """Return the median wall and the median CPU time."""
    walls, cpus = zip(*timings, strict=True)
    return Timing(statistics.median(walls), statistics.median(cpus))


def ratio(timings: Sequence[Timing], to: Sequence[Timing]) -> Ratio:
    """Return how much longer `timings` are than those of the same turns in `to`.

    >>> ratio([Timing(2.0, 1.0), Timing(3.0, 1.0)], [Timing(1.0, 2.0), Timing(1.0, 2.0)])
    Ratio(medians=2.5, low=2.0, high=3.0, cpu=0.5)
    """
    each = [one.wall / other.wall for one, other in zip(timings, to, strict=True)]
    one, other = median(timings), median(to)
    return Ratio(one.wall / other.wall, min(each), max(each), one.cpu / other.cpu)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table, with the keys of the first as its header.

    >>> print(table([{"what": "ours", "ms": 1.5}]))
    | what | ms |
    |---|---|
    | ours | 1.5 |
    """
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([str(row[key]) for key in header] for row in rows)]
    return "\n".join(
        f"|{'|'.join(line)}|" if index == 1 else f"| {' | '.join(line)} |"
        for index, line in enumerate(lines)
    )


class Watch:
    """From its making on: the time, and the processors' time that went to other programs."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def facts(self) -> dict[str, Any]:
        """Return the machine and the run as JSON; children must have ended to be counted as own."""
        seconds = time.perf_counter() - self._wall
        busy = _busy_seconds()
        elsewhere = None
        if busy is not None and self._busy is not None:
            own = _own_seconds() - self._own
            elsewhere = round(max(busy - self._busy - own, 0.0) / seconds, 2)
        return {
            "command": command(sys.argv),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": round(seconds),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "cores_busy_elsewhere": elsewhere,
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Return the versions of Python and of what is installed of `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command(argv: Sequence[str]) -> str:
    """Return the command as somebody else would type it: without this machine's folders.

    >>> command(["/home/me/benchmarks/a.py", "--peer-python", "/opt/x/bin/python", "--turns", "3"])
    'python benchmarks/a.py --peer-python .../python --turns 3'
    """
    script = f"benchmarks/{os.path.basename(argv[0])}"
    return shlex.join(["python", script, *without_folders(argv[1:])])


def without_folders(words: Iterable[str]) -> list[str]:
    """Return the words of a command, of a path that begins at the root its last name alone.

    >>> without_folders(["--data", "/home/me/a.csv", "data/b.csv"])
    ['--data', '.../a.csv', 'data/b.csv']
    """
    return [f".../{os.path.basename(word)}" if word.startswith("/") else word for word in words]


def publish(
    name: str,
    machine: Mapping[str, Any],
    tables: Sequence[Sequence[Mapping[str, Any]]],
    facts: Mapping[str, Any],
    output: pathlib.Path | None = None,
) -> None:
    """Print the tables, write the JSON, and put both into the README's section of that name.

    Args:
      name: of the benchmark.
      machine: from `Watch.facts`.
      tables: rows of each table.
      facts: what else the JSON holds.
      output: write the JSON here instead, and leave the README as it is.
    """
    text = "\n\n".join(table(rows) for rows in tables)
    print(text)
    path = RESULTS / f"{name}.json" if output is None else output
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"machine": machine, **facts}, indent=2)
    path.write_text(content + "\n", encoding="utf-8")
    if output is None:
        page = README.read_text(encoding="utf-8")
        README.write_text(into(page, name, f"{caption(machine)}\n\n{text}"), encoding="utf-8")


def into(page: str, name: str, text: str) -> str:
    """Return a page with the text between its two marks of that name.

    >>> into("a <!-- x --> old <!-- /x --> b", "x", "new")
    'a <!-- x -->\\nnew\\n<!-- /x --> b'
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(first) != 1 or page.count(last) != 1:
        raise ValueError(f"the page has not one {first} and one {last}")
    before, _, rest = page.partition(first)
    return f"{before}{first}\n{text}\n{last}{rest.partition(last)[2]}"


def caption(machine: Mapping[str, Any]) -> str:
    """Return the line above the tables: where, when, with what, and how quiet it was."""
    found = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    elsewhere = machine["cores_busy_elsewhere"]
    load = "" if elsewhere is None else f", {elsewhere:.2f} of them busy with other programs"
    return (
        f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores{load}; {found}. "
        f"`{machine['command']}`, {machine['seconds']} s."
    )


def parser(doc: str | None, *, turns: int, steps: int) -> argparse.ArgumentParser:
    """Return the options that the benchmarks share; the script's docstring is their help."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--turns", type=int, default=turns, help=f"turns to time ({turns})")
    options.add_argument("--steps", type=int, default=steps, help=f"steps in a round ({steps})")
    options.add_argument("--output", type=pathlib.Path, help="the JSON (benchmarks/results/)")
    return options


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _busy_seconds() -> float | None:
    """Processor seconds that all programs have used since the machine started (Linux only)."""
    path = pathlib.Path("/proc/stat")
    if not path.exists():
        return None
    ticks = [int(word) for word in path.read_text().splitlines()[0].split()[1:]]
    # user nice system idle iowait irq softirq steal: what is neither idle nor waiting is used.
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
