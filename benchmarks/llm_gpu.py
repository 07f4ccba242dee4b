"""How fast and how large is a step of LoRA on one GPU, beside transformers and PEFT on torch?

    python benchmarks/llm_gpu.py                  # under 5 minutes on an H100 or H200
    python benchmarks/llm_gpu.py --tiny           # the same paths on a CPU in about 2 minutes

Random weights in the shapes of SmolLM2-135M and Llama-3.2-1B; the base is frozen in bfloat16, LoRA
(r=16, every linear layer but the output words) is float32 with AdamW. Every row is full (no
padding, no packing), so that both sides see the same tokens. Torch runs as transformers' Trainer
runs it with bf16=True: autocast, SDPA attention, fused AdamW.

Prints one JSON line for each part, and the lines of a part that fails say so; a part has a process
and a time limit of its own. MFU counts the products that a step needs (frozen kernels: forward and
the gradient of their input; causal attention by half) against 989 TFLOP/s, the dense bfloat16 peak
of an H100 or H200 as its maker gives it.

Expect: the parts named `attention` to differ from float32 by no more than bfloat16 does.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SMALL = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    "max_position_embeddings": 8192, "rope_theta": 1e5, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
LARGE = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "rope_theta": 5e5,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
}  # fmt: skip
TINY = SMALL | {
    "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96,
}  # fmt: skip
SHAPES = {"135m": (SMALL, 16, 1024), "1b": (LARGE, 8, 1024), "tiny": (TINY, 2, 64)}
"""Name -> config, rows, tokens of a row."""
PEAK = 989e12
RANK = 16
PARTS = (
    "attention",
    "ours-135m-cudnn", "torch-135m",
    "ours-1b-cudnn", "torch-1b",
    "words-chunked", "words-tokens", "words-plain",
    "ours-135m-xla", "ours-1b-xla",
)  # fmt: skip
TINY_PARTS = (
    "attention", "ours-tiny-xla", "torch-tiny", "words-chunked", "words-tokens", "words-plain",
)  # fmt: skip


def main() -> None:
    """Run each part in a process of its own, or the one part that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a CPU")
    parser.add_argument("--part", help="run this part alone, in this process")
    parser.add_argument("--parts", nargs="*", help="run these parts")
    parser.add_argument("--seconds", type=float, default=285.0, help="for all parts together")
    parser.add_argument("--most", type=float, default=110.0, help="seconds for one part")
    parser.add_argument("--steps", type=int, default=20, help="timed updates")
    args = parser.parse_args()
    if args.part:
        tell({"part": args.part, **run(args.part, args.tiny, args.steps)})
        return
    root = pathlib.Path(__file__).resolve().parents[1]
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    started = time.monotonic()
    for part in args.parts or (TINY_PARTS if args.tiny else PARTS):
        left = args.seconds - (time.monotonic() - started)
        if left < 5:
            tell({"part": part, "failed": "no time left"})
            continue
        command = [sys.executable, __file__, "--part", part, "--steps", str(args.steps)]
        command += ["--tiny"] if args.tiny else []
        before = time.monotonic()
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True,
                timeout=min(args.most, left), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            tell({"part": part, "failed": f"more than {min(args.most, left):.0f} s"})
            continue
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            tell({"part": part, "failed": done.stderr.strip()[-1500:]})
            continue
        tell({**json.loads(lines[-1]), "process_seconds": round(time.monotonic() - before, 1)})


def tell(facts: dict[str, Any]) -> None:
    """Print one line."""
    print(json.dumps(facts), flush=True)


def run(part: str, tiny: bool, steps: int) -> dict[str, Any]:
    """Return what one part measured."""
    if part == "attention":
        return attention(tiny)
    if part.startswith("words-"):
        return words(part.removeprefix("words-"), tiny, steps)
    side, shape, *rest = part.split("-")
    config, rows, length = SHAPES[shape]
    if side == "torch":
        return torch_side(config, rows, length, steps)
    return our_side(config, rows, length, steps, rest[0])


def our_side(
    config: dict[str, Any], rows: int, length: int, steps: int, attention: str
) -> dict[str, Any]:
    """Train an adapter with our step."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from sftjax.adapters import lora, plan_adapter, shapes_of, side_branch
    from sftjax.core import flatten, map_with_path, unflatten
    from sftjax.models import Head, build
    from sftjax.train import compile_step, init, make_step

    model = build(config, Head("causal-lm"), dtype=jnp.bfloat16)
    model = dataclasses.replace(model, attention=attention)  # type: ignore[type-var]
    rng = np.random.default_rng(0)

    def drawn(path: str, leaf: Any) -> Any:
        if path.endswith("scale"):
            return jnp.ones(leaf.shape, jnp.bfloat16)
        return jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), jnp.bfloat16)

    base = map_with_path(drawn, model.shapes())
    plan = plan_adapter(base, lora(r=RANK, lora_alpha=2 * RANK))
    fresh = {
        path: jnp.zeros(leaf.shape)
        if path.endswith("lora_b")
        else jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32))
        for path, leaf in flatten(shapes_of(plan, base)).items()
    }
    params = {"adapter": unflatten(fresh), "base": base}
    moves = map_with_path(lambda path, _: path.startswith("adapter/"), params)
    tx = optax.adamw(1e-4)
    state, fixed = init(params, moves, tx, jax.random.key(0))
    objective, loss_name = next_word(model, side_branch(model.hidden, plan))
    step = compile_step(make_step(objective, tx))
    ids = rng.integers(0, config["vocab_size"], (rows, length), dtype=np.int32)
    batch = {"input_ids": ids, "loss_weights": np.ones((rows, length), np.float32)}
    batch = jax.device_put(batch)
    before = time.monotonic()
    state, metrics = step(state, fixed, batch)
    losses = [float(metrics["loss"])]
    first = time.monotonic() - before
    for _ in range(2):
        state, metrics = step(state, fixed, batch)
    jax.block_until_ready(state)
    before = time.monotonic()
    for _ in range(steps):
        state, metrics = step(state, fixed, batch)
    losses.append(float(metrics["loss"]))
    seconds = (time.monotonic() - before) / steps
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": jax.devices()[0].device_kind, "jax": jax.__version__, "loss": loss_name,
        **figures(config, rows, length, seconds, memory),
        "first_step_seconds": round(first, 1), "losses": [round(x, 4) for x in losses],
    }  # fmt: skip


def next_word(model: Any, hidden: Callable[..., Any]) -> tuple[Any, str]:
    """Return the objective of the next token: by chunks where this version has them."""
    import jax
    import jax.numpy as jnp

    from sftjax.core import Aux, Loss

    def table(params: Any) -> Any:
        return model.words(params["base"])

    if importlib.util.find_spec("sftjax.objectives.causal"):
        from sftjax.objectives.causal import next_token

        return next_token(hidden, table), "chunked"

    def objective(params: Any, state: Any, batch: Any, key: Any) -> Any:
        x = hidden(params, batch)[:, :-1]
        logits = jnp.einsum(
            "btd,vd->btv", x, table(params).astype(x.dtype), preferred_element_type=jnp.float32
        )
        chosen = jnp.take_along_axis(logits, batch["input_ids"][:, 1:, None], axis=-1)[..., 0]
        each = jax.nn.logsumexp(logits, axis=-1) - chosen
        return Loss(each.sum(), jnp.float32(each.size)), Aux({})

    return objective, "plain"


def torch_side(config: dict[str, Any], rows: int, length: int, steps: int) -> dict[str, Any]:
    """Train an adapter with PEFT."""
    import peft
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    fields = {name: value for name, value in config.items() if name != "model_type"}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**fields), dtype=torch.bfloat16, attn_implementation="sdpa"
    ).to(device)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"
    )
    model = peft.get_peft_model(model, settings).train()
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=1e-4, fused=device == "cuda")
    ids = torch.randint(0, config["vocab_size"], (rows, length), device=device)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def step() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    before = time.monotonic()
    losses = [float(step())]
    first = time.monotonic() - before
    for _ in range(2):
        step()
    wait()
    before = time.monotonic()
    loss = None
    for _ in range(steps):
        loss = step()
    wait()
    seconds = (time.monotonic() - before) / steps
    losses.append(float(loss))
    cuda = device == "cuda"
    memory = torch.cuda.max_memory_allocated() if cuda else None
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__,
        "transformers": transformers.__version__, "peft": peft.__version__,
        **figures(config, rows, length, seconds, memory),
        "first_step_seconds": round(first, 1), "losses": [round(x, 4) for x in losses],
    }  # fmt: skip


def figures(
    config: dict[str, Any], rows: int, length: int, seconds: float, memory: int | None
) -> dict[str, Any]:
    """Return speed, share of the peak, and memory."""
    d, f, layers = (config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads = config["num_attention_heads"]
    inner = heads * config.get("head_dim", d // heads)
    keys = inner // heads * config["num_key_value_heads"]
    linear = ((d, inner), (d, keys), (d, keys), (inner, d), (d, f), (d, f), (f, d))
    kernels = layers * sum(a * b for a, b in linear) + config["vocab_size"] * d
    adapter = layers * sum(RANK * (a + b) for a, b in linear)
    token = 4 * kernels + 6 * adapter + 6 * layers * length * inner
    speed = rows * length / seconds
    return {
        "rows": rows,
        "length": length,
        "ms": round(1e3 * seconds, 2),
        "tokens_per_second": round(speed),
        "mfu": round(speed * token / PEAK, 4),
        "peak_gib": None if memory is None else round(memory / 2**30, 3),
        "trainable": adapter,
    }


def words(way: str, tiny: bool, steps: int) -> dict[str, Any]:
    """Cross-entropy of 4096 tokens over 128k words: time, and the compiler's temporary memory.

    Args:
      way: `chunked`, by slices of the vocabulary; `tokens`, by slices of the tokens; `plain`.
      tiny: small shapes.
      steps: timed calls.
    """
    import jax
    import jax.numpy as jnp

    tokens, vocab, width = (64, 512, 32) if tiny else (4096, 128256, 2048)
    if way == "chunked":
        if not importlib.util.find_spec("sftjax.objectives.chunked"):
            return {"failed": "this version has no chunked cross-entropy"}
        from sftjax.objectives.chunked import chunked_cross_entropy

        def loss(hidden: Any, table: Any, labels: Any) -> Any:
            return chunked_cross_entropy(hidden, table, labels).mean

    elif way == "tokens":
        from sftjax.objectives.chunked import weighted_sum

        def loss(hidden: Any, table: Any, labels: Any) -> Any:
            even = jnp.full(tokens, 1 / tokens)
            nll = lambda stats: stats.nll  # noqa: E731
            return weighted_sum(nll, hidden, table, labels, even, by="tokens")[0]

    else:

        def loss(hidden: Any, table: Any, labels: Any) -> Any:
            logits = jnp.einsum("nd,vd->nv", hidden, table, preferred_element_type=jnp.float32)
            chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
            return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()

    one, two, three = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(one, (tokens, width), jnp.bfloat16)
    table = (0.02 * jax.random.normal(two, (vocab, width))).astype(jnp.bfloat16)
    labels = jax.random.randint(three, (tokens,), 0, vocab)
    facts: dict[str, Any] = {"tokens": tokens, "vocab": vocab, "width": width}
    for name, wanted in (("trained", (0, 1)), ("frozen", (0,))):
        compiled = (
            jax.jit(jax.value_and_grad(loss, argnums=wanted)).lower(hidden, table, labels).compile()
        )
        value = jax.block_until_ready(compiled(hidden, table, labels))[0]
        before = time.monotonic()
        for _ in range(steps):
            out = compiled(hidden, table, labels)
        jax.block_until_ready(out)
        analysis = compiled.memory_analysis()
        facts[name] = {
            "ms": round(1e3 * (time.monotonic() - before) / steps, 3),
            "temporary_gib": round(analysis.temp_size_in_bytes / 2**30, 4) if analysis else None,
            "loss": round(float(value), 5),
        }
    return facts


def attention(tiny: bool) -> dict[str, Any]:
    """Compare cuDNN's attention (splash, interpreted, on a CPU) with XLA's in float32."""
    import jax
    import jax.numpy as jnp

    from sftjax.models.causal_attention import attend

    way = "cudnn" if jax.default_backend() == "gpu" else "splash-interpret"
    rows, length, heads, groups, width = (1, 128, 2, 1, 64) if tiny else (2, 512, 8, 2, 64)
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((rows, length, heads, width), *[(rows, length, groups, width)] * 2)
    q, k, v = (jax.random.normal(key, shape) for key, shape in zip(keys[:3], shapes, strict=True))
    weight = jax.random.normal(keys[3], shapes[0])
    segments = jnp.where(jnp.arange(length) < length // 3, 1, 2)[None].repeat(rows, 0)
    facts: dict[str, Any] = {"way": way}
    for name, options in {
        "causal": {},
        "window": {"window": length // 4},
        "segments": {"segment_ids": segments},
        "both": {"segment_ids": segments, "window": length // 4},
    }.items():
        out = {}
        for how, dtype in ((way, jnp.bfloat16), ("xla", jnp.bfloat16), ("xla", jnp.float32)):

            def f(q, k, v, how=how, options=options):
                y = attend(q, k, v, scale=width**-0.5, implementation=how, **options)
                return (y.astype(jnp.float32) * weight).sum(), y

            given = [x.astype(jnp.bfloat16).astype(dtype) for x in (q, k, v)]
            (_, y), grads = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(*given)
            out[how, jnp.dtype(dtype).name] = [x.astype(jnp.float32) for x in (y, *grads)]
        exact = out["xla", "float32"]
        facts[name] = {
            how: [
                round(float(jnp.abs(a - b).max()), 5)
                for a, b in zip(out[how, "bfloat16"], exact, strict=True)
            ]
            for how in (way, "xla")
        }
    return facts


if __name__ == "__main__":
    main()
