"""What do 8 runs in one compiled step cost, beside 8 runs?

    python benchmarks/sweep.py            # about 3 minutes on 2 cores

MiniLM-L6, 16 x 64 tokens, AdamW with clipping; the last block and the head move, 8 runs differ in
learning rate and in the head they start from. Beside the sweep stand the 8 steps one after the
other, each compiled for itself; once with the frozen blocks in the step and once with what they
give kept beforehand. The script stops if a run of the sweep does not end at its twin's weights and
logits. The biases of the attention keys stand in a column of their own: softmax does not read them,
their gradient is nothing but rounding, and Adam makes steps of full size of that.

Expect: the sweep takes at most 0.4 of the separate runs' time.
"""

from typing import Any

import pairs

RUNS = 8


def main() -> None:
    """Compile, compare, time in turns, print and write."""
    options = pairs.parser(__doc__, turns=6, steps=1)
    options.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    options.add_argument("--length", type=int, default=64, help="tokens of a row (64)")
    args = options.parse_args()

    import jax
    import minilm

    from sftjax.models import split
    from sftjax.objectives import classification
    from sftjax.select import frozen_below, select
    from sftjax.train import keep_freed_memory

    keep_freed_memory()
    watch = pairs.Watch()
    model = minilm.model_of()
    params = model.init(jax.random.key(0))
    trainable = select(params, "last:1").trainable
    lower, upper = split(model, frozen_below(trainable))
    batch = jax.device_put(minilm.batch_of(args.rows, args.length))
    table, facts = [], {}
    for mode, apply, given in (
        ("frozen blocks in the step", model.apply, batch),
        ("frozen blocks kept", upper, {**batch, "hidden": jax.jit(lower)(params, batch)}),
    ):
        objective = classification(apply)
        calls, apart, gflop = calls_of(starts(model, params, trainable), objective, apply, given)
        if max(apart["weights"], apart["logits"]) > 1e-5:
            raise RuntimeError(f"{mode}: a run of the sweep ends {apart} from its twin")
        timings = pairs.alternate(
            {name: pairs.rounds_of(call, args.steps) for name, call in calls.items()},
            args.turns,
            tell=print,
        )
        found = pairs.ratio(timings["sweep"], timings["separate"])
        table.append(
            {
                "8 runs": mode,
                "sweep, ms": f"{pairs.median(timings['sweep']).wall * 1e3:.0f}",
                "separate, ms": f"{pairs.median(timings['separate']).wall * 1e3:.0f}",
                "ratio (min..max of a turn)": found,
                "CPU time": f"{found.cpu:.3f}",
                "GFLOP": f"{gflop['sweep']:.1f} / {gflop['separate']:.1f}",
                "logits differ": f"{apart['logits']:.1e}",
                "weights differ": f"{apart['weights']:.1e}",
                "key biases": f"{apart['key biases']:.1e}",
            }
        )
        facts[mode] = {"ratio": found._asdict(), "gflop": gflop, "apart": apart, "seconds": timings}
    pairs.publish("sweep", watch.facts(), [table], facts, args.output)


def starts(model: Any, params: Any, trainable: Any) -> Any:
    """Return `run -> (params, trainable)`: each run has a fresh head of its own."""
    import jax

    from sftjax.core import map_with_path

    def start(run: int) -> Any:
        drawn = model.init(jax.random.key(run))
        fresh = map_with_path(
            lambda path, old, new: new if path.startswith("classifier") else old, params, drawn
        )
        return fresh, trainable

    return start


def calls_of(params_of: Any, objective: Any, apply: Any, batch: Any) -> Any:
    """Return a call of the sweep, one of the 8 steps, and their distance after 5 updates.

    Args:
      params_of: `run -> (params, trainable)`.
      objective: the same for all.
      apply: the model in it.
      batch: likewise.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sftjax.anchor import adamw
    from sftjax.core import combine
    from sftjax.train import (
        compile_step,
        compile_sweep_step,
        init,
        make_step,
        make_sweep_step,
        stack_states,
        take_run,
    )

    settings = {"learning_rate": jnp.linspace(1e-5, 8e-5, RUNS)}

    def tx_of(rate: Any) -> Any:
        return adamw(lambda step: rate)

    def start(run: int) -> Any:
        params, trainable = params_of(run)
        tx = tx_of(settings["learning_rate"][run])
        return init(params, trainable, tx, jax.random.key(run))

    fixed = start(0)[1]
    sweep: Any = compile_sweep_step(
        make_sweep_step(lambda setting: make_step(objective, tx_of(setting["learning_rate"])))
    )
    states = stack_states(start(run)[0] for run in range(RUNS))
    together = sweep.lower(states, fixed, settings, batch).compile()
    singles, alone = [], []
    for run in range(RUNS):
        step: Any = compile_step(make_step(objective, tx_of(float(settings["learning_rate"][run]))))
        state = start(run)[0]
        alone.append(step.lower(state, fixed, batch).compile())
        singles.append(state)

    def call_sweep() -> Any:
        nonlocal states
        states, metrics = together(states, fixed, settings, batch)
        return metrics["loss"]

    def call_separate() -> Any:
        losses = []
        for run, step in enumerate(alone):
            singles[run], metrics = step(singles[run], fixed, batch)
            losses.append(metrics["loss"])
        return losses

    for _ in range(5):
        jax.block_until_ready((call_sweep(), call_separate()))
    run_model = jax.jit(lambda moving: apply(combine(moving, fixed.frozen), batch, None))
    apart = {"weights": 0.0, "key biases": 0.0, "logits": 0.0}

    def far(what: str, one: Any, other: Any) -> None:
        apart[what] = max(apart[what], float(np.abs(np.asarray(one) - np.asarray(other)).max()))

    for run, single in enumerate(singles):
        twin = take_run(states.trainable, run)
        far("logits", run_model(twin), run_model(single.trainable))
        for path, one in flat(twin).items():
            what = "key biases" if path.endswith("key/bias") else "weights"
            far(what, one, flat(single.trainable)[path])
    gflop = {
        "sweep": together.cost_analysis()["flops"] / 1e9,
        "separate": sum(step.cost_analysis()["flops"] for step in alone) / 1e9,
    }
    return {"sweep": call_sweep, "separate": call_separate}, apart, gflop


def flat(tree: Any) -> dict[str, Any]:
    """Return the leaves by path."""
    from sftjax.core import flatten

    return flatten(tree)


if __name__ == "__main__":
    main()
