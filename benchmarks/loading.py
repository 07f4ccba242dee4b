"""How long does it take, and how much memory, to load a checkpoint of 1 GiB and one of 5 GiB?

    python benchmarks/loading.py                  # about 7 minutes on 2 cores, 7 GiB of disk
    python benchmarks/loading.py --quick          # 1 minute: 128 MiB instead

Llamas of random weights are written first: 1 GiB in one file of safetensors, 5 GiB in shards with
an index. Then each is loaded by `sftjax.hub.load` onto one device; by the same, streamed to 8
virtual devices with `fsdp=8`, of which each takes its part of a leaf; and by transformers'
`AutoModelForCausalLM` on torch, all in the same dtype. A fourth side reads the files into memory
and does nothing else: the floor. Each load is a process of its own, and the sides take turns; the
files are read once before, so that the disk does not count.

Timed is the load alone, imports apart, until a number of every page of every weight has been looked
at. Peak memory is the process's largest resident set less what it had before the load, in times the
bytes of the weights held. It counts the pages of the mapped file too, of which the system can take
back what no weight is; *own memory* is what remains to the process at the end without them. A row
of weights is compared between the sides, and the run stops where they differ.

Expect: a peak of 1.0 to 1.1 times the weights, one device or eight, in the time of reading the
files into memory; transformers in a fraction of it where it casts nothing, for it keeps views of
the mapped files, in the order in which they lie.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pairs

HERE = pathlib.Path(__file__).resolve()
QUICK = "128 MiB, float32"
SHARD = 1_500_000_000
"""Bytes of a file of the larger checkpoint; transformers' own shards are 5 to 50 GB."""


class Case(NamedTuple):
    """A checkpoint, and what it is held in."""

    stored: str
    held: str
    layers: int
    hidden: int
    wide: int
    shard: int | None


CASES = {
    QUICK: Case("float32", "float32", 6, 512, 2048, None),
    "1 GiB, float32": Case("float32", "float32", 16, 1024, 2816, None),
    "1 GiB, bfloat16": Case("bfloat16", "bfloat16", 37, 1024, 2816, None),
    "1 GiB, bfloat16 held in float32": Case("bfloat16", "float32", 37, 1024, 2816, None),
    "5 GiB, bfloat16, sharded": Case("bfloat16", "bfloat16", 32, 2560, 6912, SHARD),
}


def main() -> None:
    """Write, load in turns, print and publish."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--turns", type=int, default=3, help="loads of 1 GiB by each side (3)")
    options.add_argument("--large-turns", type=int, default=2, help="loads of 5 GiB (2)")
    options.add_argument("--cases", nargs="+", choices=CASES, help="(all but the quick one)")
    options.add_argument("--quick", action="store_true", help=f"{QUICK}, and no other")
    options.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES], help="(all)")
    options.add_argument("--output", type=pathlib.Path, help="the JSON (benchmarks/results/)")
    options.add_argument("--serve", choices=[*SIDES, "write"], help="(used inside)")
    options.add_argument("--folder", help="(used inside)")
    args = options.parse_args()
    if args.serve == "write":
        write(pathlib.Path(args.folder), CASES[args.cases[0]])
        return
    if args.serve:
        side = SIDES[args.serve]
        print(json.dumps(measured(side.prepare, args.folder, CASES[args.cases[0]].held)))
        return
    cases = [QUICK] if args.quick else args.cases or [name for name in CASES if name != QUICK]
    watch = pairs.Watch()
    rows, facts = [], {}
    with tempfile.TemporaryDirectory() as home:
        for name in cases:
            case = CASES[name]
            folder = pathlib.Path(home) / f"{case.stored}-{case.layers}-{case.hidden}"
            if not folder.is_dir():
                started("write", name, folder)
            turns = args.large_turns if case.shard else args.turns
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
            started("the files alone", name, folder)  # the page cache is warm from here on
            for turn in range(turns):
                for side, runs in found.items():
                    runs.append(started(side, name, folder))
                    last = runs[-1]
                    print(
                        f"{name}, turn {turn + 1}/{turns}, {side}: {last['wall']:.2f} s, "
                        f"{last['cpu']:.2f} s of CPU, peak {last['peak'] / last['bytes']:.2f} of "
                        "the weights",
                        flush=True,
                    )
            agree(found)
            rows += rows_of(name, found)
            facts[name] = found
            if case.shard:  # no later case reads it
                for file in folder.iterdir():
                    file.unlink()
    pairs.publish("loading", watch.facts(), [rows], {"loads": facts}, args.output)


def rows_of(name: str, found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of one checkpoint."""
    rows = []
    for side, runs in found.items():
        walls = [run["wall"] for run in runs]
        size = runs[0]["bytes"]
        rows.append(
            {
                "checkpoint": name,
                "loaded by": side,
                "s (min..max)": f"{statistics.median(walls):.2f} "
                f"({min(walls):.2f}..{max(walls):.2f})",
                "CPU s": f"{statistics.median(run['cpu'] for run in runs):.2f}",
                "weights, GiB": f"{size / 2**30:.2f}",
                "peak memory, times the weights": times(runs, "peak"),
                "own memory at the end": times(runs, "own"),
            }
        )
    return rows


def times(runs: list[dict[str, Any]], what: str) -> str:
    """Return the largest of some bytes, in times those of the weights."""
    return f"{max(run[what] / run['bytes'] for run in runs):.2f}"


def agree(found: dict[str, list[dict[str, Any]]]) -> None:
    """Stop if the sides do not hold the same weights."""
    sums = {side: run["row"] for side, runs in found.items() for run in runs if run["row"]}
    if sums and max(sums.values()) - min(sums.values()) > 1e-6:
        raise RuntimeError(f"a row of weights sums to {sums}: the sides do not hold the same")


def started(side: str, name: str, folder: pathlib.Path) -> dict[str, Any]:
    """Let a process of its own load (or write) a checkpoint; return what it says.

    This process stays small: a child's peak begins at that of its parent.
    """
    words = [sys.executable, str(HERE), "--serve", side, "--folder", str(folder), "--cases", name]
    surroundings = {**os.environ, **(SIDES[side].environment if side in SIDES else {})}
    done = subprocess.run(words, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}, {name}: ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if side != "write" else {}


def measured(prepare: Callable[[], Any], folder: str, held: str) -> dict[str, Any]:
    """Import, load, touch; return seconds, bytes, and the sum of one row of weights."""
    load, look = prepare()
    before = memory()
    wall, cpu = time.perf_counter(), time.process_time()
    weights = load(folder, held)
    size = sum(touched(array) for array in look(weights))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = memory()
    return {
        "wall": wall,
        "cpu": cpu,
        "bytes": size,
        "peak": peak() - before["VmRSS"],
        "own": after["RssAnon"] - before["RssAnon"],
        "mapped": after["RssFile"] - before["RssFile"],
        "row": look(weights, row=True),
    }


def touched(array: Any) -> int:
    """Look at one number of every page of an array; return its bytes."""
    flat = array.reshape(-1)
    flat[:: max(4096 // array.itemsize, 1)].max()
    return array.nbytes


def peak() -> int:
    """Return the process's largest resident set so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def memory() -> dict[str, int]:
    """Return the process's resident bytes: all, its own, and those of mapped files (Linux)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: int(found[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssFile")}


ROW = ("model", "layers", "1", "mlp", "down_proj")
"""Whose first row of outputs is compared."""


def ours(mesh: str | None) -> Callable[[], Any]:
    """Return what prepares a load by `sftjax.hub`, on one device or a mesh."""

    def prepare() -> Any:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from sftjax.hub import load
        from sftjax.models import TENSOR_RULES
        from sftjax.train import automatic, make_mesh

        place = automatic(make_mesh(mesh), TENSOR_RULES) if mesh else None
        jax.block_until_ready(jnp.zeros(8) + 1)  # the backend is up

        def loaded(folder: str, held: str) -> Any:
            return jax.block_until_ready(load(folder, param_dtype=held, sharding=place).params)

        def look(params: Any, row: bool = False) -> Any:
            if row:
                leaf = params
                for word in (*ROW, "kernel"):
                    leaf = leaf[word]
                return float(np.asarray(leaf)[:, 0].astype(np.float64).sum())
            leaves = jax.tree.leaves(params)
            parts = (s.data for leaf in leaves for s in leaf.addressable_shards)
            return (plain(np.asarray(part)) for part in parts)

        return loaded, look

    return prepare


def theirs() -> Any:
    """Prepare a load by transformers on torch."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama  # noqa: F401 - an import is not the load

    def loaded(folder: str, held: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, held))

    def look(model: Any, row: bool = False) -> Any:
        if row:
            weight = model.get_parameter(".".join((*ROW, "weight")))
            return float(weight.detach()[0].double().sum())
        words = {2: torch.int16, 4: torch.int32}
        held = (weight.detach() for weight in model.parameters())
        return (weight.view(words[weight.element_size()]).numpy() for weight in held)

    return loaded, look


def alone() -> Any:
    """Prepare to read the files into memory, and no more."""
    import numpy as np

    def loaded(folder: str, held: str) -> Any:
        files = sorted(pathlib.Path(folder).glob("*.safetensors"))
        return [np.fromfile(file, np.uint8) for file in files]

    def look(weights: Any, row: bool = False) -> Any:
        return None if row else weights

    return loaded, look


def plain(array: Any) -> Any:
    """Return an array's numbers as integers of their width, which numpy compares fast."""
    import numpy as np

    return array.view(np.dtype(f"u{array.itemsize}"))


class Side(NamedTuple):
    """Who loads."""

    prepare: Callable[[], Any]
    environment: dict[str, str]


CPU = {"JAX_PLATFORMS": "cpu"}
EIGHT = {
    **CPU,
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "PJRT_NPROC": "16",  # without it jax 0.10 deadlocks with eight devices on two cores
}
SIDES = {
    "sftjax": Side(ours(None), CPU),
    "sftjax, fsdp=8": Side(ours("fsdp=8"), EIGHT),
    "transformers": Side(theirs, {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}),
    "the files alone": Side(alone, {}),
}


def write(folder: pathlib.Path, case: Case) -> None:
    """Write a Llama of random weights, a tensor at a time."""
    import numpy as np

    from sftjax.core import flatten
    from sftjax.hub import WEIGHT_MAPS
    from sftjax.hub.names import place
    from sftjax.hub.tensor_files import DTYPES, Later
    from sftjax.hub.weights import write_weights
    from sftjax.models import Head, build

    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
        "hidden_size": case.hidden, "num_hidden_layers": case.layers,
        "num_attention_heads": case.hidden // 64, "num_key_value_heads": case.hidden // 64,
        "intermediate_size": case.wide, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "torch_dtype": case.stored,
    }  # fmt: skip
    dtype = next(dtype for dtype in DTYPES.values() if dtype.name == case.stored)
    draw = np.random.default_rng(0)
    numbers = (draw.standard_normal(2**20 + 7, np.float32) * 0.02).astype(dtype)

    def tensor_of(shape: tuple[int, ...]) -> Later:
        # Drawing five gigabytes would take longer than all else here: each starts elsewhere.
        start = int(draw.integers(len(numbers)))
        return Later(dtype, shape, lambda: np.resize(np.roll(numbers, start), shape))

    tensors = {}
    for path, leaf in flatten(build(config, Head("causal-lm")).shapes()).items():
        spot = place(WEIGHT_MAPS["llama"], path)
        tensors[spot.tensor] = tensor_of(spot.their_shape(leaf.shape))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, tensors, case.shard or 2**40)


if __name__ == "__main__":
    main()
