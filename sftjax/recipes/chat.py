"""Fine-tune a decoder on conversations, and say what was learned and what was kept.

sftjax chat --model smollm2-135m-instruct --data construction-faq --adapter lora:r=16 --output-dir a
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from sftjax.adapters import base_outputs, dequantize_tree
from sftjax.core import Batch, Loss, Objective, PyTree, flatten, partition
from sftjax.data import ChatBatches, conversations, show
from sftjax.evaluate import loss_curve, moved, table_markdown
from sftjax.hub import Data, card_of, save
from sftjax.models.causal_model import DECODERS
from sftjax.objectives import Apply, neftune_noise, next_token
from sftjax.recipes.adapter_folder import save_adapted
from sftjax.recipes.chat_rows import (
    ChatRows,
    LoadedDecoder,
    encode_rows,
    encode_text,
    folder_name,
    general_text,
    load_decoder,
    read_chat,
)
from sftjax.recipes.finetune import finetune
from sftjax.recipes.methods import Parts, parse
from sftjax.recipes.plan import pretrained
from sftjax.recipes.prepare import quantized
from sftjax.recipes.run_folder import write_json, write_text
from sftjax.recipes.streams import Stream
from sftjax.recipes.talk import answers, speaker
from sftjax.recipes.training import Training, Tuned
from sftjax.recipes.worn import Worn, told_of, trained_beside, wear
from sftjax.train import claim, spread

ANCHORS = (
    "", "none", "l2-sp", "recadam", "difference", "mixout", "ema", "wise-ft", "spd", "sam",
    "child-f", "lisa",
)  # fmt: skip
"""Ways of holding on that need nothing but weights and gradients."""


@dataclasses.dataclass(frozen=True)
class TuneChat:
    """Fine-tune a decoder (Llama, SmolLM2, Mistral, Qwen, Gemma) on conversations."""

    output_dir: pathlib.Path
    """The run's folder: model, metrics, report, plots, checkpoints. The same command resumes it."""
    model: str = "smollm2-135m-instruct"
    """A local folder in the Hub's layout, a repository on the Hub, or an asset of sftjax.data."""
    data: str = "construction-faq"
    """Conversations, in a .jsonl, .parquet or .csv file, a folder of train/validation/test files,
    or tfds:NAME: messages, ShareGPT, prompt/completion, Alpaca, or text."""
    rows: ChatRows = dataclasses.field(default_factory=ChatRows)
    training: Training = dataclasses.field(
        default_factory=lambda: Training(per_device_train_batch_size=4)
    )
    eval_data: str | None = None
    """Where to evaluate; else the source's own validation or test split, else a held-out share."""
    validation_fraction: float = 0.1
    """Share of the conversations held out when there is nothing else to evaluate on."""
    per_device_eval_batch_size: int = 4
    """Rows per device in evaluation."""
    reference_data: str | None = None
    """General text (a column `text`) to measure on what is kept; else newspaper editorials."""
    reference_rows: int = 16
    """At most so many of its rows; 0 measures nothing."""
    samples: int = 3
    """Held-out questions that are answered before and after."""
    max_new_tokens: int = 64
    """Most tokens in such an answer."""
    label_smoothing_factor: float = 0.0
    """Share of the target spread evenly over all words."""
    z_loss: float = 0.0
    """Weight of the squared log of the logits' sum, which keeps them from drifting."""
    dft: bool = False
    """Weigh each token by its own probability, as it stands (DFT)."""
    base_kl: float = 0.0
    """Weight of the divergence from the base per token; with --dft this is ASFT. Needs an adapter:
    the base is the same weights without it."""
    neftune_noise_alpha: float = 0.0
    """Disturb the words by noise of this size (NEFTune; 5 is usual)."""
    remat: str = "none"
    """What is computed again going backward to save memory: none, dots, full."""


class Chatted(NamedTuple):
    """What the recipe found."""

    metrics: dict[str, float]
    """`before_` and `after_` of: `eval_loss`, `eval_perplexity`, `eval_token_accuracy` (answers of
    held-out conversations) and `reference_loss`, `reference_perplexity` (general text)."""
    samples: list[dict[str, str]]
    """Questions, the answers in the data, and those before and after."""
    tuned: Tuned
    folder: pathlib.Path


def chat(job: TuneChat, tell: Callable[[str], None] = print) -> Chatted:
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    training = job.training
    if parse(training.anchor)[0] not in ANCHORS if training.anchor else False:
        raise ValueError(
            f"--anchor {training.anchor} is not for chat; those are {', '.join(ANCHORS[1:])}. To "
            "hold on to what the base says, use --base-kl with an adapter"
        )
    if job.base_kl and not training.adapter:
        raise ValueError(
            f"--base-kl {job.base_kl:g} compares with the weights without their adapter; train one "
            "(--adapter lora:r=16), or hold the weights (--anchor l2-sp --dose 1)"
        )
    tables = read_chat(job.data, job.eval_data, job.validation_fraction, training.seed)
    decoder = load_decoder(
        job.model,
        dtype=jnp.bfloat16 if training.bf16 else jnp.float32,
        quantize=quantized(training),
        key=jax.random.key(training.seed),
    )
    decoder = decoder._replace(model=dataclasses.replace(decoder.model, remat=job.remat))
    tell(str(decoder.report))
    train, evaluation = (encode_rows(table, decoder, job.rows) for table in tables)
    for name, rows in (("training", train), ("evaluation", evaluation)):
        tell(f"{name}: {rows}")
    tell(f"{show(train)}")
    packing = job.rows.packing
    batches = ChatBatches(train, training.rows, packing=packing, seed=training.seed)
    tell(str(batches.report))
    params = decoder.params
    if claim(job.output_dir, _facts(job, decoder, train, evaluation)):
        tell(f"{job.output_dir} holds this very run: going on from its last checkpoint")
    key, new = jax.random.key(training.seed), tuple(decoder.report.new)
    adapters = _not_on_the_head(training.adapter)
    worn = wear(adapters, params, new, key, quantize=training.quantize)
    _check_head(worn)
    for text in told_of(worn, params):
        tell(text)

    size = job.per_device_eval_batch_size * jax.device_count()
    held = _Measured(decoder, worn, ChatBatches(evaluation, size, packing=packing, shuffle=False))
    reference = None
    if job.reference_rows:
        general = general_text(job.reference_data, job.reference_rows)
        text = encode_text(general, decoder, job.rows.max_length)
        tell(f"general text: {general.name}, {len(text)} rows, {len(text.ids):,} tokens")
        reference = _Measured(
            decoder, worn, ChatBatches(text, size, packing=packing, shuffle=False), held
        )

    def measured(params: PyTree, when: str) -> dict[str, float]:
        found = {f"{when}_eval_{name}": value for name, value in held(params).items()}
        if reference is not None:
            kept = reference(params)
            found |= {f"{when}_reference_{name}": kept[name] for name in ("loss", "perplexity")}
        return found

    metrics = measured(worn.params, "before")
    asked = conversations(tables[1].take(evaluation.rows[: job.samples]))
    samples = _asked(asked)
    speak = speaker(decoder.model)
    said = [one._replace(messages=one.messages[:-1]) for one in asked if one.messages]
    if said:
        plain = dequantize_tree(worn.base)
        for row, text in zip(
            samples, answers(speak, decoder, plain, said, job.max_new_tokens), strict=True
        ):
            row["before"] = text

    tuned = finetune(
        worn.params,
        worn.new,
        worn.parts(_parts(job, decoder, worn)),
        Stream(batches.steps_per_epoch, batches.at),
        training,
        evaluate=lambda params: {f"eval_{name}": v for name, v in held(params).items()},
        checkpoint_folder=job.output_dir / "checkpoints",
        tell=tell,
        held=worn.held,
    )
    metrics |= measured(tuned.params, "after")
    weights = worn.weights(tuned.params)
    if said and worn.mergeable:
        for row, text in zip(
            samples, answers(speak, decoder, weights, said, job.max_new_tokens), strict=True
        ):
            row["after"] = text
    _write(job, decoder, worn, tuned, weights, metrics, samples, str(batches.report))
    tell(_table(metrics))
    tell(_told_samples(samples))
    tell(f"model, report and plots: {job.output_dir}")
    if worn.mergeable:
        tell(f"talk with it: sftjax talk {job.output_dir / 'model'}")
    return Chatted(metrics, samples, tuned, job.output_dir)


class _Measured:
    """Rows, and the loss, perplexity and accuracy of what is learned of them, with no extras."""

    def __init__(
        self,
        decoder: LoadedDecoder,
        worn: Worn,
        batches: ChatBatches,
        like: "_Measured | None" = None,
    ):
        self._batches = batches
        if like is not None:
            self._run = like._run
            return
        model = decoder.model
        objective = next_token(
            worn.beside(model.hidden), _words(decoder, worn), softcap=model.logit_softcap
        )

        def run(params: PyTree, batch: Batch) -> tuple[Loss, Loss]:
            loss, aux = objective(params, {}, batch, None)
            return loss, aux.metrics["token_accuracy"]

        self._run = jax.jit(run)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Return `loss` (a token), `perplexity` and `token_accuracy`."""
        at = spread(self._batches.at)
        found = [self._run(params, at(step)) for step in range(self._batches.steps_per_epoch)]
        loss, right = (sum(part[1:], part[0]) for part in zip(*found, strict=True))
        mean = float(loss.mean)
        return {
            "loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "token_accuracy": float(right.mean),
        }


def _words(decoder: LoadedDecoder, worn: Worn) -> Callable[[PyTree], Array]:
    """Return the head of params that may wear adapters."""

    def words(params: PyTree) -> Array:
        return decoder.model.words(dequantize_tree(params if worn.plan is None else params["base"]))

    return words


def _parts(job: TuneChat, decoder: LoadedDecoder, worn: Worn) -> Parts:
    """Return the decoder's parts; what an objective is made of is what the head reads."""
    model, words = decoder.model, _words(decoder, worn)
    hidden: Apply = model.hidden
    if job.neftune_noise_alpha:
        hidden = _noisy(decoder, job.neftune_noise_alpha, job.training.dropout)
    base = None
    if job.base_kl:
        assert worn.plan is not None
        base = (
            base_outputs(model.hidden, worn.plan),
            lambda params: jax.lax.stop_gradient(words(params)),
        )

    def objective(hidden: Apply) -> Objective:
        return next_token(
            hidden,
            words,
            softcap=model.logit_softcap,
            label_smoothing=job.label_smoothing_factor,
            z_loss=job.z_loss,
            dft=job.dft,
            base=base,
            base_weight=job.base_kl,
            dropout=job.training.dropout or bool(job.neftune_noise_alpha),
        )

    def none(*_: Any) -> Array:
        raise ValueError("a chat run has no anchor that disturbs or distils features")

    return Parts(objective, hidden, none, none, none)


def _noisy(decoder: LoadedDecoder, alpha: float, dropout: bool) -> Apply:
    """Return the model with noise on its words, wherever it looks them up."""
    model = decoder.model
    table = DECODERS[model.family].words.rpartition("/")[0]

    def run(params: PyTree, batch: Batch, key: Array | None) -> Array:
        if key is None:
            return model.hidden(params, batch, None)
        own, rest = jax.random.split(key)

        def disturbed(looked: Any, args: Any, kwargs: Any, context: Any) -> Any:
            h = looked(*args, **kwargs)
            if "/".join(context.module.path) == table and context.method_name == "__call__":
                return h + neftune_noise(batch, h, alpha, own)
            return h

        with nn.intercept_methods(disturbed):
            return model.hidden(params, batch, rest if dropout else None)

    return run


def _not_on_the_head(adapters: tuple[str, ...]) -> tuple[str, ...]:
    """Keep adapters of all linear layers off the head, as PEFT does, where nothing else is said."""
    everywhere = ("lora", "rslora", "pissa", "olora", "dora")
    return tuple(
        text + ("," if ":" in text else ":") + "exclude=lm_head"
        if text.partition(":")[0] in everywhere and "targets" not in text and "exclude" not in text
        else text
        for text in adapters
    )


def _check_head(worn: Worn) -> None:
    """Refuse an adapter on the head, which the loss reads as a matrix."""
    sites = [] if worn.plan is None else [site.path for site, _ in worn.plan.sites]
    if beside := [path for path in sites if path.rpartition("/")[2] in ("lm_head", "embed_tokens")]:
        raise ValueError(
            f"an adapter sits at {beside[0]}, and the loss reads the words without it; name the "
            "adapter's targets (targets=q_proj|v_proj), or train the words themselves (--train)"
        )


def _facts(job: TuneChat, decoder: LoadedDecoder, train: Any, evaluation: Any) -> dict[str, Any]:
    import hashlib

    settings = dataclasses.asdict(job)
    for name in ("output_dir", "model", "data", "eval_data", "rows", "training", "reference_data"):
        settings.pop(name)

    def digest(rows: Any) -> str:
        content = rows.ids.tobytes() + rows.weights.tobytes() + rows.offsets.tobytes()
        return hashlib.sha256(content).hexdigest()

    return {
        "recipe": "chat",
        "weights": decoder.report.sha256,
        "tokenizer": decoder.tokenizer.sha256,
        "train_rows": digest(train),
        "eval_rows": digest(evaluation),
        "devices": jax.device_count(),
        **settings,
        **dataclasses.asdict(job.rows),
        **dataclasses.asdict(job.training),
    }


def _asked(asked: Any) -> list[dict[str, str]]:
    return [
        {"question": one.messages[-2]["content"] if len(one.messages) > 1 else "",
         "in the data": one.messages[-1]["content"]}
        for one in asked
        if one.messages
    ]  # fmt: skip


def _write(
    job: TuneChat,
    decoder: LoadedDecoder,
    worn: Worn,
    tuned: Tuned,
    weights: PyTree,
    metrics: dict[str, float],
    samples: list[dict[str, str]],
    packed: str,
) -> None:
    folder, report = job.output_dir, decoder.report
    adapted: list[str] = []
    if worn.plan is not None:
        trained = flatten(partition(tuned.params, tuned.selection.trainable)[0])
        layout = save_adapted(
            folder / "adapter", decoder.model, tuned.params, worn.plan,
            words=_not_on_the_head(job.training.adapter), report=report, trained=trained_beside(trained),
        )  # fmt: skip
        adapted = ["## The adapter", "\n\n".join(told_of(worn, decoder.params)), layout]
    distances = moved(pretrained(dequantize_tree(decoder.params), report.new), weights)
    if worn.mergeable:
        card = card_of(report)._replace(
            data=(Data(folder_name(job.data), 0, "train"),),
            settings=dataclasses.asdict(job.training),
        )
        save(folder / "model", decoder.model, weights, report=report, card=card)
    loss_curve(tuned.fit.history, folder / "plots" / "loss.png")
    write_json(
        folder / "metrics.json",
        {
            **metrics,
            "best_step": tuned.fit.best_step,
            "num_steps": tuned.num_steps,
            "seconds": tuned.fit.seconds,
            "history": tuned.fit.history,
            "samples": samples,
            "moved": distances,
        },
    )
    write_text(
        folder / "report.md",
        "\n\n".join(
            [
                f"# {folder_name(job.model)} on {folder_name(job.data)}",
                f"{tuned.num_steps} updates, the best at {tuned.fit.best_step} by "
                f"{job.training.metric_for_best_model}; {tuned.fit.seconds:.0f} s in training "
                f"steps. {packed}.",
                "## Held-out answers and general text, before and after",
                _table(metrics),
                "## Answers",
                _told_samples(samples),
                *adapted,
                "## What moved",
                f"```\n{tuned.description}\n```",
                "## Training",
                "![loss](plots/loss.png)",
            ]
        )
        + "\n",
    )


def _table(metrics: dict[str, float]) -> str:
    names = [name.removeprefix("before_") for name in metrics if name.startswith("before_")]
    rows = [
        {
            "measure": name.replace("_", " "),
            "before": metrics[f"before_{name}"],
            "after": metrics.get(f"after_{name}", math.nan),
        }
        for name in names
    ]
    return table_markdown(rows, ["measure", "before", "after"])


def _told_samples(samples: list[dict[str, str]]) -> str:
    return "\n\n".join(
        "\n".join(f"- {who}: {text}" for who, text in sample.items()) for sample in samples
    )
