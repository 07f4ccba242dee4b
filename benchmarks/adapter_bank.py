"""What do 8 LoRAs cost, trained in one step and served in one batch?

    python benchmarks/adapter_bank.py            # about 10 minutes on 2 cores

MiniLM-L6 with LoRA of rank 8 on queries and values and a head for two classes. Training: 8
adapters (and heads) at 8 rates on one batch of 16 x 64, one vmapped step against 8 single steps;
the script stops if an adapter of the bank does not end at its twin's weights. What lies below the
lowest adapted block is computed once for all 8, what lies above it 8 times: the compiler's FLOPs
say what there is to gain. Serving: 8 rows, each with its own adapter, in one batch against 8
batches of one row.

Expect: at most 0.5 of the separate runs' time with adapters in the upper third of the blocks; no
gain in training with adapters in all of them.
"""

from typing import Any

import pairs
import sweep

RANK, TARGETS = 8, ["query", "value"]
HEAD = ("classifier/kernel", "classifier/bias")


def main() -> None:
    """Compile, compare, time in turns, print and write."""
    options = pairs.parser(__doc__, turns=6, steps=1)
    options.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    options.add_argument("--length", type=int, default=64, help="tokens of a row (64)")
    args = options.parse_args()

    import jax
    import minilm

    from sftjax.train import keep_freed_memory

    keep_freed_memory()
    watch = pairs.Watch()
    model = minilm.model_of()
    params = model.init(jax.random.key(0))
    batch = jax.device_put(minilm.batch_of(args.rows, args.length))
    trained, facts = [], {}
    for where, layers in (
        ("the last block", [5]),
        ("the last two blocks", [4, 5]),
        ("all six blocks", None),
    ):
        calls, apart, gflop = training(model, params, layers, batch)
        if max(apart["weights"], apart["logits"]) > 1e-5:
            raise RuntimeError(f"{where}: an adapter of the bank ends {apart} from its twin")
        found, timings = timed(calls, args)
        trained.append(
            {
                "8 LoRAs trained in": where,
                "bank, ms": f"{pairs.median(timings['sweep']).wall * 1e3:.0f}",
                "separate, ms": f"{pairs.median(timings['separate']).wall * 1e3:.0f}",
                "ratio (min..max of a turn)": found,
                "CPU time": f"{found.cpu:.3f}",
                "FLOPs": f"{gflop['sweep'] / gflop['separate']:.3f}",
                "logits differ": f"{apart['logits']:.1e}",
                "weights differ": f"{apart['weights']:.1e}",
            }
        )
        facts[where] = {
            "ratio": found._asdict(), "gflop": gflop, "apart": apart, "seconds": timings,
        }  # fmt: skip
    calls, apart = serving(model, params, args.length)
    found, timings = timed(calls, args)
    served = [
        {
            "8 rows served": "each by its own adapter",
            "bank, ms": f"{pairs.median(timings['sweep']).wall * 1e3:.1f}",
            "separate, ms": f"{pairs.median(timings['separate']).wall * 1e3:.1f}",
            "ratio (min..max of a turn)": found,
            "CPU time": f"{found.cpu:.3f}",
            "logits differ": f"{apart:.1e}",
        }
    ]
    facts["served"] = {"ratio": found._asdict(), "seconds": timings}
    pairs.publish("adapter_bank", watch.facts(), [trained, served], facts, args.output)


def timed(calls: Any, args: Any) -> Any:
    """Return the ratio of the two calls and their timings."""
    rounds = {name: pairs.rounds_of(call, args.steps) for name, call in calls.items()}
    timings = pairs.alternate(rounds, args.turns, tell=print)
    return pairs.ratio(timings["sweep"], timings["separate"]), timings


def plan_of(params: Any, layers: Any) -> Any:
    """Return where the adapters sit."""
    from sftjax.adapters import lora, plan_adapter

    return plan_adapter(
        params, lora(r=RANK, lora_alpha=2 * RANK), target_modules=TARGETS,
        layers_to_transform=layers, new=HEAD,
    )  # fmt: skip


def training(model: Any, params: Any, layers: Any, batch: Any) -> Any:
    """Return the calls of the bank's step and of 8 single steps."""
    import jax

    from sftjax.adapters import side_branch, with_adapter
    from sftjax.objectives import classification
    from sftjax.select import select

    plan = plan_of(params, layers)

    def start(run: int) -> Any:
        joined = with_adapter(params, plan, jax.random.key(run))
        rules = [("adapter", 1.0), ("base/classifier", 1.0)]
        return joined, select(joined, rules).trainable

    apply = side_branch(model.apply, plan)
    return sweep.calls_of(start, classification(apply), apply, batch)


def serving(model: Any, params: Any, length: int) -> Any:
    """Return the calls of one batch of 8 rows and of 8 batches of one, and their distance."""
    import jax
    import jax.numpy as jnp
    import minilm

    from sftjax.adapters import adapter_bank, attach, side_branch, stack_adapters

    plan = plan_of(params, None)
    adapters = []
    for number in range(sweep.RUNS):
        adapter, _ = attach(params, plan, jax.random.key(number))
        adapters.append(jax.tree.map(lambda leaf: leaf + 0.02, adapter))
    batch = jax.device_put(minilm.batch_of(sweep.RUNS, length))
    rows = [jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], batch) for n in range(sweep.RUNS)]
    bank = {"adapter": stack_adapters(adapters), "base": params}
    together: Any = jax.jit(adapter_bank(model.apply, plan))
    alone: Any = jax.jit(side_branch(model.apply, plan))
    named = {**batch, "adapter_ids": jnp.arange(sweep.RUNS)}

    def call_bank() -> Any:
        return together(bank, named)

    def call_separate() -> Any:
        return [
            alone({"adapter": adapter, "base": params}, row)
            for adapter, row in zip(adapters, rows, strict=True)
        ]

    apart = float(jnp.abs(call_bank() - jnp.concatenate(call_separate())).max())
    return {"sweep": call_bank, "separate": call_separate}, apart


if __name__ == "__main__":
    main()
