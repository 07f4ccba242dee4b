"""What does it cost to be safe: a guard in the step, a checkpoint every 10 updates?

    python benchmarks/faults.py                   # about 11 minutes on 2 cores

MiniLM-L6 (22.7 M parameters, AdamW), batches of 16 x 128 tokens, once with all weights moving and
once with the last two blocks. The step by itself beside the same step in `train.guard`, under
"stop" and under "skip". Then `train.fit` with a checkpoint every 10 updates beside `fit` without:
how long a save keeps the loop waiting (what it copies and digests, and what is left of the save
before), as a share of 10 updates, and what the whole run loses, the background's writing included.

Expect: the guard within 2 % of the bare step; a save blocks for less than 5 % of 10 updates.
"""

import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pairs

EVERY = 10
"""Updates between checkpoints."""
RULES = {"all weights": "all", "last two blocks": "last:2"}


def main() -> None:
    """Time, print and write."""
    options = pairs.parser(__doc__, turns=8, steps=2)
    options.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    options.add_argument("--length", type=int, default=128, help="tokens of a row (128)")
    options.add_argument("--layers", type=int, default=6, help="of the model (6)")
    options.add_argument("--saves", type=int, default=4, help="checkpoints of each run (4)")
    args = options.parse_args()

    import jax
    import minilm

    watch = pairs.Watch()
    model = minilm.model_of(num_hidden_layers=args.layers)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = jax.device_put(minilm.batch_of(args.rows, args.length))
    guards, saves, facts = [], [], {}
    for name, rule in RULES.items():
        steps, begin = steps_of(model, params, rule)
        timings = pairs.alternate(
            {kind: round_of(step, begin, batch, args.steps) for kind, step in steps.items()},
            args.turns,
            tell=print,
        )
        bare = timings["bare"]
        guards.append({
            "what moves": name, "bare step, ms": f"{pairs.median(bare).wall * 1e3:.1f}",
            **{
                f"guarded, {kind} (min..max of a turn)": pairs.ratio(timings[kind], bare)
                for kind in ("stop", "skip")
            },
        })  # fmt: skip
        found = [saved(steps["stop"], begin, batch, args.saves) for _ in range(2)]
        saves.append(row_of(name, found))
        facts[name] = {"guard": timings, "saves": found}
    pairs.publish("faults", watch.facts(), [guards, saves], facts, args.output)


def steps_of(model: Any, params: Any, rule: str) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Return the step, bare and guarded, compiled; and what makes a first state."""
    import jax
    import jax.numpy as jnp
    import minilm
    import optax

    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, guard, init, make_step

    tx = optax.adamw(minilm.LEARNING_RATE)
    chosen = select(params, rule).trainable
    step = make_step(classification(model.apply), tx)

    def begin() -> Any:
        return init(jax.tree.map(jnp.copy, params), chosen, tx, jax.random.key(0))

    return {
        "bare": compile_step(step),
        "stop": compile_step(guard(step, "stop")),
        "skip": compile_step(guard(step, "skip")),
    }, begin


def round_of(step: Any, begin: Callable[[], Any], batch: Any, steps: int) -> pairs.Round:
    """Return a round of updates that go on from where the last round ended."""
    state, fixed = begin()

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, fixed, batch)
        return state.trainable, metrics

    return pairs.rounds_of(call, steps)


def saved(step: Any, begin: Callable[[], Any], batch: Any, saves: int) -> dict[str, Any]:
    """Run without checkpoints and with one every `EVERY` updates; return the seconds of each."""
    from sftjax.train import fit, open_checkpoints

    steps, blocked, megabytes = EVERY * saves + EVERY // 2, [], 0.0

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "save" and event["step"] < steps:
            blocked.append(event["blocked"])

    def run(**options: Any) -> float:
        state, fixed = begin()
        tick = time.perf_counter()
        fit(step, state, fixed, lambda number: batch, steps, log_steps=EVERY, **options)
        return time.perf_counter() - tick

    plain = run()
    with tempfile.TemporaryDirectory() as folder:
        with open_checkpoints(folder) as checkpoints:
            kept = run(checkpoints=checkpoints, save_steps=EVERY, watch=watch)
        sizes = [file.stat().st_size for file in pathlib.Path(folder).rglob("*") if file.is_file()]
        megabytes = sum(sizes) / 2 / 1e6  # two checkpoints are kept
    return {
        "plain": plain, "with saves": kept, "blocked": blocked, "megabytes": megabytes,
        "interval": plain / steps * EVERY,
    }  # fmt: skip


def row_of(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the table of saves."""
    blocked = sorted(second for run in found for second in run["blocked"])
    interval = sum(run["interval"] for run in found) / len(found)
    middle = blocked[len(blocked) // 2]
    lost = sum(run["with saves"] for run in found) / sum(run["plain"] for run in found) - 1
    return {
        "what moves": name,
        "MB of a checkpoint": f"{found[0]['megabytes']:.0f}",
        f"{EVERY} updates, s": f"{interval:.2f}",
        "a save blocks, s (min..max)": f"{middle:.3f} ({blocked[0]:.3f}..{blocked[-1]:.3f})",
        "share of the interval": f"{middle / interval:.1%}",
        "the whole run takes longer by": f"{lost:.1%}",
    }


if __name__ == "__main__":
    main()
