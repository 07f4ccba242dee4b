"""What does each way of fine-tuning learn from 200 sentences, and what does it keep?

    python benchmarks/retention.py                       # about 30 minutes on 2 quiet cores

MiniLM-L6 learns the sentiment of 200 film-review sentences (classes alike), 60 updates of 16
rows, the last three blocks and the head moving; 4 seeds draw the rows, their order and the head.
Tests: 200 further film sentences and 200 from each of three domains it never saw; retention is
retrieval P@1, how often the nearest other sentence of an editorial collection is of the same
editorial. Frozen blocks are computed once for all runs.

Expect: retention rises with the dose in every seed, and a dose of 0.01 changes nothing.
"""

import argparse
import pathlib
import tempfile
from typing import Any

import pairs

METHODS = (
    "none",
    "l2-sp:0.01",
    "l2-sp:1",
    "l2-sp:4",
    "l2-sp+coupled=0.1",
    "ewc:1",
    "recadam:1",
    "mixout:1",
    "features:1",
    "ema:1",
    "wise-ft:1",
    "tpgm",
    "spd",
    "r3f",
    "smart",
    "sam",
    "child-f",
    "child-d",
    "lisa",
    "none+average=swa",
    "none+merge=uniform+runs=3",
    "none+merge=ties:0.2+runs=3",
    "none+decay=0.7",
    "none+train=first:3=0|bias|new+lr=10",
    "none+train=new+lr=10",
    "none+phases=lp|ft",
    "wise-ft:1+phases=lp|ft",
    "none+lr=5",
    "l2-sp:4+lr=5",
)
ELSEWHERE = ("amazon", "tweets", "nyt")


def main() -> None:
    """Run what is not yet done, print and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seeds", type=int, default=4, help="runs of each method (4)")
    options.add_argument("--methods", nargs="+", default=METHODS, help="as for sftjax compare")
    options.add_argument("--folder", type=pathlib.Path, help="to go on in (a temporary one)")
    options.add_argument("--output", type=pathlib.Path, help="the JSON (benchmarks/results/)")
    args = options.parse_args()
    watch = pairs.Watch()
    with tempfile.TemporaryDirectory() as temporary:
        rows = runs(args.folder or pathlib.Path(temporary) / "runs", args.methods, args.seeds)
    tables, facts = report(rows, args.methods)
    pairs.publish("retention", watch.facts(), tables, {"runs": rows, **facts}, args.output)


def runs(folder: pathlib.Path, methods: Any, seeds: int) -> list[dict[str, Any]]:
    """Compare the methods on the rated sentences."""
    from sftjax.data import fetch, read
    from sftjax.data.rated_sentences import prepare_sentences, retrieval_set
    from sftjax.recipes.compare import Compare, Data, compare_on
    from sftjax.recipes.text_rows import Columns
    from sftjax.recipes.training import Training

    archive = fetch("rated-sentences")
    builders = prepare_sentences(archive, configs=("movie", *ELSEWHERE))
    tests = {name: read(builders[name], "test") for name in ("movie", *ELSEWHERE)}
    articles = retrieval_set(archive)
    job = Compare(
        model=str(fetch("minilm-l6")),
        data="rated sentences, movie",
        output_dir=folder,
        methods=tuple(methods),
        seeds=seeds,
        rows=200,
        columns=Columns(max_length=64),
        training=Training(
            train=("last:3",),
            anchor="none",
            learning_rate=3e-4,
            max_steps=60,
            per_device_train_batch_size=16,
            probe_learning_rate=3e-3,
        ),
    )
    data = Data(
        read(builders["movie"], "train"),
        {name: rows.take(range(200)) for name, rows in tests.items()},
        articles.take(range(800)),
        "document",
    )
    return compare_on(job, data)


def named(method: str) -> str:
    """Return a method as code in a table, where a bar would end the cell."""
    return f"`{method}`".replace("|", "\\|")


def report(rows: list[dict[str, Any]], methods: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the table of means, that of paired differences, and both as facts."""
    from sftjax.evaluate import cell, paired_difference, summarize

    metrics = ["movie", "elsewhere", "retrieval", "cka", "moved"]
    means = summarize(rows, "method", metrics)
    table = [
        {
            "method": named(row["method"]),
            **{name: f"{row[name]:.3f} ± {row[f'{name}_sd']:.3f}" for name in metrics},
        }
        for row in means
    ]
    apart: list[dict[str, Any]] = []
    for base, mine in (
        ("none", [name for name in methods if "lr=5" not in name]),
        ("none+lr=5", [name for name in methods if "lr=5" in name]),
    ):
        if base in mine and len(mine) > 1:
            chosen = [row for row in rows if row["method"] in mine]
            apart += paired_difference(chosen, {"method": base}, "method", metrics=metrics)
    differences = [
        {
            "method, less `none` of its rate": named(row["method"]),
            **{name: cell(row[name]) for name in metrics},
        }
        for row in apart
    ]
    return [table, *([differences] if differences else [])], {"means": means, "apart": apart}


if __name__ == "__main__":
    main()
