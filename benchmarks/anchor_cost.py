"""What does an anchor cost in a step?

    python benchmarks/anchor_cost.py            # about 3 minutes on 2 cores

MiniLM-L6, 16 x 128 tokens, `anchor.adamw` with clipping, with an L2-SP dose and without; every
weight, then the last two blocks and the head.

Expect: at most 3 % more time, and one more copy of the anchored weights, of no frozen one.
"""

from typing import Any

import pairs

MODES = {"full": "all", "last 2 blocks": "last:2"}
NEW = ("classifier/kernel", "classifier/bias")


def main() -> None:
    """Compile, time in turns, print and write."""
    options = pairs.parser(__doc__, turns=15, steps=1)
    options.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    options.add_argument("--length", type=int, default=128, help="tokens of a row (128)")
    args = options.parse_args()

    import jax
    import minilm

    from sftjax.train import keep_freed_memory

    keep_freed_memory()
    watch = pairs.Watch()
    model = minilm.model_of()
    params = model.init(jax.random.key(0))
    batch = jax.device_put(minilm.batch_of(args.rows, args.length))
    table, facts = [], {}
    for mode, rule in MODES.items():
        variants = {name: variant(model, params, rule, batch, name) for name in ("L2-SP", "none")}
        timings = pairs.alternate(
            {name: pairs.rounds_of(call, args.steps) for name, (call, _) in variants.items()},
            args.turns,
            tell=print,
        )
        found = pairs.ratio(timings["L2-SP"], timings["none"])
        held, free = (facts_of for _, facts_of in variants.values())
        table.append(
            {
                "what moves": mode,
                "L2-SP, ms": f"{pairs.median(timings['L2-SP']).wall * 1e3:.0f}",
                "none, ms": f"{pairs.median(timings['none']).wall * 1e3:.0f}",
                "ratio (min..max of a turn)": found,
                "CPU time": f"{found.cpu:.3f}",
                "GFLOP": f"{held['gflop']:.2f} / {free['gflop']:.2f}",
                "arguments, MiB": f"{held['arguments']:.1f} / {free['arguments']:.1f}",
                "anchored, MiB": f"{held['anchor']:.1f}",
                "temporary, MiB": f"{held['temporary']:.0f} / {free['temporary']:.0f}",
            }
        )
        facts[mode] = {"ratio": found._asdict(), "L2-SP": held, "none": free, "seconds": timings}
    pairs.publish("anchor_cost", watch.facts(), [table], facts, args.output)


def variant(model: Any, params: Any, rule: str, batch: Any, name: str) -> Any:
    """Return a call that makes an update and gives the loss, and what the compiler says of it."""
    import jax
    import minilm

    from sftjax.anchor import adamw, anchor_of
    from sftjax.core import nbytes
    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, init, make_step

    chosen = select(params, rule, new=NEW)
    held = name == "L2-SP"
    tx = adamw(minilm.LEARNING_RATE, dose=1.0 if held else None, num_steps=1000)
    anchor = anchor_of(params, chosen.trainable, new=NEW) if held else None
    state, fixed = init(params, chosen.trainable, tx, jax.random.key(0), anchor=anchor)
    step: Any = compile_step(make_step(classification(model.apply), tx))
    compiled = step.lower(state, fixed, batch).compile()

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, fixed, batch)
        return metrics["loss"]

    memory = compiled.memory_analysis()
    return call, {
        "gflop": compiled.cost_analysis()["flops"] / 1e9,
        "arguments": memory.argument_size_in_bytes / 2**20,
        "temporary": memory.temp_size_in_bytes / 2**20,
        "anchor": 0.0 if anchor is None else nbytes(anchor) / 2**20,
    }


if __name__ == "__main__":
    main()
