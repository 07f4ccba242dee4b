"""How long does a full BERT step take beside the last Flax BERT of transformers?

    python benchmarks/hf_flax.py --peer-python PYTHON            # about 6 minutes on 2 cores

PYTHON has transformers 4.57.6, the last release with Flax models (benchmarks/README.md says how to
make that environment). MiniLM-L6 (22.7 M), 16 x 128 tokens, AdamW, every weight moves, dropout off;
both sides start from the same weights, and the run stops if their first losses differ. Each side
runs in a process of its own, one as it is and one with the allocator advice in its environment, and
the four take turns.

Expect: sftjax takes at most 0.80 of HF Flax's time.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import pairs
import peer

ADVICE = "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_ARENA_MAX=1"


def main() -> None:
    """Start the four processes, time them in turns, print and write."""
    options = pairs.parser(__doc__, turns=12, steps=3)
    options.add_argument("--peer-python", help="a Python that has transformers 4.57.6")
    options.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    options.add_argument("--length", type=int, default=128, help="tokens of a row (128)")
    options.add_argument("--dropout", type=float, default=0.0, help="on both sides (0)")
    options.add_argument(
        "--advice", default=ADVICE, help=f"environment of the advised processes ({ADVICE})"
    )
    options.add_argument("--serve", choices=("sftjax", "hf"), help="(used inside)")
    options.add_argument("--weights", help="(used inside)")
    args = options.parse_args()
    if args.serve:
        prepare = {"sftjax": ours, "hf": theirs}[args.serve]
        peer.serve(lambda: served(prepare, args))
        return
    if not args.peer_python:
        options.error("--peer-python is needed: a Python that has transformers 4.57.6")

    watch = pairs.Watch()
    advice = dict(word.split("=", 1) for word in shlex.split(args.advice))
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "weights.npz")
        write_weights(weights)
        words = [f"--{name}={getattr(args, name)}" for name in ("rows", "length", "dropout")]
        peers = {
            f"{title}{', advised' if environment else ''}": peer.Peer(
                [python, __file__, "--serve", side, f"--weights={weights}", *words], environment
            )
            for environment in ({}, advice)
            for side, title, python in (
                ("sftjax", "sftjax", sys.executable),
                ("hf", "HF Flax", args.peer_python),
            )
        }
        rounds = {name: asking(one, args.steps) for name, one in peers.items()}
        timings = pairs.alternate(rounds, args.turns, tell=print)
        for one in peers.values():
            one.close()
    facts = {name: one.facts for name, one in peers.items()}
    if not args.dropout:
        agree({name: found["loss"] for name, found in facts.items()})
    comparisons = (
        ("sftjax", "HF Flax"),
        ("sftjax, advised", "HF Flax, advised"),
        ("sftjax, advised", "HF Flax"),
    )
    ratios = {f"{one} / {other}": pairs.ratio(timings[one], timings[other])
              for one, other in comparisons}  # fmt: skip
    steps = [
        {
            "step": name,
            "ms": f"{pairs.median(times).wall * 1e3:.0f}",
            "CPU ms": f"{pairs.median(times).cpu * 1e3:.0f}",
            "GFLOP": f"{facts[name]['gflop']:.1f}",
            "temporary, MiB": f"{facts[name]['temporary_bytes'] / 2**20:.0f}",
        }
        for name, times in timings.items()
    ]
    comparison = [
        {"comparison": name, "ratio (min..max of a turn)": found, "CPU time": f"{found.cpu:.3f}"}
        for name, found in ratios.items()
    ]
    results = {
        "advice": args.advice,
        "ratios": {name: found._asdict() for name, found in ratios.items()},
        "results": {name: {**facts[name], "seconds": times} for name, times in timings.items()},
    }
    pairs.publish("hf_flax", watch.facts(), [steps, comparison], results, args.output)


def asking(one: peer.Peer, steps: int) -> pairs.Round:
    """Return a round that the peer runs and times."""
    return lambda: pairs.Timing(*one.ask(steps))


def agree(losses: dict[str, float]) -> None:
    """Stop if the sides do not compute the same first loss from the same weights and batch."""
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise RuntimeError(f"the sides do not do the same work; their first losses are {losses}")


def write_weights(path: str) -> None:
    """Write fresh weights by path; the names of the leaves are the same on both sides."""
    import jax
    import minilm
    import numpy as np

    from sftjax.core import flatten

    np.savez(path, **flatten(minilm.model_of().init(jax.random.key(0))))


def read_weights(path: str) -> Any:
    """Return the nested dict of weights; in plain Python, for both environments."""
    import jax
    import numpy as np

    tree: dict[str, Any] = {}
    with np.load(path) as content:
        for name in content.files:
            *parents, leaf = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = jax.device_put(content[name])
    return tree


def served(prepare: Callable[[Any, Any, Any], Any], args: Any) -> Any:
    """Compile one side's step; answer a number of steps with the seconds each took."""
    import jax
    import minilm

    batch = jax.device_put(minilm.batch_of(args.rows, args.length))
    call, compiled = prepare(read_weights(args.weights), batch, args.dropout)
    facts = {
        "loss": float(call()),
        "gflop": compiled.cost_analysis()["flops"] / 1e9,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "versions": pairs.versions(),
    }
    return facts, lambda steps: pairs.rounds_of(call, steps)()


def ours(params: Any, batch: Any, dropout: float) -> tuple[Callable[[], Any], Any]:
    """Return a call that makes one update and gives the loss, and the compiled step."""
    import jax
    import minilm
    import optax

    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, init, make_step

    model = minilm.model_of(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    tx = optax.adamw(minilm.LEARNING_RATE)
    state, fixed = init(params, select(params, "all").trainable, tx, jax.random.key(0))
    step: Any = compile_step(make_step(classification(model.apply, dropout=dropout > 0), tx))
    compiled = step.lower(state, fixed, batch).compile()

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, fixed, batch)
        return metrics["loss"]

    return call, compiled


def theirs(params: Any, batch: Any, dropout: float) -> tuple[Callable[[], Any], Any]:
    """Return the same of FlaxBertForSequenceClassification in the loop of its own examples."""
    import jax
    import minilm
    import optax
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.BertConfig(
        **{
            **minilm.CONFIG,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "num_labels": 2,
        }
    )
    model = transformers.FlaxBertForSequenceClassification(config, _do_init=False)
    tx = optax.adamw(minilm.LEARNING_RATE)
    opt_state, key = tx.init(params), jax.random.key(0)
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}

    def update(params: Any, opt_state: Any, inputs: Any, labels: Any, key: Any) -> Any:
        key, dropout_key = jax.random.split(key)

        def loss_of(params: Any) -> Any:
            rng = dropout_key if dropout else None
            out = model(**inputs, params=params, dropout_rng=rng, train=dropout > 0)
            return optax.softmax_cross_entropy_with_integer_labels(out.logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, key

    jitted = jax.jit(update, donate_argnums=(0, 1))
    compiled = jitted.lower(params, opt_state, inputs, labels, key).compile()

    def call() -> Any:
        nonlocal params, opt_state, key
        params, opt_state, loss, key = compiled(params, opt_state, inputs, labels, key)
        return loss

    return call, compiled


if __name__ == "__main__":
    main()
