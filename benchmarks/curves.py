"""What does a step cost against the model's size, its rows' length, its leaves and its devices?

    python benchmarks/curves.py                   # about 5 minutes on 2 quiet cores
    python benchmarks/curves.py --quick           # about 1: fewer points, one turn
    python benchmarks/curves.py --draw            # draws results/curves.json again

Four curves, each of points that take turns, and results/curves.png with a panel for each:

- a BERT wider and wider (2 layers) and deeper and deeper (128 wide), 8 x 64 tokens, all weights;
- one of 128 x 2 with rows of more and more tokens, 2 rows;
- a tree of 300,000 numbers in more and more leaves, AdamW, by `make_step` and by a loop written by
  hand that reports the gradient's norm too: what the host pays for a leaf;
- the step of meshes.py on 1, 2, 4 and 8 virtual devices, by `data` and by `fsdp`.

The dashed lines are the compiler's count of FLOPs at the rate that the panel's largest model
reaches: a point above its line pays for something else. Virtual devices share the cores, so that
their dashed line is flat: what lies above it is the price of cutting and exchanging.

Expect: time within a third of the line from 10 GFLOP on; by hand and by `make_step` alike, however
many leaves; eight devices at 1.5 to 3 times one. None of it was measured when this was written.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import meshes
import pairs

WIDTHS, DEPTHS = (64, 128, 256, 512), (1, 2, 4, 8, 16)
LENGTHS = (32, 64, 128, 256, 512, 1024)
LEAVES, NUMBERS = (10, 30, 100, 300, 1000, 3000), 300_000
DEVICES = (1, 2, 4, 8)


def main() -> None:
    """Time, draw, print and write."""
    options = pairs.parser(__doc__, turns=5, steps=2)
    options.add_argument("--quick", action="store_true", help="fewer points, one turn")
    options.add_argument("--draw", action="store_true", help="draw the results that are there")
    args = options.parse_args()
    path = args.output or pairs.RESULTS / "curves.json"
    if args.draw:
        draw(json.loads(path.read_text(encoding="utf-8"))["curves"], path.with_suffix(".png"))
        return
    turns, steps = (1, 1) if args.quick else (args.turns, args.steps)

    def some(points: tuple[int, ...]) -> tuple[int, ...]:
        return points[::2] if args.quick else points

    watch = pairs.Watch()
    widths = {f"{width}": bert(width, 2, 8, 64) for width in some(WIDTHS)}
    depths = {f"{depth}": bert(128, depth, 8, 64) for depth in some(DEPTHS)}
    lengths = {f"{length}": bert(128, 2, 2, length) for length in some(LENGTHS)}
    curves = {
        "width": timed(widths, turns, steps),
        "depth": timed(depths, turns, steps),
        "length": timed(lengths, turns, steps),
    }
    curves |= {"make_step": {}, "by hand": {}}
    for leaves in some(LEAVES):
        jobs = {"make_step": ours(leaves), "by hand": by_hand(leaves)}
        for name, one in timed(jobs, turns, 10 * steps).items():
            curves[name][f"{leaves}"] = one
    curves |= on_devices(some(DEVICES), turns, steps)
    machine = watch.facts()
    pairs.publish("curves", machine, tables_of(curves), {"curves": curves}, args.output)
    draw(curves, path.with_suffix(".png"))


class Job:
    """A compiled step and what it does."""

    def __init__(self, call: Callable[[], Any], **facts: Any):
        self.call, self.facts = call, facts


def timed(jobs: Mapping[str, Job], turns: int, steps: int) -> dict[str, Any]:
    """Return the seconds of each job's steps, turn by turn, beside what is known of it."""
    rounds = {name: pairs.rounds_of(job.call, steps) for name, job in jobs.items()}
    timings = pairs.alternate(rounds, turns, tell=lambda line: print(line, flush=True))
    return {name: {**job.facts, "seconds": timings[name]} for name, job in jobs.items()}


def bert(width: int, layers: int, rows: int, length: int) -> Job:
    """Return a step of a BERT of that size."""
    import jax
    import minilm
    import optax

    from sftjax.core import count
    from sftjax.objectives import classification

    model = minilm.model_of(
        vocab_size=1000, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=max(width // 32, 1), intermediate_size=4 * width,
        max_position_embeddings=1024,
    )  # fmt: skip
    params = jax.jit(model.init)(jax.random.key(0))
    batch = jax.device_put(minilm.batch_of(rows, length, 1000))
    numbers = count(params)
    job = stepping(classification(model.apply), params, optax.adamw(1e-4), batch)
    job.facts["numbers"] = numbers
    return job


def stepping(objective: Any, params: Any, tx: Any, batch: Any) -> Job:
    """Return our step of an objective, compiled."""
    import jax

    from sftjax.select import select
    from sftjax.train import compile_step, init, make_step

    state, fixed = init(params, select(params, "all").trainable, tx, jax.random.key(0))
    step: Any = compile_step(make_step(objective, tx))
    tick = time.perf_counter()
    compiled = step.lower(state, fixed, batch).compile()
    tick = time.perf_counter() - tick

    def call() -> Any:
        nonlocal state
        # Through `jit`, as a loop calls it.
        state, metrics = step(state, fixed, batch)
        return state.trainable, metrics

    return Job(call, gflop=compiled.cost_analysis()["flops"] / 1e9, compile=tick)


def tree(leaves: int) -> dict[str, Any]:
    """Return so many leaves of the same numbers in all."""
    import jax.numpy as jnp

    return {f"leaf_{index:04}": jnp.ones(NUMBERS // leaves) for index in range(leaves)}


def distance(params: Any, batch: Any) -> Any:
    """Return the squared distance of all leaves to the batch's number."""
    import jax
    import jax.numpy as jnp

    return sum(jnp.sum(jnp.square(leaf - batch["x"])) for leaf in jax.tree.leaves(params))


def ours(leaves: int) -> Job:
    """Return our step of a tree of leaves."""
    import jax.numpy as jnp
    import optax

    from sftjax.core import Aux, Loss

    def objective(params: Any, state: Any, batch: Any, key: Any) -> Any:
        return Loss(distance(params, batch), jnp.float32(1)), Aux()

    return stepping(objective, tree(leaves), optax.adamw(1e-4), {"x": jnp.zeros(())})


def by_hand(leaves: int) -> Job:
    """Return the same as one writes it by hand."""
    import functools

    import jax
    import jax.numpy as jnp
    import optax

    tx, params, batch = optax.adamw(1e-4), tree(leaves), {"x": jnp.zeros(())}
    opt_state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(distance)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, (loss, optax.global_norm(grads))

    tick = time.perf_counter()
    step.lower(params, opt_state, batch).compile()
    tick = time.perf_counter() - tick

    def call() -> Any:
        nonlocal params, opt_state
        params, opt_state, metrics = step(params, opt_state, batch)
        return params, metrics

    return Job(call, compile=tick)


def on_devices(numbers: tuple[int, ...], turns: int, steps: int) -> dict[str, Any]:
    """Return the seconds of the step of meshes.py on so many virtual devices, each a process."""
    found: dict[str, Any] = {"data": {}, "fsdp": {}}
    with tempfile.TemporaryDirectory() as cache:
        ways = [(axis, number) for number in numbers for axis in found]
        groups = {way: meshes.started(f"{way[0]}={way[1]}", way[1], 1, cache) for way in ways}
        rounds = {way: meshes.rounds_of(group, steps) for way, group in groups.items()}
        timings = pairs.alternate(
            {f"{axis}={number}": rounds[axis, number] for axis, number in ways},
            turns, tell=lambda line: print(line, flush=True),
        )  # fmt: skip
        for group in groups.values():
            group[0].close()
    for axis, number in ways:
        found[axis][f"{number}"] = {"seconds": timings[f"{axis}={number}"]}
    return found


def ms(point: Mapping[str, Any]) -> float:
    """Return the median milliseconds of a point."""
    return pairs.median(pairs.Timing(*one) for one in point["seconds"]).wall * 1e3


def rate(curve: Mapping[str, Any]) -> float:
    """Return the GFLOP a second of a curve's largest point."""
    most = max(curve.values(), key=lambda point: point["gflop"])
    return most["gflop"] / ms(most) * 1e3


def tables_of(curves: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return a table for each panel."""
    sizes = [
        {
            "BERT": f"{size} wide, 2 layers" if name == "width" else f"128 wide, {size} layers",
            "parameters": f"{point['numbers']:,}",
            "GFLOP": f"{point['gflop']:.2f}",
            "ms": f"{ms(point):.1f}",
            "GFLOP/s": f"{point['gflop'] / ms(point) * 1e3:.0f}",
        }
        for name in ("width", "depth")
        for size, point in curves[name].items()
    ]
    lengths = [
        {
            "tokens of a row": size,
            "GFLOP": f"{point['gflop']:.2f}",
            "ms": f"{ms(point):.1f}",
            "µs a token": f"{ms(point) * 1e3 / (2 * int(size)):.0f}",
        }
        for size, point in curves["length"].items()
    ]
    leaves = []
    for size, point in curves["make_step"].items():
        hand = curves["by hand"][size]
        sides = [[pairs.Timing(*t) for t in one["seconds"]] for one in (point, hand)]
        leaves.append({
            "leaves": size, "make_step, ms": f"{ms(point):.2f}", "by hand, ms": f"{ms(hand):.2f}",
            "ratio (min..max of a turn)": pairs.ratio(*sides),
            "compile, s": f"{point['compile']:.1f}", "by hand": f"{hand['compile']:.1f}",
        })  # fmt: skip
    one = ms(next(iter(curves["data"].values())))
    devices = [
        {
            "virtual devices": number,
            **{f"{a}, ms": f"{ms(curves[a][number]):.0f}" for a in ("data", "fsdp")},
            **{f"{a}, times one": f"{ms(curves[a][number]) / one:.2f}" for a in ("data", "fsdp")},
        }
        for number in curves["data"]
    ]
    return [sizes, lengths, leaves, devices]


def draw(curves: Mapping[str, Any], path: Any) -> None:
    """Draw the four panels."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    from sftjax.evaluate.figure import COLOURS, INK, MARKERS, QUIET, figure, tidy

    drawing = figure(10, 7.2)
    axes = drawing.subplots(2, 2)
    dashed = {"color": QUIET, "lw": 1.2, "ls": (0, (4, 3))}

    def line(axis: Any, index: int, name: str, label: str, at: Callable[[str, Any], float]) -> None:
        points = curves[name].items()
        where = [at(size, point) for size, point in points]
        walls = [[one[0] * 1e3 for one in point["seconds"]] for _, point in points]
        colour = COLOURS[index]
        axis.plot(where, [ms(point) for _, point in points], color=colour, marker=MARKERS[index],
                  ms=5, lw=1.4, label=label)  # fmt: skip
        low, high = [min(one) for one in walls], [max(one) for one in walls]
        axis.fill_between(where, low, high, color=colour, alpha=0.13, lw=0)

    size, length, leaves, devices = axes.flat
    line(size, 0, "width", "wider: 2 layers, 64 to 512 wide", lambda _, p: p["numbers"])
    line(size, 1, "depth", "deeper: 128 wide, 1 to 16 layers", lambda _, p: p["numbers"])
    best = max(rate(curves["width"]), rate(curves["depth"]))
    for index, name in enumerate(("width", "depth")):
        points = curves[name].values()
        size.plot(
            [p["numbers"] for p in points], [p["gflop"] / best * 1e3 for p in points],
            **dashed, label=None if index else f"FLOPs at {best:.0f} GFLOP/s",
        )  # fmt: skip
    line(length, 0, "length", "measured, 2 rows", lambda n, _: int(n))
    best = rate(curves["length"])
    found = curves["length"].items()
    length.plot([int(n) for n, _ in found], [p["gflop"] / best * 1e3 for _, p in found],
                **dashed, label=f"FLOPs at {best:.0f} GFLOP/s")  # fmt: skip
    line(leaves, 0, "make_step", "make_step", lambda n, _: int(n))
    line(leaves, 1, "by hand", "by hand", lambda n, _: int(n))
    line(devices, 0, "data", "data: weights whole on each", lambda n, _: int(n))
    line(devices, 1, "fsdp", "fsdp: weights cut", lambda n, _: int(n))
    devices.axhline(ms(next(iter(curves["data"].values()))), **dashed, label="the same work")
    words = {
        size: ("Size of the model", "trainable parameters"),
        length: ("Length of the rows", "tokens of a row"),
        leaves: ("Leaves, 300,000 numbers in all", "trainable leaves"),
        devices: ("Virtual devices on the same cores", "devices"),
    }
    for axis, (title, what) in words.items():
        axis.set_xscale("log")
        axis.set(xlabel=what, ylabel="ms a step")
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
        if axis is devices:
            axis.set_ylim(bottom=0)
        else:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if axis is not size:
            name = {length: "length", leaves: "make_step", devices: "data"}[axis]
            axis.set_xticks([int(n) for n in curves[name]], [f"{int(n):,}" for n in curves[name]])
            axis.xaxis.set_minor_locator(NullLocator())
        tidy(axis, "both")
        axis.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    drawing.savefig(path)


if __name__ == "__main__":
    main()
