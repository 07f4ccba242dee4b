"""Where do pretraining, L2-SP and LP-FT pay with few labels, and where do they not?

    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb data
    python benchmarks/few_labels.py --data data/usr/share/datasets/fashion-mnist    # 20 minutes
    python benchmarks/few_labels.py --data tfds:fashion_mnist     # where TFDS has prepared it

Fashion-MNIST (Debian's `dataset-fashion-mnist`, or TFDS) with 10, 30 and 100 pictures of each class
to learn from, and 1,000 test pictures. An EfficientNet-lite0 learns them in the five ways of
`photos.py`, in the same number of updates. A seed draws the pictures to learn from, the test
pictures and the head; ways of one seed share all three. Rates were not tuned.

Expect: every way from ImageNet above scratch, by less the more labels there are.
"""

import argparse
import pathlib
import tempfile
from typing import Any

import numpy as np
import pairs
import photos

LABELS = (10, 30, 100)


def main() -> None:
    """Run every cell, print and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", default="tfds:fashion_mnist", help="(tfds:fashion_mnist)")
    options.add_argument("--ways", nargs="+", default=list(photos.WAYS), choices=list(photos.WAYS))
    options.add_argument("--labels", nargs="+", type=int, default=LABELS, help="(10 30 100)")
    options.add_argument("--seeds", type=int, default=2, help="(2)")
    options.add_argument("--steps", type=int, default=150, help="updates of a run (150)")
    options.add_argument("--size", type=int, default=48, help="pixels of a side (48)")
    options.add_argument("--test-rows", type=int, default=1000, help="(1000)")
    options.add_argument("--folder", type=pathlib.Path, help="to go on in (a temporary one)")
    options.add_argument("--output", type=pathlib.Path, help="the JSON (benchmarks/results/)")
    args = options.parse_args()
    watch = pairs.Watch()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        for seed in range(args.seeds):
            for labels in args.labels:
                for way in args.ways:
                    found = photos.tune(
                        way,
                        seed,
                        folder / f"{seed}-{labels}-{way.replace(' ', '')}",
                        {"max_steps": args.steps},
                        data=args.data,
                        image_size=args.size,
                        rows_per_class=labels,
                        eval_rows=args.test_rows,
                        leaks="tell",  # some of its pictures are nearly alike
                    )
                    rows.append({"seed": seed, "labels": labels, **found})
                    print(rows[-1], flush=True)
    tables = [accuracies(rows, args), differences(rows, args)]
    pairs.publish(
        "few_labels", watch.facts(), [t for t in tables if t], {"runs": rows}, args.output
    )


def accuracies(rows: list[dict[str, Any]], args: Any) -> list[dict[str, Any]]:
    """Return a line a way: mean accuracy and the mean ends of the runs' 95 % intervals."""
    table = []
    for way in args.ways:
        line: dict[str, Any] = {"way": way}
        for labels in args.labels:
            mine = [row for row in rows if (row["way"], row["labels"]) == (way, labels)]
            low, high = np.mean([row["interval"] for row in mine], axis=0)
            mean = np.mean([row["accuracy"] for row in mine])
            line[f"{labels} a class"] = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        moved = [row["moved"] for row in rows if row["way"] == way and row["moved"] is not None]
        line["moved"] = f"{np.mean(moved):.2f}" if moved else "-"
        # Of a run that was over before (`--folder`) the seconds are those of looking at it.
        seconds = [row["seconds"] for row in rows if row["way"] == way and row["seconds"] > 0.1]
        line["seconds a run"] = f"{np.mean(seconds):.0f}" if seconds else "-"
        table.append(line)
    return table


def differences(rows: list[dict[str, Any]], args: Any) -> list[dict[str, Any]]:
    """Return a line a way: its accuracy minus that of `full` of the same seed, seed by seed."""
    if "full" not in args.ways:
        return []
    found = {(row["way"], row["labels"], row["seed"]): row["accuracy"] for row in rows}
    return [
        {
            "beside full": way,
            **{
                f"{labels} a class": " ".join(
                    f"{found[way, labels, seed] - found['full', labels, seed]:+.3f}"
                    for seed in range(args.seeds)
                )
                for labels in args.labels
            },
        }
        for way in args.ways
        if way != "full"
    ]


if __name__ == "__main__":
    main()
