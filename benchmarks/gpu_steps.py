"""How fast and how large are steps on pictures and sentences on one GPU, beside torch?

    python benchmarks/gpu_steps.py           # under 6 minutes on an H100 or H200
    python benchmarks/gpu_steps.py --tiny    # the same paths on a CPU in about 2 minutes

Random weights in the shapes of ResNet-50 and ViT-B/16 (64 pictures of 224 x 224) and BERT-base
(32 sentences of 128 tokens). Our side computes in bfloat16 on float32 weights that move; torch runs
as transformers' Trainer runs it with bf16=True (autocast, SDPA attention, fused AdamW, pictures
channels last), once as it comes and once through `torch.compile`. Both start from the same folder
and see the same batch; torch has a process of its own and the two take turns. The script stops if
the losses of the first update differ by more than bfloat16 explains.

Prints one JSON line a row, and at its end the table. MFU counts the products of our step
(`train.step_flops`), for both sides, against 989 TFLOP/s, the dense bfloat16 peak of an
H100 or H200 as its maker gives it.

Expect: less time than torch in every row, and no more memory where not everything moves.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pairs
import peer
from gpu_networks import batch_of, network
from images_speed import following

ROWS = [
    ("BERT-base", "full"), ("BERT-base", "last 2"), ("BERT-base", "head"), ("BERT-base", "LoRA"),
    ("ResNet-50", "full"), ("ResNet-50", "batch norms follow"), ("ResNet-50", "head"),
    ("ViT-B/16", "full"), ("ViT-B/16", "LoRA"),
]  # fmt: skip
COMPILED = {("BERT-base", "full"), ("ResNet-50", "full"), ("ViT-B/16", "full")}
"""Where torch runs compiled too: each compilation takes half a minute."""
RULES = {"full": "all", "batch norms follow": "all", "last 2": "last:2", "head": "head"}
LEARNING_RATE = 1e-5
RANK = 8
TARGETS = ["query", "value"]
PEAK = 989e12


def main() -> None:
    """Time the rows in turns, print and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--tiny", action="store_true", help="small shapes, for a CPU")
    options.add_argument("--only", nargs="*", help="of these networks alone")
    options.add_argument("--turns", type=int, default=5, help="(5)")
    options.add_argument("--steps", type=int, default=20, help="updates of a turn (20)")
    options.add_argument("--seconds", type=float, default=360.0, help="begin no row after (360)")
    options.add_argument("--output", type=pathlib.Path, help="write the rows here as JSON lines")
    options.add_argument("--serve", action="store_true", help="(used inside)")
    args = options.parse_args()
    if args.serve:
        peer.serve(torch_side)
        return
    rows = [row for row in ROWS if not args.only or row[0] in args.only]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if args.tiny:
        args.turns, args.steps = 2, 2
    began = time.monotonic()
    lines = []
    with (
        tempfile.TemporaryDirectory() as folder,
        peer.Peer([sys.executable, __file__, "--serve"]) as torch,
    ):
        for name, mode in rows:
            if time.monotonic() - began > args.seconds:
                print(json.dumps({"network": name, "mode": mode, "left out": "no time"}))
                continue
            lines.append(one_row(args, pathlib.Path(folder), torch, name, mode))
            print(json.dumps(lines[-1]), flush=True)
    if args.output:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        args.output.write_text(text, encoding="utf-8")
    print(pairs.table([shown(line) for line in lines]))


def one_row(
    args: Any, folder: pathlib.Path, torch: peer.Peer, name: str, mode: str
) -> dict[str, Any]:
    """Time one network trained in one way, on both sides."""
    import jax

    model, params = network(name, args.tiny)
    home = folder / name.replace("/", "-")
    if not home.exists():
        from sftjax.hub import save

        save(home, model, params)
    size = {"tiny": args.tiny, "name": name}
    call, cost = ours(model, params, name, mode, jax.device_put(batch_of(**size)))
    mine = float(call()[1]["loss"])
    rounds: dict[str, Callable[[], pairs.Timing]] = {"sftjax": pairs.rounds_of(call, args.steps)}
    loss, peaks = None, {"sftjax": cost["bytes"]}
    both = (name, mode) in COMPILED and not args.tiny
    for way in ("torch", "torch.compile") if both else ("torch",):
        words = {"folder": str(home), "mode": mode, "compiled": way != "torch", **size}
        torch.ask(["load", way, words])
        loss = torch.ask(["round", way, 1])["loss"]
        torch.ask(["round", way, 1])  # with the moments that the first update made
        if way == "torch":  # of the second one, the first one's weights would count too
            peaks[way] = torch.ask(["peak", way, 0])
        if abs(loss - mine) > 0.03 * max(1.0, abs(loss)):
            raise RuntimeError(f"{name}, {mode}: first loss {mine:.4f}, {way} {loss:.4f}")
        rounds[way] = asking(torch, way, args.steps)
    timings = pairs.alternate(rounds, args.turns)
    found: dict[str, Any] = {
        "network": name, "mode": mode, "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, **torch.facts},
        "losses": [round(mine, 4), round(loss or 0.0, 4)],
        "compile_seconds": round(cost["seconds"], 1), "gflop": round(cost["flops"] / 1e9, 1),
    }  # fmt: skip
    for side, each in timings.items():
        ms = 1e3 * statistics.median(one.wall for one in each)
        turns = [round(1e3 * one.wall, 2) for one in each]
        mfu = round(cost["flops"] / ms * 1e3 / PEAK, 4)
        found[side] = {"ms": round(ms, 2), "turns": turns, "mfu": mfu}
        found[side]["rows_per_second"] = round(len(batch_of(**size)["labels"]) / ms * 1e3)
        found[side]["peak_gib"] = in_gib(peaks.get(side))
    torch.ask(["forget", "", 0])
    return found


def in_gib(size: float | None) -> float | None:
    """Return bytes in GiB."""
    return None if size is None else round(size / 2**30, 3)


def asking(torch: peer.Peer, way: str, steps: int) -> Callable[[], pairs.Timing]:
    """Return a round of the peer's."""

    def timed() -> pairs.Timing:
        answer = torch.ask(["round", way, steps])
        return pairs.Timing(answer["wall"], answer["cpu"])

    return timed


def shown(line: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table."""
    ours, torch, compiled = (line.get(key) for key in ("sftjax", "torch", "torch.compile"))
    assert ours
    assert torch

    def times(other: dict[str, Any] | None) -> str:
        return f"{other['ms'] / ours['ms']:.2f}" if other else "-"

    return {
        "network": line["network"],
        "what moves": line["mode"],
        "sftjax, ms": ours["ms"],
        "torch, ms": torch["ms"],
        "compiled, ms": compiled["ms"] if compiled else "-",
        "times as fast as torch": times(torch),
        "as compiled torch": times(compiled),
        "MFU, sftjax": f"{ours['mfu']:.3f}",
        "MFU, torch": f"{torch['mfu']:.3f}",
        "GiB, sftjax": ours["peak_gib"],
        "GiB, torch": torch["peak_gib"],
        "our compilation, s": line["compile_seconds"],
    }


def ours(
    model: Any, params: Any, name: str, mode: str, batch: Any
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return a call that makes one update, and its seconds to compile, bytes and operations."""
    from sftjax.train import step_flops

    step, state, fixed = prepared(model, params, name, mode)
    before = time.perf_counter()
    compiled = step.lower(state, fixed, batch).compile()
    cost: dict[str, Any] = {"seconds": time.perf_counter() - before}
    cost["flops"] = step_flops(step, state, fixed, batch)
    held = compiled.memory_analysis()
    cost["bytes"] = held.argument_size_in_bytes + held.temp_size_in_bytes  # outputs take their room

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, fixed, batch)
        return state, metrics

    return call, cost


def prepared(model: Any, params: Any, name: str, mode: str) -> tuple[Any, Any, Any]:
    """Return our step, and what it starts from."""
    import jax
    import optax

    from sftjax.adapters import attach, lora, plan_adapter, side_branch
    from sftjax.core import map_with_path
    from sftjax.models import statistics_of, statistics_policy, take_statistics
    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, init, make_step

    statistics, objective = None, classification(model.apply)
    if mode == "LoRA":
        plan = plan_adapter(params, lora(r=RANK), target_modules=TARGETS)
        adapter, base = attach(params, plan, jax.random.key(0))
        params = {"adapter": adapter, "base": base}
        trainable = map_with_path(
            lambda path, _: path.startswith(("adapter/", "base/classifier")), params
        )
        objective = classification(side_branch(model.apply, plan))
    else:
        still = statistics_of(params) if name == "ResNet-50" else ()
        trainable = select(params, RULES[mode], still=still).trainable
    if mode == "batch norms follow":
        policy = statistics_policy(params, trainable, "adapt")
        params, statistics = take_statistics(params, policy.adapt)
        objective = following(model, policy)

    tx = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    state, fixed = init(params, trainable, tx, jax.random.key(0), model_state=statistics)
    return compile_step(make_step(objective, tx)), state, fixed


class TorchStep:
    """One network trained in one way, as transformers' Trainer does it."""

    def __init__(self, folder: str, mode: str, compiled: bool, name: str, tiny: bool):
        """Load the folder and put all on the device."""
        import torch
        import transformers

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        pictures = name != "BERT-base"
        kind = (
            transformers.AutoModelForImageClassification
            if pictures
            else transformers.AutoModelForSequenceClassification
        )
        model = kind.from_pretrained(folder).to(self.device)
        if name == "ResNet-50":
            model = model.to(memory_format=torch.channels_last)
        if mode == "LoRA":
            import peft

            # Later versions of transformers call ViT's projections as Llama calls its own.
            targets = [*TARGETS, "q_proj", "v_proj"]
            settings = peft.LoraConfig(
                r=RANK, lora_alpha=RANK, target_modules=targets, modules_to_save=["classifier"]
            )
            model = peft.get_peft_model(model, settings)
        else:
            last = ("pooler", "classifier", *[f"layer.{k}." for k in last_two(model, mode)])
            for path, weight in model.named_parameters():
                weight.requires_grad_(
                    mode in ("full", "batch norms follow") or any(word in path for word in last)
                )
        # In evaluation mode batch norms use their running statistics; there is no dropout.
        self.model = model.train() if mode == "batch norms follow" else model.eval()
        if compiled:
            self.model = torch.compile(self.model)
        moving = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            moving, lr=LEARNING_RATE, weight_decay=0.0, fused=self.device == "cuda"
        )
        batch = {key: torch.from_numpy(value) for key, value in batch_of(name, tiny).items()}
        if pictures:
            batch["pixel_values"] = batch["pixel_values"].permute(0, 3, 1, 2)
        self.batch = {key: value.to(self.device) for key, value in batch.items()}
        self.labels = self.batch.pop("labels").long()

    def round(self, steps: int) -> dict[str, float]:
        """Make updates; return seconds an update and the first loss."""
        losses = []
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            with self.torch.autocast(self.device, dtype=self.torch.bfloat16):
                logits = self.model(**self.batch).logits
                loss = self.torch.nn.functional.cross_entropy(logits.float(), self.labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.detach())
        first = float(losses[0])
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall": wall / steps, "cpu": cpu / steps, "loss": first}

    def peak(self) -> int | None:
        """Return the most bytes that tensors have held since the last loading."""
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def last_two(model: Any, mode: str) -> list[int]:
    """Return the numbers of the blocks that move, from their number."""
    count = getattr(model.config, "num_hidden_layers", 0)
    return [count - 2, count - 1] if mode == "last 2" else []


def torch_side() -> tuple[dict[str, Any], Any]:
    """Prepare the peer's process: requests are `[word, way, more]`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    held: dict[str, TorchStep] = {}

    def answer(request: tuple[str, str, Any]) -> Any:
        word, way, more = request
        if word == "load":
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            held[way] = TorchStep(**more)
            return True
        if word == "forget":
            held.clear()
            torch.compiler.reset()
            return True
        return held[way].round(more) if word == "round" else held[way].peak()

    return {"torch": torch.__version__, "transformers": transformers.__version__}, answer


if __name__ == "__main__":
    main()
