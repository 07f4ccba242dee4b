"""What does a step made by sftjax cost over a loop written by hand?

    python benchmarks/step_overhead.py            # about 3 minutes on 2 cores

The same model, the same optax optimizer, the same batch (16 x 128 tokens): `make_step` and
`compile_step` beside a plain jitted `value_and_grad` and `apply_updates`, once for all weights,
once more with the gradient clipped, and for the head alone (the loop by hand splits the tree by
hand). A tiny model, where the fixed cost of a call shows, is last. `make_step` reports the
gradient's norm, the loop by hand only the loss.

Expect: a ratio of medians of at most 1.02 for the full step; about 1.00 for both.
"""

from collections.abc import Callable
from typing import Any

import pairs


def main() -> None:
    """Time, print and write."""
    options = pairs.parser(__doc__, turns=12, steps=3)
    options.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    options.add_argument("--length", type=int, default=128, help="tokens of a row (128)")
    args = options.parse_args()

    import jax
    import minilm

    watch = pairs.Watch()
    full, tiny = minilm.model_of(), minilm.model_of(**TINY)
    batch = jax.device_put(minilm.batch_of(args.rows, args.length))
    small = jax.device_put(minilm.batch_of(2, 16, TINY["vocab_size"]))
    jobs = {
        "full": (full, "all", None, batch, args.steps),
        "full, clipped": (full, "all", 1.0, batch, args.steps),
        "head only": (full, "head", None, batch, args.steps),
        "tiny, full": (tiny, "all", None, small, 200),
    }
    rows, facts = [], {}
    for name, (model, rule, clip, tokens, steps) in jobs.items():
        params, tx = model.init(jax.random.key(0)), optimizer(clip)
        timings = pairs.alternate(
            {
                "sftjax": pairs.rounds_of(ours(model, params, rule, tx, tokens), steps),
                "by hand": pairs.rounds_of(by_hand(model, params, rule, tx, tokens), steps),
            },
            args.turns,
            tell=print,
        )
        found = pairs.ratio(timings["sftjax"], timings["by hand"])
        medians = {who: pairs.median(times).wall * 1e3 for who, times in timings.items()}
        rows.append(
            {
                "step": name,
                "sftjax, ms": f"{medians['sftjax']:.2f}",
                "by hand, ms": f"{medians['by hand']:.2f}",
                "ratio (min..max of a turn)": found,
                "CPU time": f"{found.cpu:.3f}",
            }
        )
        facts[name] = {"ratio": found._asdict(), "seconds": timings}
    pairs.publish("step_overhead", watch.facts(), [rows], {"results": facts}, args.output)


TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}


def optimizer(clip: float | None) -> Any:
    """Return the optimizer that both sides use."""
    import minilm
    import optax

    adamw = optax.adamw(minilm.LEARNING_RATE)
    return adamw if clip is None else optax.chain(optax.clip_by_global_norm(clip), adamw)


def ours(model: Any, params: Any, rule: str, tx: Any, batch: Any) -> Callable[[], Any]:
    """Return a call that makes one update, the way the README does it."""
    import jax

    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, init, make_step

    state, fixed = init(params, select(params, rule).trainable, tx, jax.random.key(0))
    step = compile_step(make_step(classification(model.apply), tx))

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, fixed, batch)
        return state, metrics

    return call


def by_hand(model: Any, params: Any, rule: str, tx: Any, batch: Any) -> Callable[[], Any]:
    """Return a call that makes one update, the way one would write it for this model alone."""
    import functools

    import jax
    import jax.numpy as jnp
    import optax

    moving, held = params, {}
    if rule == "head":
        trunk = dict(params["bert"])
        moving = {"pooler": trunk.pop("pooler"), "classifier": params["classifier"]}
        held = {"bert": trunk}
    moving = jax.tree.map(jnp.copy, moving)
    opt_state = tx.init(moving)

    def join(moving: Any, held: Any) -> Any:
        if rule != "head":
            return moving
        return {
            "bert": {**held["bert"], "pooler": moving["pooler"]},
            "classifier": moving["classifier"],
        }

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(moving: Any, opt_state: Any, held: Any, batch: Any) -> Any:
        def loss_of(moving: Any) -> Any:
            logits = model.apply(join(moving, held), batch)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
            return each.mean()

        loss, grads = jax.value_and_grad(loss_of)(moving)
        updates, opt_state = tx.update(grads, opt_state, moving)
        return optax.apply_updates(moving, updates), opt_state, loss

    def call() -> Any:
        nonlocal moving, opt_state
        moving, opt_state, loss = step(moving, opt_state, held, batch)
        return moving, opt_state, loss

    return call


if __name__ == "__main__":
    main()
