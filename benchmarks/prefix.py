"""What does it save to compute the frozen lower blocks once, and not in every epoch?

    python benchmarks/prefix.py            # about 2 minutes on 2 cores

MiniLM-L6, 8 batches of 32 x 64 tokens, AdamW with clipping; the head alone, then the last block and
the head. Beside the plain step stands the one whose batches hold what the frozen blocks gave, from
the second epoch on. The script stops if the two do not train the same losses and weights.

Expect: at least 5 times the steps per second for the head, 2.5 times for the last block.
"""

import time
from typing import Any

import pairs

MODES = {"head only": "head", "last block": "last:1"}
BATCHES = 8


def main() -> None:
    """Keep the prefix, time both steps in turns, print and write."""
    options = pairs.parser(__doc__, turns=8, steps=8)
    options.add_argument("--rows", type=int, default=32, help="rows of a batch (32)")
    options.add_argument("--length", type=int, default=64, help="tokens of a row (64)")
    args = options.parse_args()

    import jax
    import minilm

    from sftjax.train import keep_freed_memory

    keep_freed_memory()
    watch = pairs.Watch()
    model = minilm.model_of()
    params = model.init(jax.random.key(0))
    data = batches_of(args.rows, args.length)
    table, facts = [], {}
    for mode, rule in MODES.items():
        calls, weights, seconds, mebibytes = calls_of(model, params, rule, data)
        losses = {name: [float(call()) for _ in range(BATCHES)] for name, call in calls.items()}
        apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
        moved = farthest(weights["plain"](), weights["kept"]())
        if max(apart, moved) > 1e-5:
            raise RuntimeError(f"{mode}: the two steps do not train alike, {losses}, {moved}")
        timings = pairs.alternate(
            {name: pairs.rounds_of(call, args.steps) for name, call in calls.items()},
            args.turns,
            tell=print,
        )
        found = pairs.ratio(timings["plain"], timings["kept"])
        table.append(
            {
                "what moves": mode,
                "plain, ms": f"{pairs.median(timings['plain']).wall * 1e3:.1f}",
                "prefix kept, ms": f"{pairs.median(timings['kept']).wall * 1e3:.1f}",
                "steps per second, times (min..max of a turn)": found,
                "CPU time": f"{found.cpu:.2f}",
                "losses differ": f"{apart:.1e}",
                "weights differ": f"{moved:.1e}",
                "kept, MiB": f"{mebibytes:.1f}",
                "keeping it, s": f"{seconds:.1f}",
            }
        )
        facts[mode] = {"ratio": found._asdict(), "losses": losses, "seconds": timings}
    pairs.publish("prefix", watch.facts(), [table], facts, args.output)


def batches_of(rows: int, length: int) -> list[dict[str, Any]]:
    """Return the data set: full rows of random tokens, with row numbers."""
    import minilm
    import numpy as np

    whole = minilm.batch_of(rows * BATCHES, length)
    return [
        {name: column[number * rows : (number + 1) * rows] for name, column in whole.items()}
        | {
            "index": np.arange(number * rows, (number + 1) * rows, dtype=np.int32),
            "valid": np.ones(rows, np.float32),
        }
        for number in range(BATCHES)
    ]


def calls_of(model: Any, params: Any, rule: str, data: list[dict[str, Any]]) -> Any:
    """Return for each way a call that makes an update and gives the loss, and one that gives the
    weights that move; and what keeping cost."""
    import jax
    import minilm

    from sftjax.anchor import adamw
    from sftjax.models import split
    from sftjax.objectives import classification
    from sftjax.select import frozen_below, select
    from sftjax.train import compile_step, init, keep_prefix, make_step, with_prefix

    trainable = select(params, rule).trainable
    cut = frozen_below(trainable)
    lower, upper = split(model, cut)
    # With every block below, what is kept is a vector a row; else one a token.
    mask = None if cut == model.architecture.num_layers else "attention_mask"
    begin = time.perf_counter()
    kept = keep_prefix(lower, params, data, sum(len(b["index"]) for b in data), mask=mask)
    seconds = time.perf_counter() - begin
    tx = adamw(minilm.LEARNING_RATE)

    weights: dict[str, Any] = {}

    def caller(name: str, apply: Any, batch_at: Any) -> Any:
        state, fixed = init(params, trainable, tx, jax.random.key(0))
        step = compile_step(make_step(classification(apply), tx))
        number = 0

        def call() -> Any:
            nonlocal state, number
            state, metrics = step(state, fixed, batch_at(number))
            number += 1
            return metrics["loss"]

        weights[name] = lambda: jax.device_get(state.trainable)
        return call

    def plain_at(number: int) -> dict[str, Any]:
        return data[number % BATCHES]

    calls = {
        "plain": caller("plain", model.apply, plain_at),
        "kept": caller("kept", upper, with_prefix(plain_at, kept)),
    }
    return calls, weights, seconds, kept.values.nbytes / 2**20


def farthest(one: Any, other: Any) -> float:
    """Return the largest difference between two trees of weights."""
    import jax
    import numpy as np

    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, other)))


if __name__ == "__main__":
    main()
