"""Summarize end to end on a tiny random T5: it learns, resumes, writes, refuses."""

import hashlib
import json
import math
from functools import partial

import jax
import numpy as np
import pytest

from sftjax.data import PackedPairs, PairBatches
from sftjax.hub import load, load_adapter, load_tokenizer, save
from sftjax.models import Head, build, encoder_apart
from sftjax.objectives import sequence_to_sequence
from sftjax.recipes.finetune import finetune
from sftjax.recipes.generate import Generate, generate_text
from sftjax.recipes.seq2seq_parts import encoder_stands, seq2seq_parts
from sftjax.recipes.streams import Stream
from sftjax.recipes.summarize import summarize
from sftjax.recipes.summarize_job import Summarize
from sftjax.recipes.summary_rows import (
    SummaryColumns,
    encode_summaries,
    pairs_in_order,
    pairs_packed,
    pairs_shuffled,
    read_summaries,
)
from sftjax.recipes.training import Training
from sftjax.recipes.worn import wear
from sftjax.train import keep_prefix, with_prefix

pytest.importorskip("rouge_score")
pytest.importorskip("sacrebleu")

NOUNS, COLOURS = ["cat", "dog", "hat", "cup"], ["red", "blue", "green", "grey"]
WORDS = [*NOUNS, *COLOURS, "the", "a", "saw", "and", "was", "here", "there", "summarize", ":", "."]
CONFIG = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 32, "d_kv": 16,
    "d_ff": 64, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0,
    "eos_token_id": 1, "vocab_size": len(WORDS) + 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """A T5 of one block a side with random weights, saved in the Hub's layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("tiny-t5")
    model = build(CONFIG, Head("seq2seq-lm"))
    save(folder, model, model.init(jax.random.key(0)))
    vocab = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Texts of a noun and its colour, whose summary is both; of different lengths."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(160):
        noun, colour = draw.choice(NOUNS), draw.choice(COLOURS)
        more = ["here", "and", "there"] * int(draw.integers(2))
        text = " ".join(["the", noun, "was", colour, *more, "."])
        short = [colour, noun] if draw.integers(2) else [colour, noun, "."]
        rows.append({"document": text, "summary": " ".join(short)})
    path = tmp_path_factory.mktemp("data") / "colours.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def job(model, data, folder, columns=None, *, steps=120, **options):
    training = {
        "per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_steps": steps,
        "eval_steps": 60, "dose": 0.1, "train": ("all",), "logging_steps": 25,
        **options.pop("training", {}),
    }  # fmt: skip
    return Summarize(
        model=str(model), data=str(data), output_dir=folder,
        columns=columns or SummaryColumns(max_source_length=16, max_target_length=6),
        training=Training(**training),
        **{"eval_rows": 16, "eval_written": 8, "test_rows": 16, "samples": 1, **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_t5, colours, tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("runs") / "a", []
    prompts = folder.with_name("prompts.jsonl")
    prompts.write_text('{"prompt": "the cat was here ."}\n{"prompt": "a hat and a cup"}\n')
    result = summarize(job(tiny_t5, colours, folder, prompts=str(prompts)), said.append)
    return folder, result, "\n".join(said), str(prompts)


def test_a_run_learns_and_leaves_a_whole_folder(finished):
    folder, result, said, _ = finished
    rouge = {name: one.rouge["rougeL"].value for name, one in result.systems.items()}
    assert rouge["after"] > max(rouge["lead-2 words"], rouge["before"]) + 0.3
    assert result.gain.low > 0
    assert result.over_lead.low > 0
    for name in (
        "run.json", "metrics.json", "report.md", "summaries.jsonl", "plots/loss.png",
        "plots/moved.png", "model/model.safetensors", "model/tokenizer.json", "model/README.md",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert "'the " in said
    report = (folder / "report.md").read_text()
    for part in ("lead-2 words", "## Samples", "evaluation 2", "a person", "answers as before"):
        assert part in report
    history = json.loads((folder / "metrics.json").read_text())["history"]
    assert [e["step"] for e in history if "eval_rougeL" in e] == [60, 120]


def test_the_same_command_again_gives_the_same_bytes(finished, tiny_t5, colours, tmp_path):
    folder, result, _, prompts = finished
    files = ["model/model.safetensors", "metrics.json", "summaries.jsonl"]
    before = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files]
    said = []
    again = summarize(job(tiny_t5, colours, folder, prompts=prompts), said.append)
    assert any("holds this very run" in line for line in said)
    assert again.gain == result.gain
    assert before == [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files]


def test_the_saved_model_writes(finished):
    folder, said = finished[0] / "model", []
    generate_text(Generate(str(folder), text=("the cat was red .",), max_new_tokens=6), said.append)
    assert "red cat" in said[0]
    data, out = folder.parent / "new.jsonl", folder.parent / "out.jsonl"
    data.write_text('{"text": "the hat was blue here and there ."}\n')
    beams = {"num_beams": 2, "max_new_tokens": 6}
    generate_text(Generate(str(folder), data=str(data), output=out, **beams), said.append)
    assert "blue hat" in json.loads(out.read_text())["generated"]


def test_an_adapter_beside_a_quantized_base_learns_of_a_teacher_is_saved_and_writes(
    finished, tiny_t5, colours, tmp_path
):
    teacher = str(finished[0] / "model")
    training = {"adapter": ("lora:r=4",), "quantize": "nf4", "train": (), "eval_steps": 40}
    run = job(
        tiny_t5, colours, tmp_path / "a", steps=40, test_rows=8, training=training, teacher=teacher
    )  # fmt: skip
    said = []
    found = summarize(run, said.append)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(load(tiny_t5).params))
    assert f"all params: {size + found.tuned.description.rows[0].parameters:,}" in "\n".join(said)
    folder, text = tmp_path / "a", ("the cat was red .", "the hat was blue here and there .")
    learned = [entry["teacher"] for entry in found.tuned.fit.history if "teacher" in entry]
    assert learned[0] > 0
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert config["base_model_name_or_path"] == str(tiny_t5)
    assert "PEFT's layout" in (folder / "report.md").read_text()
    # Beside the whole base, as in PEFT: what the base lost by its bits is not in the folder.
    job_of = partial(Generate, text=text, max_new_tokens=6, base=str(tiny_t5))
    written = generate_text(job_of(str(folder / "adapter")), said.append)
    loaded = load_adapter(folder / "adapter", *load(tiny_t5)[:2])
    model, merged = load(tiny_t5).model, loaded.merged()
    save(tmp_path / "merged", model, merged, report=load(tiny_t5).report)
    assert written == generate_text(
        Generate(str(tmp_path / "merged"), text=text, max_new_tokens=6), said.append
    )
    with pytest.raises(ValueError, match="no adapter; leave --base out"):
        generate_text(job_of(str(folder / "model")), said.append)


@pytest.fixture(scope="module")
def rows(tiny_t5, colours):
    model, params, report = load(tiny_t5)
    columns = SummaryColumns(max_source_length=16, max_target_length=6)
    table = read_summaries(str(colours), None, columns, fraction=0.9, seed=0)[0]
    encoded = encode_summaries(table, columns, model, load_tokenizer(report.folder))
    return model, params, encoded.pairs


def total(model, params, batches):
    objective = sequence_to_sequence(model.apply)

    @jax.jit
    def step(params, batch):
        return jax.value_and_grad(lambda p: objective(p, {}, batch, None)[0].sum)(params)

    steps = [batches.at(step) for step in range(batches.steps_per_epoch)]
    found = [step(params, {k: v for k, v in b.items() if k != "index"}) for b in steps]
    weight = sum(float(b["loss_weights"].sum()) for b in steps)
    loss = sum(float(value) for value, _ in found) / weight
    added = jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)), *(g for _, g in found))
    return loss, added


def test_bucketed_is_unbucketed_and_packed_is_unpacked(rows):
    model, params, pairs = rows
    loss, gradient = total(model, params, PairBatches(pairs, 4, (16,), (6,)))
    for batches in (PairBatches(pairs, 4, (10, 16), (6,)), PackedPairs(pairs, 3, 32, 12)):
        other, also = total(model, params, batches)
        assert other == pytest.approx(loss, rel=1e-6)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(also), strict=True):
            np.testing.assert_allclose(b, a, atol=2e-5 * max(np.abs(a).max(), 1))


def tuned(model, params, stream, *, kept=False, **training):
    """Tune a few steps, without evaluating."""
    settings = Training(**{"max_steps": 3, "anchor": "none", "learning_rate": 1e-2, **training})
    worn = wear(settings.adapter, params, (), jax.random.key(0))
    parts = worn.parts(seq2seq_parts(model, sequence_to_sequence, kept=kept))
    return finetune(worn.params, worn.new, parts, stream, settings, held=worn.held)


def test_training_on_the_kept_outputs_of_the_encoder_is_training_with_it(rows):
    model, params, pairs = rows
    stream, moves = pairs_shuffled(pairs, 8, 0), {"train": ("decoder/block/0", "lm_head")}
    found = keep_prefix(
        encoder_apart(model).lower, params, pairs_in_order(pairs), len(pairs), mask="attention_mask"
    )
    above = Stream(stream.steps_per_epoch, with_prefix(stream.at, found))
    whole = tuned(model, params, stream, **moves)
    apart = tuned(model, params, above, kept=True, **moves)
    leaves = (jax.tree.leaves(one.params) for one in (whole, apart))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_lora_on_packed_rows_with_its_answers_held(rows):
    model, params, pairs = rows
    stream = pairs_packed(pairs, 8, 0)
    found = tuned(model, params, stream, adapter=("lora:r=2",), anchor="logits:1")
    history = found.fit.history[-1]
    assert np.isfinite(history["loss"])
    assert history["distill"] >= 0


def test_a_model_cut_after_its_encoder_is_the_model(rows):
    model, params, pairs = rows
    batch = PackedPairs(pairs, 2, 24, 12).at(0)
    lower, upper = encoder_apart(model)
    hidden = jax.jit(lower)(params, batch)
    whole = jax.jit(model.apply)(params, batch)
    np.testing.assert_array_equal(jax.jit(upper)(params, {**batch, "hidden": hidden}, None), whole)
    assert encoder_stands({"decoder": {"block": True}, "lm_head": True, "shared": False})
    assert not encoder_stands({"decoder": {"block": True}, "shared": True})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": SummaryColumns(max_source_length=8)}, "rows .*: the document has up to"),
        ({"columns": SummaryColumns(document="docment")}, "Did you mean 'document'"),
        ({"training": {"anchor": "r3f"}}, "an encoder-decoder has two"),
        ({"training": {"adapter": ("houlsby:r=2,targets=o",), "train": ()}}, "cannot be merged"),
        ({"keep_prefix": True}, "the encoder does not stand still"),
        ({"keep_prefix": True, "packing": True}, "--packing mixes rows anew"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(tiny_t5, colours, tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        summarize(job(tiny_t5, colours, tmp_path / "a", **change), lambda text: None)
    assert not (tmp_path / "a").exists()


def test_a_config_without_a_start_token_is_refused(tiny_t5, colours, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_t5.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = {k: v for k, v in CONFIG.items() if k != "decoder_start_token_id"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no decoder_start_token_id"):
        summarize(job(folder, colours, tmp_path / "a"), lambda text: None)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        summarize(job(folder, colours, tmp_path / "a"), lambda text: None)
