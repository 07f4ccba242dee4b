"""Fine-tune a decoder on conversations, and say what was learned and what was kept.

sftjax chat --model smollm2-135m-instruct --data construction-faq --adapter lora:r=16 --output-dir a
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sftjax.adapters import dequantize_tree
from sftjax.core import PyTree
from sftjax.data import ChatBatches, conversations, show
from sftjax.hub import Data
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.chat_parts import Measured, chat_parts, check_head, not_on_the_head
from sftjax.recipes.chat_report import measures_table, told_samples, write_run
from sftjax.recipes.chat_rows import (
    LoadedDecoder,
    encode_rows,
    encode_text,
    general_text,
    load_decoder,
    read_chat,
)
from sftjax.recipes.finetune import finetune
from sftjax.recipes.home import move_in
from sftjax.recipes.methods import parse
from sftjax.recipes.prepare import quantized
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import named
from sftjax.recipes.startup import MEASURING, part
from sftjax.recipes.streams import Stream
from sftjax.recipes.talk import answers, greedy
from sftjax.recipes.training import Tuned
from sftjax.recipes.worn import told_of, wear

ANCHORS = (
    "", "none", "l2-sp", "recadam", "difference", "mixout", "ema", "wise-ft", "spd", "sam",
    "child-f", "lisa",
)  # fmt: skip
"""Ways of holding on that need nothing but weights and gradients."""


class Chatted(NamedTuple):
    """What the recipe found."""

    metrics: dict[str, float]
    """`before_` and `after_` of: `eval_loss`, `eval_perplexity`, `eval_token_accuracy` (answers of
    held-out conversations) and `reference_loss`, `reference_perplexity` (general text)."""
    samples: list[dict[str, str]]
    """Questions, the answers in the data, and those before and after."""
    tuned: Tuned
    folder: pathlib.Path


def chat(job: TuneChat, tell: Callable[[str], None] = say) -> Chatted:
    """Run the recipe; everything that could be wrong with the input is refused before compilation.

    Args:
      job: what to do.
      tell: is given what a person wants to read on the way.

    Raises:
      ValueError: for bad input, saying where it is and what to do.
    """
    training = job.training
    if training.anchor and parse(training.anchor)[0] not in ANCHORS:
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
    move_in(job, _facts(job, decoder, train, evaluation), tell)
    key, new = jax.random.key(training.seed), tuple(decoder.report.new)
    adapters = not_on_the_head(training.adapter, decoder.model)
    worn = wear(adapters, params, new, key, quantize=training.quantize)
    check_head(worn)
    for text in told_of(worn, params):
        tell(text)

    size = job.per_device_eval_batch_size * jax.local_device_count()
    held = Measured(
        decoder.model, worn, ChatBatches(evaluation, size, packing=packing, shuffle=False)
    )
    reference = None
    if job.reference_rows:
        general = general_text(job.reference_data, job.reference_rows)
        text = encode_text(general, decoder, job.rows.max_length)
        tell(f"general text: {general.name}, {len(text)} rows, {len(text.ids):,} tokens")
        reference = Measured(
            decoder.model, worn, ChatBatches(text, size, packing=packing, shuffle=False), held
        )

    def measured(params: PyTree, when: str) -> dict[str, float]:
        found = {f"{when}_eval_{name}": value for name, value in held(params).items()}
        if reference is not None:
            kept = reference(params)
            found |= {f"{when}_reference_{name}": kept[name] for name in ("loss", "perplexity")}
        return found

    metrics: dict[str, float] = {}
    first = evaluation.rows[: job.samples]
    asked = conversations(tables[1].take(first)) if len(first) else []
    samples = _asked(asked)
    said = [one._replace(messages=one.messages[:-1]) for one in asked if one.messages]
    write = greedy(decoder, job.max_new_tokens) if said else None

    def spoken(plain: PyTree) -> list[str]:
        return [] if write is None else answers(write, decoder, plain, said)

    def before() -> None:
        with part(MEASURING):
            metrics.update(measured(worn.params, "before"))
            for row, text in zip(samples, spoken(dequantize_tree(worn.base)), strict=True):
                row["before"] = text

    def evaluated(params: PyTree) -> dict[str, float]:
        found = {f"eval_{name}": value for name, value in held(params).items()}
        if said and worn.mergeable:
            for row, text in zip(samples, spoken(worn.weights(params)), strict=True):
                tell(f"{row['question']} - {text}")
        return found

    tuned = finetune(
        worn.params,
        worn.new,
        worn.parts(chat_parts(job, decoder.model, worn)),
        Stream(batches.steps_per_epoch, batches.at),
        training,
        evaluate=evaluated,
        folder=job.output_dir,
        tell=tell,
        held=worn.held,
        before=before,
    )
    metrics |= measured(tuned.params, "after")
    weights = worn.weights(tuned.params)
    if worn.mergeable:
        for row, text in zip(samples, spoken(weights), strict=True):
            row["after"] = text
    read = tuple(
        Data(named(table.name), len(rows), use)
        for table, rows, use in zip(
            tables, (train, evaluation), ("train", "evaluation"), strict=True
        )
    )
    write_run(job, decoder, worn, tuned, weights, metrics, samples, read, str(batches.report))
    tell(measures_table(metrics))
    tell(told_samples(samples))
    tell(f"model, report and plots: {job.output_dir}")
    if worn.mergeable:
        tell(f"talk with it: sftjax talk {job.output_dir / 'model'}")
    return Chatted(metrics, samples, tuned, job.output_dir)


def _facts(job: TuneChat, decoder: LoadedDecoder, train: Any, evaluation: Any) -> dict[str, Any]:
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
        "devices": job.training.row_devices,
        **settings,
        **dataclasses.asdict(job.rows),
        **job.training.facts(),
    }


def _asked(asked: Any) -> list[dict[str, str]]:
    return [
        {"question": one.messages[-2]["content"] if len(one.messages) > 1 else "",
         "in the data": one.messages[-1]["content"]}
        for one in asked
        if one.messages
    ]  # fmt: skip
