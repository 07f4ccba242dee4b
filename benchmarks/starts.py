"""How long until a command's first update, with nothing compiled before and with all of it?

    python benchmarks/starts.py                   # about 15 minutes on 2 cores

Each command starts in a process of its own with an empty compilation cache, and again with the one
that it left, and is ended when it says `first update after ...`: seconds since the process began,
and their parts as the commands tell them: imports, weights, what XLA compiles (or reads from the
cache, and lowers before), what `summarize` and `chat` ask the pretrained model first, data, tracing
and the update itself.

- classify: MiniLM-L6 on sentences, the last two blocks and the head.
- images: EfficientNet-lite0 on X-rays of 128 pixels, all weights.
- summarize: a T5 of 77 million weights, all of them.
- chat: SmolLM2-135M, LoRA, rows of 256 tokens.

Expect: a warm start takes at most 0.4 of a cold one where compiling counts; the last column leaves
out what was measured first, which no cache can save.
"""

import csv
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import pairs

from sftjax.recipes.startup import MEASURING

LINE = re.compile(r"first update after ([\d.]+) s: (.*)")
PART = re.compile(r"([a-z ]+) ([\d.]+) s(?:, |$)")
PARTS = ("all", "import", "load", "compile", MEASURING, "data and the rest")
SHORT = ("--max-steps", "4", "--eval-steps", "4", "--anchor", "none")
COMMANDS = {
    "classify": ("--model", "asset:minilm-l6", "--data", "rated.csv", "--train", "last:2"),
    "images": (
        *("--model", "asset:efficientnet-lite0", "--data", "asset:chest-xrays-16"),
        *("--train", "all", "--image-size", "128", "--per-device-train-batch-size", "4"),
    ),
    "summarize": (
        *("--model", "asset:flan-t5-titles", "--data", "pairs.csv", "--train", "all"),
        *("--eval-written", "0", "--per-device-train-batch-size", "4"),
    ),
    "chat": (
        *("--model", "smollm2-135m-instruct", "--data", "talks.jsonl", "--adapter", "lora:r=8"),
        *("--max-length", "256", "--per-device-train-batch-size", "1"),
        *("--samples", "0", "--reference-rows", "0"),
    ),
}


def main() -> None:
    """Start, print and write."""
    options = pairs.parser(__doc__, turns=3, steps=1)
    options.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    args = options.parse_args()
    watch = pairs.Watch()
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_data(folder)
        started(folder, args.commands[0], "none")  # once, for what Python compiles
        for name in args.commands:
            found[name] = {"cold": [], "warm": []}
            for turn in range(args.turns):
                for kind, starts in found[name].items():
                    starts.append(started(folder, name, f"{name}-{turn}"))
                    print(f"{name}, {kind}: {starts[-1]}", flush=True)
    rows = [row for name, starts in found.items() for row in rows_of(name, starts)]
    pairs.publish("starts", watch.facts(), [rows], {"starts": found}, args.output)


def write_data(folder: pathlib.Path) -> None:
    """Write a few rows for the commands that read text."""
    things = ("film", "soup", "room", "book", "trip")
    ways = ("a joy", "dull", "a mess", "fine", "too long", "a surprise")
    sentences = [f"The {thing} was {way}." for thing in things for way in ways]
    tables = {
        "rated.csv": [("text", "label"), *((s, i % 2) for i, s in enumerate(sentences * 4))],
        "pairs.csv": [("document", "summary"), *((f"{s} {s}", s) for s in sentences * 2)],
    }
    for name, rows in tables.items():
        with (folder / name).open("w", encoding="utf8", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows(rows)
    with (folder / "talks.jsonl").open("w", encoding="utf8") as out:
        for one in sentences:
            said = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": one}]
            out.write(json.dumps({"messages": said}) + "\n")


def started(folder: pathlib.Path, name: str, cache: str) -> dict[str, float]:
    """Run a command until it tells of its first update; return the seconds of each part.

    Raises:
      SystemExit: if it ends before.
    """
    home = tempfile.mkdtemp(dir=folder)
    # Bytecode is kept, as pip keeps it of what it installs.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "sftjax", name, *COMMANDS[name], *SHORT),
            *("--output-dir", os.path.join(home, "run")),
        ],
        env={
            **environment,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "caches" / cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    with process:
        for line in process.stdout:
            said.append(line)
            match = LINE.search(line)
            if match:
                process.kill()
                parts = {part: float(seconds) for part, seconds in PART.findall(match[2])}
                return {"all": float(match[1]), MEASURING: 0.0, **parts}
    raise SystemExit(f"{name} ended before its first update:\n{''.join(said)}")


def rows_of(name: str, starts: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Return a command's two rows: medians, and how much of a cold start a warm one takes."""
    medians = {
        kind: {part: statistics.median(run[part] for run in runs) for part in PARTS}
        for kind, runs in starts.items()
    }

    def ratio(*less: str) -> str:
        cold, warm = (
            parts["all"] - sum(parts[name] for name in less)
            for parts in (medians["cold"], medians["warm"])
        )
        return f"{warm / cold:.2f}"

    return [
        {
            "command": name,
            "cache": {"cold": "empty", "warm": "full"}[kind],
            **{part: f"{seconds:.1f}" for part, seconds in parts.items()},
            "of the cold start": ratio() if kind == "warm" else "",
            "less the measuring": ratio(MEASURING) if kind == "warm" else "",
        }
        for kind, parts in medians.items()
    ]


if __name__ == "__main__":
    main()
