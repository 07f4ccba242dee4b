"""What do meshes and processes cost?

    python benchmarks/meshes.py                   # about 5 minutes on 2 cores

The same BERT step (MiniLM's width, 2 of its 6 layers, all weights, AdamW, 32 x 64 tokens) on one
device, on 8 virtual devices in three meshes, and by two processes. All share two cores, so nothing
can be faster than one device: the ratio is the overhead of cutting the work up and of exchanging,
not what such a mesh does where every device has a chip of its own.

Expect: meshes of 8 virtual devices at 1.3 to 3 times one device's step.
"""

import pathlib
import socket
import sys
import tempfile
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
    options = pairs.parser(__doc__, turns=10, steps=5)
    args = options.parse_args()
    watch = pairs.Watch()
    with tempfile.TemporaryDirectory() as cache:
        groups = {name: started(*way, cache) for name, way in WAYS.items()}
        try:
            rounds = {name: rounds_of(group, args.steps) for name, group in groups.items()}
            timings = pairs.alternate(rounds, args.turns, tell=print)
        finally:
            for group in groups.values():
                peer.close_together(group)
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
    pairs.publish("meshes", watch.facts(), [rows], {"seconds": timings}, args.output)


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


def prepared(described: str) -> tuple[Any, Any, Any, Any]:
    """Return a compiled step and what it takes, on a mesh."""
    import jax
    import minilm
    import optax

    from sftjax.models import TENSOR_RULES
    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, init, make_mesh, make_step, place_state, spread

    model = minilm.model_of(num_hidden_layers=2)
    params, tx = jax.jit(model.init)(jax.random.key(0)), optax.adamw(minilm.LEARNING_RATE)
    state, fixed = init(params, select(params, "all").trainable, tx, jax.random.key(0))
    mesh = make_mesh(described)
    state, fixed = place_state(state, fixed, mesh, TENSOR_RULES)
    step = compile_step(make_step(classification(model.apply), tx), mesh, TENSOR_RULES)
    batch = spread(lambda number: minilm.batch_of(32, 64), mesh)(0)
    return step, state, fixed, batch


if __name__ == "__main__":
    main()
