"""Few labels, a frozen trunk: what does keeping its output save from end to end, beside torch?

    python benchmarks/images_transfer.py            # about 12 minutes on 2 cores
    python benchmarks/images_transfer.py --quick    # about 1 minute: 60 pictures, 3 epochs

ResNet-18 with random weights on JPEG files of 320 x 240 that are made first, at 96 x 96 pixels, 16
a batch, AdamW. The head alone moves, or the last stage and the head.

1. From files to a trained head: ours decodes, runs the frozen part once over all pictures and
   trains above it, compilation included; torch decodes once with the same decoder and runs the
   whole network in every epoch, without gradients where nothing moves. Same order; the losses of
   the first updates must agree.
2. The input alone: pictures a second that are decoded and resized, and that batches are made of,
   beside what one step eats.

Expect: ahead of torch from a few epochs on; batches from memory many times faster than the step.
"""

import functools
import pathlib
import sys
import tempfile
import time
from typing import Any

import images_speed
import numpy as np
import pairs
import peer
from torch_pictures import BEGUN, LEARNING_RATE, torch_side

MODES = {"head only": ("classifier", "head", 4), "last stage": ("last:1", "last", 3)}
"""What moves -> our rule, the peer's word, how many stages lie below."""


def main() -> None:
    """Make the files, time both sides, print and write."""
    options = pairs.parser(__doc__, turns=3, steps=20)
    options.add_argument("--pictures", type=int, default=400, help="files (400)")
    options.add_argument("--epochs", type=int, default=15, help="passes over them (15)")
    options.add_argument("--side", type=int, default=96, help="pixels of a side (96)")
    options.add_argument("--rows", type=int, default=16, help="pictures of a batch (16)")
    options.add_argument("--quick", action="store_true", help="one turn, few pictures")
    options.add_argument("--serve", action="store_true", help="(used inside)")
    args = options.parse_args()
    if args.serve:
        peer.serve(torch_side)
        return
    if args.quick:
        args.turns, args.pictures, args.epochs, args.steps = 1, 60, 3, 2
    from sftjax.hub import save
    from sftjax.train import keep_freed_memory

    keep_freed_memory()
    watch = pairs.Watch()
    model, params = images_speed.network("ResNet-18")
    with (
        tempfile.TemporaryDirectory() as name,
        peer.Peer([sys.executable, __file__, "--serve"]) as torch,
    ):
        folder = pathlib.Path(name)
        files, labels = write_files(folder, args.pictures)
        home = str(save(folder / "model", model, params))
        rows, facts = transfer_table(args, model, params, files, labels, torch, home)
        inputs = input_table(args, model, params, files, labels)
    facts["input"] = inputs
    pairs.publish("images_transfer", watch.facts(), [rows, inputs], facts, args.output)


def write_files(folder: pathlib.Path, count: int) -> tuple[list[str], list[int]]:
    """Write JPEG files of smooth noise, and return them with labels."""
    from PIL import Image

    rng = np.random.default_rng(0)
    labels = [number % 10 for number in range(count)]
    files = []
    for number in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(path, quality=90)
        files.append(str(path))
    return files, labels


def transfer_table(
    args: Any, model: Any, params: Any, files: list[str], labels: list[int], torch: Any, home: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Time both sides from files to trained weights."""
    table, facts = [], {}
    for what, (rule, word, cut) in MODES.items():
        runs: dict[str, list[Any]] = {"sftjax": [], "torch": []}
        for turn in range(args.turns):
            request = {
                "folder": home, "mode": word, "files": files, "labels": labels,
                "side": args.side, "rows": args.rows, "epochs": args.epochs,
            }  # fmt: skip
            runs["sftjax"].append(ours(args, model, params, files, labels, rule, cut))
            decoding, training, losses = torch.ask(["transfer", request])
            runs["torch"].append({"decode": decoding, "train": training, "losses": losses})
            mine = runs["sftjax"][-1]["losses"]
            # Adam follows the signs of small gradients, so that roundings part the two in time.
            if not np.allclose(mine[:BEGUN], losses[:BEGUN], rtol=2e-3):
                raise RuntimeError(f"{what}: losses {mine} and {losses}")
            print(f"{what}, turn {turn + 1}: {runs['sftjax'][-1]} torch {runs['torch'][-1]}")

        ours_of, theirs_of = (functools.partial(middle, runs[side]) for side in runs)
        whole = ("decode", "compile", "keep", "train")
        mine, theirs = ours_of(*whole), theirs_of("decode", "train")
        table.append(
            {
                "what moves": what,
                "sftjax, s": f"{mine:.2f}",
                "of it decoding, compiling, trunk once, training": " ".join(
                    f"{ours_of(name):.2f}" for name in whole
                ),
                "torch, s": f"{theirs:.2f}",
                "of it decoding, training": f"{theirs_of('decode'):.2f} {theirs_of('train'):.2f}",
                "ratio": f"{mine / theirs:.3f}",
            }
        )
        facts[what] = runs
    return table, facts


def middle(runs: list[dict[str, Any]], *names: str) -> float:
    """Return the median of a sum of times."""
    return float(np.median([sum(run[name] for name in names) for run in runs]))


def ours(
    args: Any, model: Any, params: Any, files: list[str], labels: list[int], rule: str, cut: int
) -> dict[str, Any]:
    """Decode, keep the prefix, train above it; return seconds of each, and some losses."""
    import jax
    import optax

    from sftjax.data import ImageBatches, Processor, Table, load_images
    from sftjax.models import split, statistics_of
    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, init, keep_prefix, make_step, with_prefix

    jax.clear_caches()  # compilation counts in every turn
    begin = time.perf_counter()
    images = load_images(Table({"image": files}, "files"), Processor(resize=(args.side,) * 2))
    batches = ImageBatches(images, np.asarray(labels, np.int32), args.rows, shuffle=False)
    decoded = time.perf_counter()
    lower, upper = split(model, cut)
    every = [batches.at(step) for step in range(batches.steps_per_epoch)]
    kept = keep_prefix(lower, params, every, len(files))
    kept_at = time.perf_counter()
    trainable = select(params, rule, still=statistics_of(params)).trainable
    tx = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    state, fixed = init(params, trainable, tx, jax.random.key(0))
    step: Any = compile_step(make_step(classification(upper), tx))

    def without_pictures(number: int) -> dict[str, Any]:
        batch = every[number % len(every)]
        return {name: value for name, value in batch.items() if name != "pixel_values"}

    batch_at = with_prefix(without_pictures, kept)
    run = step.lower(state, fixed, batch_at(0)).compile()
    compiled = time.perf_counter()
    losses = []
    for epoch in range(args.epochs):
        for place in range(len(every)):
            state, metrics = run(state, fixed, batch_at(epoch * len(every) + place))
            if len(losses) < BEGUN or place == len(every) - 1:
                losses.append(float(metrics["loss"]))
    return {
        "decode": decoded - begin,
        "keep": kept_at - decoded,
        "compile": compiled - kept_at,
        "train": time.perf_counter() - compiled,
        "losses": losses,
    }


def input_table(
    args: Any, model: Any, params: Any, files: list[str], labels: list[int]
) -> list[dict[str, Any]]:
    """Time decoding and batching alone, and what the steps eat."""
    import jax

    from sftjax.data import ImageBatches, Processor, Table, load_images

    table = Table({"image": files}, "files")
    processor = Processor(resize=(args.side,) * 2)

    def seconds(call: Any, times: int) -> float:
        call()
        begin = time.perf_counter()
        for _ in range(times):
            out = call()
        jax.block_until_ready(out)
        return (time.perf_counter() - begin) / times

    images = load_images(table, processor)
    batches = ImageBatches(images, np.asarray(labels, np.int32), args.rows, normalized=False)
    lite, weights = images_speed.network("EfficientNet-lite0")
    batch = images_speed.raw(args.rows, args.side)
    rates = {
        "decode and resize, once a run": len(files)
        / seconds(lambda: load_images(table, processor).pixels.shape, 2),
        "batches from memory": args.rows
        * batches.steps_per_epoch
        / seconds(lambda: [batches.at(s) for s in range(batches.steps_per_epoch)][-1]["index"], 3),
    }
    for name, (net, leaves) in {
        "ResNet-18": (model, params), "EfficientNet-lite0": (lite, weights),
    }.items():  # fmt: skip
        for mode in ("full", "head"):
            call = images_speed.ours(net, leaves, mode, batch, augment=())
            rates[f"step of {name}, {mode}"] = args.rows / seconds(
                lambda call=call: call()[1]["loss"], args.steps
            )
    fastest = max(rate for name, rate in rates.items() if name.startswith("step"))
    return [
        {
            "what": name,
            "pictures a second": f"{rate:,.0f}",
            "times the fastest step": f"{rate / fastest:.1f}",
        }
        for name, rate in rates.items()
    ]


if __name__ == "__main__":
    main()
