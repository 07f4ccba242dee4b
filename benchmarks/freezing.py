"""What does it cost to train a part of a model, by partition and by the idioms of optax?

    python benchmarks/freezing.py            # about 5 minutes on 2 cores

MiniLM-L6, 16 x 128 tokens, AdamW; the head alone, then the last two blocks and the head. All but
one variant clip the gradient's global norm and report it, as training loops do:

- sftjax: gradients of the trainable leaves only;
- masked: `chain(clip, masked(adamw), masked(set_to_zero))`;
- multi_transform: `chain(clip, multi_transform({adamw, set_to_zero}))`;
- multi_transform, no clip: the clip inside, and no norm reported, so that nothing reads the frozen
  gradients and the compiler can leave them out;
- stop_gradient: on the frozen leaves, and plain `adamw` of all of them.

Expect: sftjax needs the fewest GFLOP of all (multi_transform without a clip the same), at most half
of what masked and multi_transform need for the head, and the least memory. "frozen moved" is the
greatest change of a frozen weight at the end: 0 for all but stop_gradient, where decay moves it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pairs

MODES = {"head only": "head", "last 2 blocks": "last:2"}
MAX_NORM = 1.0


class Variant(NamedTuple):
    """A compiled step with its arguments, and what the compiler says of it."""

    call: Callable[[], Any]
    gflop: float
    temporary: int
    """Bytes of intermediate values."""
    arguments: int
    """Bytes of params, optimizer state and batch."""
    optimizer: int
    """Bytes of optimizer state."""
    params: Callable[[], Any]
    """The whole tree as it now is."""


def main() -> None:
    """Compile, time, print and write."""
    options = pairs.parser(__doc__, turns=8, steps=3)
    options.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    options.add_argument("--length", type=int, default=128, help="tokens of a row (128)")
    args = options.parse_args()

    import jax
    import minilm

    watch = pairs.Watch()
    model = minilm.model_of()
    params = model.init(jax.random.key(0))
    batch = jax.device_put(minilm.batch_of(args.rows, args.length))
    tables, facts = [], {}
    for mode, rule in MODES.items():
        variants = variants_of(model, params, rule, batch)
        timings = pairs.alternate(
            {name: pairs.rounds_of(one.call, args.steps) for name, one in variants.items()},
            args.turns,
            tell=print,
        )
        rows, facts[mode] = [], {}
        for name, one in variants.items():
            found = pairs.ratio(timings[name], timings["sftjax"])
            drift = moved(params, one.params(), rule)
            rows.append(
                {
                    mode: name,
                    "GFLOP": f"{one.gflop:.1f}",
                    "temporary, MiB": f"{one.temporary / 2**20:.0f}",
                    "arguments, MiB": f"{one.arguments / 2**20:.0f}",
                    "optimizer, MiB": f"{one.optimizer / 2**20:.1f}",
                    "ms": f"{pairs.median(timings[name]).wall * 1e3:.0f}",
                    "time of sftjax's (min..max of a turn)": found,
                    "frozen moved": f"{drift:.1e}" if drift else "0",
                }
            )
            facts[mode][name] = {
                "gflop": one.gflop,
                "temporary_bytes": one.temporary,
                "argument_bytes": one.arguments,
                "optimizer_bytes": one.optimizer,
                "frozen_moved": drift,
                "time_ratio_to_sftjax": found._asdict(),
                "seconds": timings[name],
            }
        tables.append(rows)
    pairs.publish("freezing", watch.facts(), tables, {"results": facts}, args.output)


def variants_of(model: Any, params: Any, rule: str, batch: Any) -> dict[str, Variant]:
    """Return every variant of a step in which what `rule` names moves."""
    import jax
    import optax
    from minilm import LEARNING_RATE

    from sftjax.select import select

    mask = select(params, rule).trainable
    frozen = jax.tree.map(lambda moves: not moves, mask)
    groups = jax.tree.map(lambda moves: "moves" if moves else "stays", mask)
    clip = optax.clip_by_global_norm(MAX_NORM)
    adamw = optax.adamw(LEARNING_RATE, weight_decay=0.01)
    still = optax.set_to_zero()
    masked = optax.chain(clip, optax.masked(adamw, mask), optax.masked(still, frozen))
    outside = optax.chain(clip, optax.multi_transform({"moves": adamw, "stays": still}, groups))
    inside = optax.multi_transform({"moves": optax.chain(clip, adamw), "stays": still}, groups)
    return {
        "sftjax": partitioned(model, params, mask, optax.chain(clip, adamw), batch),
        "masked": whole(model, params, masked, batch),
        "multi_transform": whole(model, params, outside, batch),
        "multi_transform, no clip": whole(model, params, inside, batch, norm=False),
        "stop_gradient": whole(model, params, optax.chain(clip, adamw), batch, held=frozen),
    }


def partitioned(model: Any, params: Any, mask: Any, tx: Any, batch: Any) -> Variant:
    """Return our step."""
    import jax

    from sftjax.core import combine
    from sftjax.objectives import classification
    from sftjax.train import compile_step, init, make_step

    state, fixed = init(params, mask, tx, jax.random.key(0))
    step: Any = compile_step(make_step(classification(model.apply), tx))
    compiled = step.lower(state, fixed, batch).compile()

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, fixed, batch)
        return state, metrics

    return _variant(call, compiled, state.opt_state, lambda: combine(state.trainable, fixed.frozen))


def whole(
    model: Any, params: Any, tx: Any, batch: Any, *, norm: bool = True, held: Any = None
) -> Variant:
    """Return a step that differentiates the whole tree, `held` leaves through stop_gradient."""
    import jax
    import jax.numpy as jnp
    import optax

    params = jax.tree.map(jnp.copy, params)
    opt_state = tx.init(params)

    def update(params: Any, opt_state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            if held is not None:
                params = jax.tree.map(
                    lambda stays, leaf: jax.lax.stop_gradient(leaf) if stays else leaf, held, params
                )
            logits = model.apply(params, batch)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
            return each.mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        metrics = {"loss": loss, **({"grad_norm": optax.tree.norm(grads)} if norm else {})}
        return optax.apply_updates(params, updates), opt_state, metrics

    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(params, opt_state, batch).compile()

    def call() -> Any:
        nonlocal params, opt_state
        params, opt_state, metrics = compiled(params, opt_state, batch)
        return params, opt_state, metrics

    return _variant(call, compiled, opt_state, lambda: params)


def moved(before: Any, after: Any, rule: str) -> float:
    """Return the greatest change of a weight that `rule` leaves frozen."""
    import jax
    import jax.numpy as jnp

    from sftjax.core import partition
    from sftjax.select import select

    mask = select(before, rule).trainable
    changes = jax.tree.map(
        lambda one, other: float(jnp.max(jnp.abs(one - other))),
        partition(before, mask)[1],
        partition(after, mask)[1],
    )
    return max(jax.tree.leaves(changes))


def _variant(call: Any, compiled: Any, opt_state: Any, params: Callable[[], Any]) -> Variant:
    from sftjax.core import nbytes

    memory = compiled.memory_analysis()
    return Variant(
        call,
        compiled.cost_analysis()["flops"] / 1e9,
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        nbytes(opt_state),
        params,
    )


if __name__ == "__main__":
    main()
