"""How long does a LoRA step of a decoder take beside Google's Tunix?

    python3.11 -m venv peer
    peer/bin/pip install "jax==0.10.2" flax==0.12.8 optax==0.2.8 google-tunix==0.1.7
    python benchmarks/tunix_lora.py --peer-python peer/bin/python   # 5 minutes

A random small Qwen3 (4 layers of 256), 4 x 256 tokens, float32, LoRA of rank 8 on queries and
values, AdamW. Theirs is what their command runs: `PeftTrainer.train` over batches in memory, the
model adapted by qwix, its loss and its masks; ours is the loop of the README. Both sides start
from the same weights and the same factors, and the run stops if the losses of the first three
updates differ. Once with 4,096 words and once with 32,768, for there the loss weighs more. Each
side runs in a process of its own, one as it is and one with the allocator advice in its
environment, and the four take turns.

Expect: three quarters of Tunix's time as both come, the same with the allocator advice on both
sides, and half of its memory; its loss writes each target as a row of ones and zeros.
"""

import itertools
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import hf_flax
import pairs
import peer

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,  # Tunix 0.1.7 turns heads by this whatever its config says
    "tie_word_embeddings": True,
    "initializer_range": 0.1,  # large enough that every part of the model is seen in the loss
}
RANK = 8
ADAPTED = ("q_proj", "v_proj")
LEARNING_RATE = 1e-3
FIRST = 3
"""Updates whose losses both sides must have in common."""


class Side(NamedTuple):
    """A side that is ready to train."""

    train: Callable[[int], None]
    """Makes so many updates and waits for them."""
    losses: Callable[[], list[float]]
    """Of the updates up to now; theirs lag one behind."""
    compiled: Callable[[], Any]
    """The compiled step, to be asked what it does."""
    moved: int
    """Numbers that move."""
    versions: dict[str, str]


def main() -> None:
    """Start the processes, time them in turns, print and write."""
    options = pairs.parser(__doc__, turns=8, steps=4)
    options.add_argument("--peer-python", help="a Python that has Tunix and jax")
    options.add_argument("--words", type=int, nargs="+", default=[4096, 32768], help="(4096 32768)")
    options.add_argument("--rows", type=int, default=4, help="rows of a batch (4)")
    options.add_argument("--length", type=int, default=256, help="tokens of a row (256)")
    options.add_argument("--serve", choices=("sftjax", "tunix"), help="(used inside)")
    options.add_argument("--weights", help="(used inside)")
    args = options.parse_args()
    if args.serve:
        prepare = {"sftjax": ours, "tunix": theirs}[args.serve]
        peer.serve(lambda: served(prepare, args))
        return
    if not args.peer_python:
        options.error("--peer-python is needed: a Python that has Tunix")
    watch = pairs.Watch()
    steps, comparisons, facts = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for words in args.words:
            weights = os.path.join(folder, f"{words}.npz")
            write_weights(weights, words)
            found, timings = measure(args, words, weights)
            facts[words] = {side: {**found[side], "seconds": timings[side]} for side in timings}
            steps += [row_of(words, side, found[side], timings[side]) for side in timings]
            for one, other in (
                ("sftjax", "Tunix"),
                ("sftjax, advised", "Tunix, advised"),
                ("sftjax, advised", "Tunix"),
            ):
                ratio = pairs.ratio(timings[one], timings[other])
                comparisons.append(
                    {
                        "words": f"{words:,}",
                        "comparison": f"{one} / {other}",
                        "ratio (min..max of a turn)": ratio,
                        "CPU time": f"{ratio.cpu:.3f}",
                    }
                )
    pairs.publish("tunix_lora", watch.facts(), [steps, comparisons], facts, args.output)


def measure(
    args: Any, words: int, weights: str
) -> tuple[dict[str, Any], dict[str, list[pairs.Timing]]]:
    """Return what each side says of itself, and its timings."""
    advice = dict(word.split("=", 1) for word in shlex.split(hf_flax.ADVICE))
    given = [f"--{name}={getattr(args, name)}" for name in ("rows", "length")]
    given += [f"--words={words}", f"--weights={weights}"]
    peers = {
        f"{title}{', advised' if environment else ''}": peer.Peer(
            [python, __file__, "--serve", side, *given],
            {**environment, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        for environment in ({}, advice)
        for side, title, python in (
            ("sftjax", "sftjax", sys.executable),
            ("tunix", "Tunix", args.peer_python),
        )
    }
    agree({name: one.facts["losses"] for name, one in peers.items()})
    rounds = {name: hf_flax.asking(one, args.steps) for name, one in peers.items()}
    timings = pairs.alternate(rounds, args.turns, tell=print)
    found = {
        # The peak first: to learn what a step does it is compiled once more.
        name: {**one.facts, "peak_bytes": one.ask("peak"), **one.ask("work")}
        for name, one in peers.items()
    }
    for one in peers.values():
        one.close()
    return found, timings


def row_of(
    words: int, side: str, found: dict[str, Any], timings: list[pairs.Timing]
) -> dict[str, Any]:
    """Return a row of the first table."""
    peak = found["peak_bytes"]
    return {
        "words": f"{words:,}",
        "step": side,
        "ms": f"{pairs.median(timings).wall * 1e3:.0f}",
        "CPU ms": f"{pairs.median(timings).cpu * 1e3:.0f}",
        "GFLOP": f"{found['gflop']:.1f}",
        "temporary, MiB": f"{found['temporary_bytes'] / 2**20:.0f}",
        "peak of the process, MiB": "" if peak is None else f"{peak / 2**20:.0f}",
        "compile and first step, s (CPU)": "{:.1f} ({:.1f})".format(*found["first"]),
        "numbers that move": f"{found['moved']:,}",
    }


def agree(losses: dict[str, list[float]]) -> None:
    """Stop if the sides do not compute the same losses from the same weights and batch."""
    for each in zip(*losses.values(), strict=True):
        if not max(each) - min(each) <= 1e-4:
            raise RuntimeError(
                f"the sides do not do the same work; their first losses are {losses}"
            )


def write_weights(path: str, words: int) -> None:
    """Write fresh weights and factors by path."""
    import jax
    import numpy as np

    from sftjax.adapters import with_adapter
    from sftjax.core import flatten

    model, plan = model_of(words)
    params = jax.jit(model.init)(jax.random.key(0))
    np.savez(path, **flatten(with_adapter(params, plan, jax.random.key(1))))


def model_of(words: int) -> tuple[Any, Any]:
    """Return our model and the plan of its adapter."""
    from sftjax.adapters import lora, plan_adapter
    from sftjax.models import Head, build

    model = build({**CONFIG, "vocab_size": words}, Head("causal-lm"))
    return model, plan_adapter(model.shapes(), lora(RANK), target_modules=[*ADAPTED])


def tokens_of(args: Any) -> Any:
    """Return full rows of random tokens, the same in every process; 0 is padding at Tunix's."""
    import numpy as np

    shape = (args.rows, args.length)
    return np.random.default_rng(0).integers(1, args.words[0], shape, dtype=np.int32)


def served(prepare: Callable[[Any], Side], args: Any) -> tuple[dict[str, Any], Any]:
    """Make the first updates; answer a number of steps with the seconds each took."""
    side = prepare(args)
    wall, cpu = time.perf_counter(), time.process_time()
    side.train(1)
    first = pairs.Timing(time.perf_counter() - wall, time.process_time() - cpu)
    side.train(FIRST)
    facts = {
        "losses": side.losses()[:FIRST],
        "first": first,
        "moved": side.moved,
        "versions": {**pairs.versions(), **side.versions},
    }

    def answer(request: Any) -> Any:
        if request == "peak":
            return peak_bytes()
        if request == "work":
            compiled = side.compiled()
            return {
                "gflop": compiled.cost_analysis()["flops"] / 1e9,
                "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            }
        wall, cpu = time.perf_counter(), time.process_time()
        side.train(request)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return pairs.Timing(wall / request, cpu / request)

    return facts, answer


def peak_bytes() -> int | None:
    """Return the most memory this process has held; None where there is no Linux to say so.

    `getrusage` would not do: a child begins with what its parent held.
    """
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def ours(args: Any) -> Side:
    """Return our loop."""
    import jax
    import numpy as np
    import optax

    from sftjax.adapters import side_branch
    from sftjax.core import count, unflatten
    from sftjax.objectives import next_token
    from sftjax.select import select
    from sftjax.train import compile_step, init, make_step

    with np.load(args.weights) as content:
        params = unflatten({name: jax.device_put(content[name]) for name in content.files})
    model, plan = model_of(args.words[0])
    tokens = tokens_of(args)
    ones = np.ones_like(tokens)
    batch = {"input_ids": tokens, "attention_mask": ones, "loss_weights": ones.astype(np.float32)}
    objective = next_token(
        side_branch(model.hidden, plan), lambda params: model.words(params["base"])
    )
    tx = optax.adamw(LEARNING_RATE)
    state, fixed = init(params, select(params, ["adapter"]).trainable, tx, jax.random.key(0))
    step: Any = compile_step(make_step(objective, tx))
    moved = count(state.trainable)
    losses: list[Any] = []

    def train(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, fixed, batch)
            losses.append(metrics["loss"])
        jax.block_until_ready(losses[-1])

    return Side(
        train,
        lambda: [float(loss) for loss in losses],
        lambda: step.lower(state, fixed, batch).compile(),
        moved,
        {},
    )


def theirs(args: Any) -> Side:
    """Return Tunix's trainer, set up as its command for PEFT does (tunix/cli/peft_main.py)."""
    import importlib.metadata

    import jax
    import numpy as np
    import optax
    import qwix
    from flax import nnx
    from tunix.models.qwen3 import model as qwen3
    from tunix.sft import metrics_logger, peft_trainer, utils

    config = qwen3.ModelConfig(
        num_layers=CONFIG["num_hidden_layers"],
        vocab_size=args.words[0],
        embed_dim=CONFIG["hidden_size"],
        hidden_dim=CONFIG["intermediate_size"],
        num_heads=CONFIG["num_attention_heads"],
        head_dim=CONFIG["head_dim"],
        num_kv_heads=CONFIG["num_key_value_heads"],
        rope_theta=CONFIG["rope_theta"],
        norm_eps=CONFIG["rms_norm_eps"],
        use_tied_embedding=True,
    )
    base = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
    provider = qwix.LoraProvider(
        module_path=f".*({'|'.join(ADAPTED)})", rank=RANK, alpha=float(RANK)
    )
    model = qwix.apply_lora_to_model(base, provider, rngs=nnx.Rngs(1), **base.get_model_input())
    moved = 0
    with np.load(args.weights) as content:
        unread = {*content.files}
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            name = our_name("/".join(map(str, path)))
            variable[...] = jax.device_put(content[name].reshape(variable.shape))
            moved += variable.size if isinstance(variable, nnx.LoRAParam) else 0
            unread.remove(name)
    if unread:
        raise RuntimeError(f"Tunix's model has no place for {sorted(unread)}")

    def inputs(x: Any) -> dict[str, Any]:
        real = x.input_tokens != 0
        return {
            "input_tokens": x.input_tokens,
            "input_mask": x.input_mask,
            "positions": utils.build_positions_from_mask(real),
            "attention_mask": utils.make_causal_attn_mask(real),
        }

    trainer = peft_trainer.PeftTrainer(
        model, optax.adamw(LEARNING_RATE), peft_trainer.TrainingConfig(eval_every_n_steps=10**9)
    ).with_gen_model_input_fn(inputs)
    trainer.is_managed_externally = True  # so that `train` goes on where it was, and closes nothing
    tokens = tokens_of(args)
    batch = peft_trainer.TrainingInput(input_tokens=tokens, input_mask=np.ones_like(tokens, bool))

    def compiled() -> Any:
        step = nnx.jit(trainer.create_train_step_fn(), donate_argnames=("optimizer",))
        return step.lower(trainer.model, trainer.optimizer, batch).compile().compiled

    def losses() -> list[float]:
        mode = metrics_logger.Mode.TRAIN
        return [float(x) for x in trainer.metrics_logger.get_metric_history("", "loss", mode)]

    packages = ("google-tunix", "qwix")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return Side(
        lambda steps: trainer.train(itertools.repeat(batch, steps)),
        losses,
        compiled,
        moved,
        versions,
    )


def our_name(path: str) -> str:
    """Return the path of our leaf of a weight of Tunix's.

    >>> our_name("layers/0/attn/q_proj/w_lora_a")
    'adapter/model/layers/0/self_attn/q_proj/lora_a'
    """
    for name, mine in {
        "embedder/input_embedding": "embed_tokens/embedding",
        "final_norm": "norm",
        "attn/": "self_attn/",
        "norm/w": "norm/scale",
        "w_lora": "lora",
        "proj/w": "proj/kernel",
    }.items():
        path = path.replace(name, mine)
    return f"{'adapter' if 'lora' in path else 'base'}/model/{path}"


if __name__ == "__main__":
    main()
