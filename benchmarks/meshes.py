"""What do meshes and processes cost, and how long until the first step?

    python benchmarks/meshes.py                   # about 6 minutes on 2 cores

The same BERT step (MiniLM's width, 2 of its 6 layers, all weights, AdamW, 32 x 64 tokens) on one
device, on 8 virtual devices in three meshes, and by two processes. All share two cores, so nothing
can be faster than one device: the ratio is the overhead of cutting the work up and of exchanging,
not what such a mesh does where every device has a chip of its own. Then a new process comes to its
first step, with an empty compilation cache and with the one that it left: import, weights and data,
the first step with its compilation, and the second, each in seconds.

Expect: meshes of 8 virtual devices at 1.3 to 3 times one device's step; a warm start in half the
time of a cold one.
"""

import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pairs
import peer

HERE = pathlib.Path(__file__).resolve()
WAYS = {
    "1 device": ("data=1", 1, 1),
    "8 virtual devices, data=8": ("data=8", 8, 1),
    "8 virtual devices, fsdp=8": ("fsdp=8", 8, 1),
    "8 virtual devices, data=2,fsdp=2,tensor=2": ("data=2,fsdp=2,tensor=2", 8, 1),
    "2 processes, data=2": ("data=2", 1, 2),
}
"""Name -> mesh, devices of a process, processes."""


def main() -> None:
    """Time, print and write."""
    if "--serve" in sys.argv:
        where, size, index, port = sys.argv[-4:]
        peer.serve(lambda: step_of(where, int(size), int(index), port))
        return
    if "--first" in sys.argv:
        print(json.dumps(first_step(int(sys.argv[-1]))))
        return
    options = pairs.parser(__doc__, turns=10, steps=5)
    args = options.parse_args()
    watch = pairs.Watch()
    with tempfile.TemporaryDirectory() as cache:
        groups = {name: started(*way, cache) for name, way in WAYS.items()}
        try:
            rounds = {name: rounds_of(group, args.steps) for name, group in groups.items()}
            timings = pairs.alternate(rounds, args.turns, tell=print)
        finally:
            for group in groups.values():  # together: a process that ends waits for its peers
                with ThreadPoolExecutor(len(group)) as pool:
                    list(pool.map(peer.Peer.close, group))
    one = timings["1 device"]
    rows = [
        {
            "where": name,
            "steps a second": f"{1 / pairs.median(found).wall:.2f}",
            "step, beside 1 device (min..max of a turn)": pairs.ratio(found, one),
            "CPU time": f"{pairs.ratio(found, one).cpu:.2f}",
        }
        for name, found in timings.items()
    ]
    starts = {"cold": [], "warm": []}
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            for kind in starts:
                starts[kind].append(started_once(cache))
    facts = {"seconds": timings, "first_step": starts}
    tables = [rows, table_of_starts(starts)]
    pairs.publish("meshes", watch.facts(), tables, facts, args.output)


def table_of_starts(starts: dict[str, list[dict[str, float]]]) -> list[dict[str, str]]:
    """Return the rows of cold and warm starts, and how much the warm one takes of the cold."""
    parts = list(starts["cold"][0])
    rows = [
        {"start": kind, **{part: f"{middle([run[part] for run in runs]):.2f}" for part in parts}}
        for kind, runs in starts.items()
    ]
    ends = {kind: middle([run["all"] for run in runs]) for kind, runs in starts.items()}
    ratio = f"{ends['warm'] / ends['cold']:.2f}"
    return [*rows, {"start": "warm / cold", **dict.fromkeys(parts, ""), "all": ratio}]


def middle(values: list[float]) -> float:
    """Return the median."""
    return sorted(values)[len(values) // 2]


def started(mesh: str, devices: int, size: int, cache: str) -> list[peer.Peer]:
    """Start the processes of one way; all must come up together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, str(HERE), "--serve", mesh, str(size)]

    def one(index: int) -> peer.Peer:
        return peer.Peer([*words, str(index), port], environment(devices, cache))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def environment(devices: int, cache: str) -> dict[str, str]:
    """Return what a process must know before jax is imported."""
    return {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PJRT_NPROC": "16",  # without it jax 0.10 deadlocks with eight devices on two cores
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_PREEMPTION_SERVICE": "0",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def rounds_of(group: list[peer.Peer], steps: int) -> pairs.Round:
    """Return a round that all processes of a group make together."""

    def timed() -> pairs.Timing:
        with ThreadPoolExecutor(len(group)) as pool:
            found = list(pool.map(lambda one: one.ask(steps), group))
        return pairs.Timing(max(wall for wall, _ in found), sum(cpu for _, cpu in found))

    return timed


def step_of(described: str, size: int, index: int, port: str) -> tuple[Any, Callable[[int], Any]]:
    """Return facts, and what makes so many updates and says their time."""
    from sftjax.train import join_processes

    if size > 1:
        join_processes(f"127.0.0.1:{port}", size, index)
    step, state, fixed, batch = prepared(described)

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, fixed, batch)
        return state.trainable, metrics

    def answer(steps: int) -> Any:
        return pairs.rounds_of(call, steps)()

    return described, answer


def prepared(described: str, layers: int = 2) -> tuple[Any, Any, Any, Any]:
    """Return a compiled step and what it takes, on a mesh."""
    import jax
    import minilm
    import optax

    from sftjax.models import TENSOR_RULES
    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, init, make_mesh, make_step, place_state, spread

    model = minilm.model_of(num_hidden_layers=layers)
    params, tx = jax.jit(model.init)(jax.random.key(0)), optax.adamw(minilm.LEARNING_RATE)
    state, fixed = init(params, select(params, "all").trainable, tx, jax.random.key(0))
    mesh = make_mesh(described)
    state, fixed = place_state(state, fixed, mesh, TENSOR_RULES)
    step = compile_step(make_step(classification(model.apply), tx), mesh, TENSOR_RULES)
    batch = spread(lambda number: minilm.batch_of(32, 64), mesh)(0)
    return step, state, fixed, batch


def started_once(cache: str, layers: int = 2) -> dict[str, float]:
    """Start a process that comes to its first step; return the seconds of each part."""
    tick = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE), "--first", str(layers)],
        env={**os.environ, **environment(1, cache)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]) | {"all": time.perf_counter() - tick}


def first_step(layers: int) -> dict[str, float]:
    """Come to the first step; the cache is in the environment already."""
    ticks = [time.perf_counter()]
    import jax

    import sftjax  # noqa: F401 - what it costs is measured

    ticks.append(time.perf_counter())
    step, state, fixed, batch = prepared("data=1", layers)
    jax.block_until_ready(state.trainable)
    ticks.append(time.perf_counter())
    for _ in range(2):
        state, metrics = step(state, fixed, batch)
        jax.block_until_ready((state, metrics))
        ticks.append(time.perf_counter())
    names = ("import", "weights and data", "compile and first step", "second step")
    spans = (after - before for before, after in itertools.pairwise(ticks))
    return dict(zip(names, spans, strict=True))


if __name__ == "__main__":
    main()
