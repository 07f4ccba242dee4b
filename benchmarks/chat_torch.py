"""How fast does a decoder learn conversations on a CPU, beside TRL and PEFT on torch?

    python benchmarks/chat_torch.py --peer-python trl/bin/python     # about 15 minutes on 2 cores
    python benchmarks/chat_torch.py --peer-python trl/bin/python --turns 1 --steps 2

The second environment has trl, peft and torch (`pip install trl peft`); without --peer-python the
peer runs in this one, and where it has no trl, transformers' Trainer and PEFT stand in for TRL on
the rows as TRL would prepare them (the table says which). SmolLM2-135M-Instruct (its weights and
the 503 questions and answers about building rules, 94 MB, are fetched on the first run) learns the
answers by LoRA (r=16, every linear layer but the output words, AdamW), in float32 on both sides.

Each is at its own defaults: ours packs rows of 1,024 tokens, one an update; TRL pads 8
conversations an update to the longest of them and computes activations again going backward.
`--no-checkpointing` takes the latter off it. Ours without packing, 8 conversations an update in a
few padded lengths, stands beside them. The sides take turns; what counts are real tokens (no
padding) a second of the training loop; compilation is listed apart.

Expect: at least 1.5 times TRL's tokens a second, packed.
"""

import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import pairs
import peer

ROWS, LENGTH, RATE = 8, 1024, 2e-4
TOKENS = 1000
"""Times are of so many real tokens."""


def main() -> None:
    """Prepare the rows once, run the sides in turns, print and write."""
    options = pairs.parser(__doc__, turns=3, steps=4)
    options.add_argument("--peer-python", default=sys.executable, help="a Python with trl and peft")
    options.add_argument("--no-checkpointing", action="store_true", help="see above")
    options.add_argument("--r", type=int, default=16, help="rank (16)")
    options.add_argument("--model", type=pathlib.Path, help="another decoder's folder")
    options.add_argument("--serve", action="store_true", help="(used inside)")
    args = options.parse_args()
    if args.serve:
        peer.serve(torch_side)
        return
    watch = pairs.Watch()
    with tempfile.TemporaryDirectory() as name:
        folder, rows = pathlib.Path(name), pathlib.Path(name) / "rows.jsonl"
        model = write_rows(rows, args.model)
        ours = Ours(model, rows, args.steps, args.r)
        environment = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        command = [args.peer_python, __file__, "--serve"]
        with peer.Peer(command, environment) as torch:
            title = f"{torch.facts.pop('trainer')} + PEFT"

            def theirs() -> pairs.Timing:
                request = {
                    "model": str(model), "rows": str(rows), "steps": args.steps, "r": args.r,
                    "output": str(folder / "trainer"), "again": not args.no_checkpointing,
                }  # fmt: skip
                return pairs.Timing(*torch.ask(request))

            rounds = {"packed": ours.round("packed"), "unpacked": ours.round("unpacked")}
            timings = pairs.alternate({**rounds, title: theirs}, args.turns, tell=print)
            peers = torch.facts
    table = []
    for name, found in timings.items():
        against = pairs.ratio(timings[title], found)  # how much longer TRL takes for as many tokens
        table.append(
            {
                "side": name if name == title else f"sftjax, {name}",
                "real tokens a second": f"{TOKENS / pairs.median(found).wall:,.0f}",
                "times the peer's (min..max of a turn)": str(against),
                "CPU time": f"{against.cpu:.3f}",
                "real tokens an update": "" if name == title else f"{ours.tokens[name]:,.0f}",
                "compile, s": "" if name == title else f"{ours.compiling[name]:.0f}",
            }
        )
    facts = {
        "seconds_of_1000_tokens": {n: [t._asdict() for t in found] for n, found in timings.items()},
        "peer": peers, "checkpointing": not args.no_checkpointing,
    }  # fmt: skip
    pairs.publish("chat_torch", watch.facts(), [table], facts, args.output)


def write_rows(path: pathlib.Path, model: pathlib.Path | None) -> pathlib.Path:
    """Write the questions and answers as prompts and completions; return the model's folder."""
    from sftjax.data import fetch
    from sftjax.hub import find_folder
    from sftjax.recipes.chat_rows import CONSTRUCTION

    source = (fetch("construction-faq") / CONSTRUCTION).read_text("utf-8")
    with path.open("w", encoding="utf-8") as file:
        for line in source.splitlines():
            question, answer = json.loads(line)["conversations"][-2:]
            row = {
                "prompt": [{"role": "user", "content": question["value"]}],
                "completion": [{"role": "assistant", "content": answer["value"]}],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return model or find_folder(fetch("smollm2-135m-instruct"))


class Ours:
    """The model, its adapter and the batches of both ways, compiled."""

    def __init__(self, folder: pathlib.Path, rows: pathlib.Path, steps: int, r: int):
        """Load, encode and compile."""
        import jax

        from sftjax.adapters import lora, plan_adapter, side_branch, with_adapter
        from sftjax.anchor import adamw
        from sftjax.data import ChatBatches, read
        from sftjax.objectives import next_token
        from sftjax.recipes.chat_rows import ChatRows, encode_rows, load_decoder
        from sftjax.select import select
        from sftjax.train import compile_step, init, make_step

        decoder = load_decoder(folder)
        model = decoder.model
        settings = ChatRows(max_length=LENGTH, completion_only_loss=True)
        chat = encode_rows(read(rows), decoder, settings)
        plan = plan_adapter(decoder.params, lora(r=r))
        params = with_adapter(decoder.params, plan, jax.random.key(0))
        objective = next_token(
            side_branch(model.hidden, plan), lambda params: model.words(params["base"])
        )
        tx = adamw(RATE, weight_decay=0.0)
        self._step = compile_step(make_step(objective, tx))
        moves = select(params, [("adapter", 1.0)]).trainable
        ways = {"packed": ChatBatches(chat, 1), "unpacked": ChatBatches(chat, ROWS, packing=False)}
        self.compiling, self.tokens = dict.fromkeys(ways, 0.0), {}
        self._state, self._batches = {}, {}
        for way, batches in ways.items():
            found = [dict(batches.at(step)) for step in range(steps)]
            self._batches[way] = found
            self._state[way] = [*init(params, moves, tx, jax.random.key(0))]
            real = sum(int(batch["attention_mask"].sum()) for batch in found)
            self.tokens[way] = real / steps
            start = time.perf_counter()
            for shape in {batch["input_ids"].shape: batch for batch in found}.values():
                self._update(way, shape)
            self.compiling[way] = time.perf_counter() - start

    def round(self, way: str) -> pairs.Round:
        """Return the time of `TOKENS` real tokens, of one round of updates."""

        def timed() -> pairs.Timing:
            wall, cpu = time.perf_counter(), time.process_time()
            for batch in self._batches[way]:
                loss = self._update(way, batch)
            float(loss)
            share = TOKENS / (self.tokens[way] * len(self._batches[way]))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            return pairs.Timing(wall * share, cpu * share)

        return timed

    def _update(self, way: str, batch: dict[str, Any]) -> Any:
        state = self._state[way]
        state[0], metrics = self._step(state[0], state[1], batch)
        return metrics["loss"]


def torch_side() -> tuple[Any, Any]:
    """Return what trains with TRL (or the Trainer), and its versions."""
    import importlib.util

    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    with_trl = importlib.util.find_spec("trl") is not None

    def train(request: dict[str, Any]) -> tuple[float, float]:
        clock, real = peer.trainer_clock(), [0]
        model = transformers.AutoModelForCausalLM.from_pretrained(
            request["model"], dtype=torch.float32
        )
        rows = [json.loads(line) for line in pathlib.Path(request["rows"]).read_text().splitlines()]
        adapter = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=request["r"],
            lora_alpha=request["r"],
            target_modules="all-linear",
        )
        settings = {
            "output_dir": request["output"], "max_steps": request["steps"],
            "learning_rate": RATE, "per_device_train_batch_size": ROWS, "save_strategy": "no",
            "report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False,
            "dataloader_pin_memory": False, "gradient_checkpointing": request["again"],
        }  # fmt: skip
        if with_trl:
            import datasets
            import trl

            trainer = trl.SFTTrainer(
                model=model,
                args=trl.SFTConfig(max_length=LENGTH, **settings),
                train_dataset=datasets.Dataset.from_list(rows),
                peft_config=adapter,
                callbacks=[clock],
            )
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
            model = peft.get_peft_model(model, adapter)
            model.enable_input_require_grads()  # or checkpointing would cut the adapter off
            trainer = transformers.Trainer(
                model=model,
                args=transformers.TrainingArguments(**settings),
                train_dataset=[encoded(tokenizer, row) for row in rows],
                data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
                callbacks=[clock],
            )

        def seen(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            real[0] += int(kwargs["attention_mask"].sum())

        trainer.model.register_forward_pre_hook(seen, with_kwargs=True)
        trainer.train()
        share = TOKENS / real[0]
        return clock.wall * share, clock.cpu * share

    def encoded(tokenizer: Any, row: dict[str, Any]) -> dict[str, list[int]]:
        said = tokenizer.apply_chat_template(row["prompt"], tokenize=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        start = len(tokenizer(said, add_special_tokens=False)["input_ids"])
        return {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": [-100] * start + ids[start:],
        }

    pairs.PACKAGES = (*pairs.PACKAGES, "trl", "peft")
    return {**pairs.versions(), "trainer": "TRL" if with_trl else "transformers' Trainer"}, train


if __name__ == "__main__":
    main()
