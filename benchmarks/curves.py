"""How does the cost of a step grow with the model, the text, what moves, and the devices?

    python benchmarks/curves.py --turns 4 --steps 1    # 18 minutes on 2 cores that tests shared

A BERT that names one of two classes, AdamW, all weights where nothing else is said:

- model: five sizes, from 4 million parameters to BERT-base, 16 x 128 tokens;
- text: MiniLM's size, 2,048 tokens a batch as rows of 32 to 512;
- what moves: MiniLM-L6, 16 x 128 tokens, from the head alone to all of its leaves;
- devices: two blocks of MiniLM's width, 32 x 64 tokens, on 1 to 8 virtual devices that share the
  same cores: what cutting up and exchanging cost, not what more chips bring.

The first three stand beside a loop written by hand that differentiates the whole tree and gives the
gradient's norm as ours does (optax leaves the frozen leaves alone: `masked`), the devices beside
one device. First the machine's own peaks are measured: a product of two matrices of 2,048 x 2,048,
and 256 MiB read and written in place.

Expect: 1.00 beside the loop by hand at every size and length, ever less where little moves; a time
that follows the GFLOP.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pairs
import peer

MODELS = {"2 x 128": (2, 128), "4 x 256": (4, 256), "6 x 384": (6, 384), "12 x 384": (12, 384),
          "12 x 768": (12, 768)}  # fmt: skip
"""Blocks x width; a head for every 32 numbers, as MiniLM has."""
LENGTHS = (32, 64, 128, 256, 512)
TOKENS = 2048
MOVES = ("head", *(f"last:{blocks}" for blocks in range(1, 7)), "all")
DEVICES = (1, 2, 4, 8)
MESHES = ("data", "fsdp")


class Point(NamedTuple):
    """One place on a curve, and what a step costs there."""

    where: str
    x: float
    """Millions of parameters, tokens of a row, or leaves that move."""
    gflop: float
    temporary: int
    """Bytes of intermediate values."""
    timings: Mapping[str, Sequence[pairs.Timing]]
    """Of `sftjax` and of what it stands beside."""


def main() -> None:
    """Measure the peaks and the curves, print, draw and write."""
    options = pairs.parser(__doc__, turns=6, steps=2)
    args = options.parse_args()
    watch = pairs.Watch()
    multiply, moved = peaks()
    print(
        f"peaks: {multiply:.0f} GFLOP/s in a product, {moved:.1f} GB/s read and written", flush=True
    )
    curves = {
        "model, blocks x width": grown_models(args.turns, args.steps),
        "tokens of a row": longer_rows(args.turns, args.steps),
        "what moves": more_moving(args.turns, args.steps),
    }
    meshes = more_devices(args.turns, args.steps)
    peak = [
        {"peak": "product, 2048 x 2048", "measured": f"{multiply:.0f} GFLOP/s"},
        {"peak": "256 MiB read and written in place", "measured": f"{moved:.1f} GB/s"},
    ]
    tables = [peak, *(rows_of(name, points, multiply) for name, points in curves.items())]
    tables.append(rows_of_meshes(meshes))
    facts = {
        "gflops_of_product": multiply,
        "gbytes_read_and_written": moved,
        "curves": {name: [point._asdict() for point in points] for name, points in curves.items()},
        "devices": meshes,
    }
    picture = (args.output or pairs.RESULTS / "curves.json").with_suffix(".png")
    draw(curves, meshes, multiply, picture)
    pairs.publish("curves", watch.facts(), tables, facts, args.output)
    print(picture.name)


def peaks() -> tuple[float, float]:
    """Return GFLOP/s of a product and GB/s of an addition in place, each the best of 20."""
    import jax
    import jax.numpy as jnp

    side = 2048
    square, block = jnp.ones((side, side)), jnp.ones(64 * 2**20)
    multiply = jax.jit(jnp.dot)
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)  # in place: new pages would cost more

    def added() -> Any:
        nonlocal block
        block = add(block)
        return block

    best = []
    for call in (lambda: multiply(square, square), added):
        timed = pairs.rounds_of(call, 1)
        timed()
        best.append(min(timed().wall for _ in range(20)))
    return 2 * side**3 / best[0] / 1e9, 2 * block.nbytes / best[1] / 1e9


def grown_models(turns: int, steps: int) -> list[Point]:
    """Return the curve over sizes of the model."""
    import minilm

    return [
        measured(
            name, None, "all", minilm.batch_of(16, 128), turns, steps,
            num_hidden_layers=blocks, hidden_size=width, intermediate_size=4 * width,
            num_attention_heads=width // 32,
        )
        for name, (blocks, width) in MODELS.items()
    ]  # fmt: skip


def longer_rows(turns: int, steps: int) -> list[Point]:
    """Return the curve over lengths of a row, at the same number of tokens."""
    import minilm

    return [
        measured(
            str(length), length, "all", minilm.batch_of(TOKENS // length, length), turns, steps
        )
        for length in LENGTHS
    ]


def more_moving(turns: int, steps: int) -> list[Point]:
    """Return the curve over how many leaves move."""
    import jax
    import minilm

    from sftjax.select import select

    model = minilm.model_of()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    points = []
    for rule in MOVES:
        leaves = sum(jax.tree.leaves(select(shapes, rule).trainable))
        points.append(measured(rule, leaves, rule, minilm.batch_of(16, 128), turns, steps))
    return points


def measured(
    where: str, x: float | None, rule: str, batch: Any, turns: int, steps: int, **changes: Any
) -> Point:
    """Return the point of that model, batch and rule, beside the loop by hand."""
    import freezing
    import jax
    import minilm
    import optax

    from sftjax.select import select

    model = minilm.model_of(**changes)
    params = model.init(jax.random.key(0))
    mask = select(params, rule).trainable
    frozen = jax.tree.map(lambda moves: not moves, mask)
    adamw = optax.adamw(minilm.LEARNING_RATE, weight_decay=0.01)
    by_hand = adamw
    if any(jax.tree.leaves(frozen)):
        by_hand = optax.chain(optax.masked(adamw, mask), optax.masked(optax.set_to_zero(), frozen))
    batch = jax.device_put(batch)
    ours = freezing.partitioned(model, params, mask, adamw, batch)
    theirs = freezing.whole(model, params, by_hand, batch)
    timings = pairs.alternate(
        {
            "sftjax": pairs.rounds_of(ours.call, steps),
            "by hand": pairs.rounds_of(theirs.call, steps),
        },
        turns,
    )
    millions = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    point = Point(where, millions if x is None else x, ours.gflop, ours.temporary, timings)
    print(f"{where}: {pairs.ratio(timings['sftjax'], timings['by hand'])}", flush=True)
    return point


def more_devices(turns: int, steps: int) -> dict[str, dict[int, list[pairs.Timing]]]:
    """Return `mesh -> devices -> timings` of our step, all in turns."""
    import meshes

    ways = [(kind, count) for kind in MESHES for count in DEVICES if count > 1 or kind == "data"]
    with tempfile.TemporaryDirectory() as cache:
        groups = {way: meshes.started(f"{way[0]}={way[1]}", way[1], 1, cache) for way in ways}
        try:
            timings = pairs.alternate(
                {f"{kind}={count}": meshes.rounds_of(group, steps)
                 for (kind, count), group in groups.items()},
                turns, tell=print,
            )  # fmt: skip
        finally:
            for group in groups.values():
                peer.close_together(group)
    alone = timings["data=1"]
    return {
        kind: {count: timings.get(f"{kind}={count}", alone) for count in DEVICES} for kind in MESHES
    }


def rows_of(name: str, points: Sequence[Point], peak: float) -> list[dict[str, Any]]:
    """Return a curve as a table."""
    rows = []
    for point in points:
        ours = pairs.median(point.timings["sftjax"]).wall
        x = {} if point.where == str(point.x) else {_UNITS[name]: f"{point.x:,.0f}"}
        rows.append(
            {
                name: point.where,
                **x,
                "GFLOP": f"{point.gflop:,.1f}",
                "temporary, MiB": f"{point.temporary / 2**20:,.0f}",
                "sftjax, ms": f"{ours * 1e3:,.0f}",
                "of the product's peak": f"{point.gflop / ours / peak:.0%}",
                "beside by hand (min..max of a turn)": pairs.ratio(
                    point.timings["sftjax"], point.timings["by hand"]
                ),
            }
        )
    return rows


_UNITS = {
    "model, blocks x width": "M params",
    "tokens of a row": "tokens",
    "what moves": "leaves",
}


def rows_of_meshes(found: dict[str, dict[int, list[pairs.Timing]]]) -> list[dict[str, Any]]:
    """Return steps on virtual devices beside one, as a table."""
    return [
        {
            "virtual devices": count,
            **{
                f"{kind}=N, beside 1 (min..max of a turn)": pairs.ratio(runs[count], runs[1])
                for kind, runs in found.items()
            },
        }
        for count in DEVICES
    ]


def draw(
    curves: Mapping[str, Sequence[Point]],
    found: Mapping[str, Mapping[int, Sequence[pairs.Timing]]],
    peak: float,
    path: Any,
) -> None:
    """Draw the curves into one picture, in processor time, which other programs change least."""
    from sftjax.evaluate import figure

    cores = os.cpu_count() or 1
    drawing = figure.figure(9, 6.4)
    axes = drawing.subplots(2, 2).flatten()
    labels = ("million parameters", "tokens of a row (2,048 a batch)", "leaves that move")
    for axis, points, label in zip(axes, curves.values(), labels, strict=False):
        x = [point.x for point in points]
        for number, who in enumerate(("sftjax", "by hand")):
            y = [pairs.median(point.timings[who]).cpu for point in points]
            axis.plot(x, y, color=figure.COLOURS[number], marker=figure.MARKERS[number], label=who)
        least = [point.gflop / peak * cores for point in points]
        axis.plot(x, least, "--", color=figure.QUIET, label="our GFLOP at the product's peak")
        axis.set(xlabel=label, ylabel="processor seconds a step")
    axes[0].set(xscale="log", yscale="log")
    for axis in axes[1:3]:
        axis.set_ylim(bottom=0)
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    for number, (kind, runs) in enumerate(found.items(), start=2):
        y = [pairs.ratio(runs[count], runs[1]).medians for count in DEVICES]
        axes[3].plot(
            DEVICES, y, color=figure.COLOURS[number], marker=figure.MARKERS[number],
            label=f"{kind}=N",
        )  # fmt: skip
    axes[3].set(xlabel="virtual devices on the same cores", ylabel="time of one device's step")
    axes[3].set_ylim(bottom=0)
    for axis in axes:
        figure.tidy(axis, "both")
        axis.legend(frameon=False, fontsize=8, loc="best")
    figure.save(drawing, path)


if __name__ == "__main__":
    main()
