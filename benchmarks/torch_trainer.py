"""How do time and accuracy compare with transformers' own Trainer (and PEFT) on torch?

    python benchmarks/torch_trainer.py            # about 8 minutes on 2 cores
    python benchmarks/torch_trainer.py --lora     # a LoRA, beside PEFT: about 5 minutes
    python benchmarks/torch_trainer.py --quick    # about 1 minute: one seed, a fifth of the rows

MiniLM-L6 learns the sentiment of 1,600 film sentences (cut to 32 tokens, 16 a batch, one pass)
and is tested on 1,000 others: every weight, the last two blocks, the head; or a LoRA of queries
and values with the last layer. Both sides start from the same files, new head and adapter
included, and see the same batches in the same order, with AdamW (decay 0.01 on matrices), a
linear schedule without warmup, gradients clipped at 1, dropout off. The Trainer freezes by
`requires_grad_(False)`. A seed is a new head and a new order. Runs take turns; torch has a
process of its own. Weights and sentences (86 MB) are fetched on the first run.

Time is that of the training loop, per update, with logging every 10; sftjax's compilation is listed
apart, and "loss differs" is the greatest difference between the two logged loss curves.

Expect: the same losses to 1e-5 and accuracies within a row or two of each other. Which side is
faster depends on the processor and on what else runs.
"""

import pathlib
import sys
import tempfile
import time
from typing import Any, NamedTuple

import pairs
import peer


class Mode(NamedTuple):
    """What moves."""

    rules: tuple[str, ...]
    beginnings: tuple[str, ...]
    """Of torch's names that stay trainable; all of them if none is named."""
    learning_rate: float


TOP = ("bert.encoder.layer.4.", "bert.encoder.layer.5.")
HEAD = ("bert.pooler.", "classifier.")
LORA = "LoRA, rank 8"
MODES = {
    "full": Mode(("all",), (), 1e-4),
    "last 2 blocks": Mode(("last:2",), (*TOP, *HEAD), 1e-4),
    "head only": Mode(("head",), HEAD, 1e-3),
    LORA: Mode(("adapter", "base/classifier"), (), 1e-3),
}
LENGTH = 32
ROWS = 16
LOGGING = 10
WEIGHT_DECAY = 0.01


class Run(NamedTuple):
    """One training run."""

    seconds: float
    """A step of the training loop, wall time."""
    cpu: float
    """A step, CPU time."""
    accuracy: float
    losses: list[float]
    """Means over `LOGGING` updates."""
    trainable: int
    """Parameters that move."""
    compile_seconds: float = 0.0


def main() -> None:
    """Prepare the data once, run both sides in turns, print and write."""
    options = pairs.parser(__doc__, turns=3, steps=100)
    options.add_argument("--quick", action="store_true", help="one seed, a fifth of the rows")
    options.add_argument("--lora", action="store_true", help="a LoRA beside PEFT, by itself")
    options.add_argument("--model", help="a folder with MiniLM-L6 (fetched when left out)")
    options.add_argument("--serve", action="store_true", help="(used inside)")
    args = options.parse_args()
    if args.serve:
        peer.serve(torch_side)
        return
    seeds = range(1 if args.quick else args.turns)
    steps, tests = (args.steps // 5, 200) if args.quick else (args.steps, 1000)

    modes = [mode for mode in MODES if (mode == LORA) == args.lora]
    name = "torch_trainer"
    if args.lora:
        pairs.PACKAGES, name = (*pairs.PACKAGES, "peft"), "torch_trainer_lora"
    watch = pairs.Watch()
    runs: dict[str, dict[str, list[Run]]] = {}
    with (
        tempfile.TemporaryDirectory() as temporary,
        peer.Peer([sys.executable, __file__, "--serve"]) as torch,
    ):
        folder = pathlib.Path(temporary)
        sentences = Sentences(steps * ROWS, tests, args.model)
        for seed in seeds:
            sentences.prepare(folder, seed, steps)
            if args.lora:
                write_adapter(folder, seed)
            for mode in modes:
                ours = sftjax_side(folder, mode, steps)
                theirs = Run(*torch.ask({"folder": str(folder), "mode": mode, "steps": steps}))
                if ours.trainable != theirs.trainable:
                    raise RuntimeError(f"{mode}: {ours.trainable} and {theirs.trainable} move")
                both = runs.setdefault(mode, {"sftjax": [], "torch": []})
                both["sftjax"].append(ours)
                both["torch"].append(theirs)
                print(
                    f"seed {seed}, {mode}: sftjax {ours.seconds * 1e3:.0f} ms {ours.accuracy:.3f}, "
                    f"torch {theirs.seconds * 1e3:.0f} ms {theirs.accuracy:.3f}",
                    flush=True,
                )
    rows = [row_of(mode, both["sftjax"], both["torch"]) for mode, both in runs.items()]
    settings = {"steps": steps, "batch": ROWS, "length": LENGTH, "test_rows": tests}
    results = {
        mode: {side: [run._asdict() for run in found] for side, found in both.items()}
        for mode, both in runs.items()
    }
    facts = {"settings": settings, "results": results}
    pairs.publish(name, watch.facts(), [rows], facts, args.output)


def row_of(mode: str, ours: list[Run], theirs: list[Run]) -> dict[str, str]:
    """Return one line of the table."""
    times = [[pairs.Timing(run.seconds, run.cpu) for run in side] for side in (ours, theirs)]
    found = pairs.ratio(*times)
    differ = max(
        abs(one - other)
        for mine, other_run in zip(ours, theirs, strict=True)
        for one, other in zip(mine.losses, other_run.losses, strict=True)
    )
    return {
        "what moves": f"{mode} ({ours[0].trainable / 1e6:.2f} M)",
        "sftjax, ms": f"{pairs.median(times[0]).wall * 1e3:.0f}",
        "torch, ms": f"{pairs.median(times[1]).wall * 1e3:.0f}",
        "ratio (min..max of a seed)": str(found),
        "CPU time": f"{found.cpu:.3f}",
        "accuracy by seed, sftjax": " ".join(f"{run.accuracy:.3f}" for run in ours),
        "torch": " ".join(f"{run.accuracy:.3f}" for run in theirs),
        "loss differs": f"{differ:.1e}",
        "compile, s": f"{max(run.compile_seconds for run in ours):.0f}",
    }


class Sentences:
    """The film sentences as tokens, and the folder that both sides read."""

    def __init__(self, train: int, test: int, model: str | None):
        """Fetch, read and tokenise."""
        from sftjax.data import encode, fetch, prepare_sentences, read
        from sftjax.hub import load_tokenizer

        self.model = model or fetch("minilm-l6")
        builder = prepare_sentences(fetch("rated-sentences"), configs=["movie"])["movie"]
        tokenizer = load_tokenizer(self.model)
        self.splits = {}
        for split, rows in (("train", train), ("test", test)):
            table = read(builder, split).take(range(rows))
            encoded = encode(table, tokenizer, max_length=LENGTH)
            self.splits[split] = encoded, table["label"].astype("int32")

    def prepare(self, folder: pathlib.Path, seed: int, steps: int) -> None:
        """Write the seed's model and its batches, in the order in which they are used."""
        import jax
        import numpy as np

        from sftjax.data import Batches
        from sftjax.hub import load, save

        labels = ("negative", "positive")
        loaded = load(self.model, head="sequence", labels=labels, key=jax.random.key(seed))
        save(folder / "model", loaded.model, loaded.params, report=loaded.report)
        for split, (encoded, values) in self.splits.items():
            shuffle = split == "train"
            batches = Batches(encoded, values, ROWS, (LENGTH,), seed=seed, shuffle=shuffle)
            count = steps if shuffle else batches.steps_per_epoch
            each = [batches.at(step) for step in range(count)]
            joined = {name: np.stack([batch[name] for batch in each]) for name in each[0]}
            np.savez(folder / f"{split}.npz", **joined)


def write_adapter(folder: pathlib.Path, seed: int) -> None:
    """Write a fresh adapter of queries and values, and the last layer, as PEFT does."""
    import jax

    from sftjax.adapters import lora, plan_adapter, with_adapter
    from sftjax.core import flatten
    from sftjax.hub import load, save_adapter

    model, params, report = load(folder / "model")
    plan = plan_adapter(params, lora(r=8, lora_alpha=16), target_modules=["query", "value"])
    worn = with_adapter(params, plan, jax.random.key(seed))
    trained = [path for path in flatten(params) if path.startswith("classifier/")]
    save_adapter(folder / "adapter", model, worn, plan, report=report, trained=trained)


def read_batches(folder: pathlib.Path, split: str) -> dict[str, Any]:
    """Return {name: (steps, rows, ...)}."""
    import numpy as np

    with np.load(folder / f"{split}.npz") as content:
        return {name: content[name] for name in content.files}


def sftjax_side(folder: pathlib.Path, mode: str, steps: int) -> Run:
    """Train and test with sftjax."""
    import jax

    from sftjax.adapters import side_branch
    from sftjax.anchor import adamw
    from sftjax.core import combine, count
    from sftjax.hub import load, load_adapter
    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, fit, init, linear_schedule, make_step

    model, params, report = load(folder / "model")
    logits = model.apply
    if mode == LORA:
        worn = load_adapter(folder / "adapter", model, params, report=report)
        params, logits = worn.params, side_branch(model.apply, worn.plan)
    trainable = select(params, [(rule, 1.0) for rule in MODES[mode].rules]).trainable
    schedule = linear_schedule(MODES[mode].learning_rate, steps, warmup_ratio=0.0)
    tx = adamw(schedule, weight_decay=WEIGHT_DECAY, max_grad_norm=1.0)
    step = compile_step(make_step(classification(logits), tx))
    train, test = read_batches(folder, "train"), read_batches(folder, "test")

    def batch_at(number: int) -> dict[str, Any]:
        return {name: values[number] for name, values in train.items()}

    start = time.perf_counter()
    jax.block_until_ready(step(*init(params, trainable, tx, jax.random.key(0)), batch_at(0)))
    compiling = time.perf_counter() - start
    state, fixed = init(params, trainable, tx, jax.random.key(0))
    moving = count(state.trainable)
    cpu = time.process_time()
    run = fit(step, state, fixed, batch_at, steps, log_steps=LOGGING)
    cpu = time.process_time() - cpu

    apply = jax.jit(logits)
    right = 0
    for number in range(len(test["labels"])):
        batch = {name: values[number] for name, values in test.items()}
        guess = apply(combine(run.state.trainable, fixed.frozen), batch).argmax(-1)
        right += int(((guess == batch["labels"]) * batch["valid"]).sum())
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    return Run(
        run.seconds / steps, cpu / steps, right / test["valid"].sum().item(), losses, moving,
        compiling,
    )  # fmt: skip


def torch_side() -> tuple[Any, Any]:
    """Return what trains and tests with the Trainer, run by run."""
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()

    class Rows(torch.utils.data.Dataset):
        """The batches' rows, one after another."""

        def __init__(self, batches: dict[str, Any]):
            names = ("input_ids", "attention_mask", "token_type_ids", "labels", "valid")
            self.valid = batches["valid"].reshape(-1)
            self.columns = {
                name: torch.from_numpy(batches[name]).long().flatten(0, 1) for name in names[:4]
            }

        def __len__(self) -> int:
            return len(self.valid)

        def __getitem__(self, row: int) -> dict[str, Any]:
            return {name: column[row] for name, column in self.columns.items()}

    def train(request: dict[str, Any]) -> Run:
        folder, steps = pathlib.Path(request["folder"]), request["steps"]
        mode = MODES[request["mode"]]
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        if request["mode"] == LORA:
            model = peft.PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
        else:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not mode.beginnings or name.startswith(mode.beginnings))
        moving = sum(p.numel() for p in model.parameters() if p.requires_grad)
        test, clock = Rows(read_batches(folder, "test")), peer.trainer_clock()
        settings = transformers.TrainingArguments(
            output_dir=str(folder / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=ROWS,
            per_device_eval_batch_size=ROWS,
            train_sampling_strategy="sequential",
            learning_rate=mode.learning_rate,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            warmup_steps=0,
            logging_steps=LOGGING,
            save_strategy="no",
            disable_tqdm=True,
            label_names=["labels"],  # which the Trainer does not find behind an adapter
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            model=model,
            args=settings,
            train_dataset=Rows(read_batches(folder, "train")),
            callbacks=[clock],
        )
        trainer.train()
        outputs = trainer.predict(test)
        right = (outputs.predictions.argmax(-1) == outputs.label_ids) * test.valid
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return Run(
            clock.wall / steps, clock.cpu / steps, float(right.sum() / test.valid.sum()), losses,
            moving,
        )  # fmt: skip

    return pairs.versions(), train


if __name__ == "__main__":
    main()
