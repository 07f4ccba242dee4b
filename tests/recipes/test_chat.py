"""The chat recipe end to end in miniature: train, measure, save, resume, talk."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, __file__.rpartition("/")[0])
from tiny_llama import CHAT, write_rows, write_tiny_llama

from sftjax.hub import load
from sftjax.recipes.chat import chat
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.chat_rows import ChatRows, load_decoder
from sftjax.recipes.talk import Talk, talk
from sftjax.recipes.training import Training


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat")
    text = root / "general.jsonl"
    said = ["The sky is blue and water is wet."] * 4
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in said))
    return write_tiny_llama(root / "llama"), write_rows(root / "rows.jsonl"), text, root


def job_of(places, name, *, training=None, **settings):
    model, data, text, root = places
    rows = settings.pop("rows", ChatRows(max_length=256))
    brief = {} if name == "lora" else {"samples": 0, "reference_rows": 0}
    settings = {"samples": 2, "max_new_tokens": 8, **brief, **settings}
    trained = {
        "max_steps": 12, "per_device_train_batch_size": 1, "learning_rate": 3e-3, "eval_steps": 6,
        **(training or {}),
    }  # fmt: skip
    return TuneChat(
        root / name, str(model), str(data), rows, Training(**trained), reference_data=str(text),
        per_device_eval_batch_size=1, **settings,
    )  # fmt: skip


def quiet(_):
    return None


def test_lora_learns_answers_and_leaves_a_folder_that_talks(places):
    job = job_of(places, "lora", training={"adapter": ("lora:r=4",)}, neftune_noise_alpha=1.0)
    told = []
    found = chat(job, told.append)
    metrics = found.metrics
    assert metrics["after_eval_loss"] < metrics["before_eval_loss"] - 0.05
    assert metrics["before_eval_perplexity"] == pytest.approx(np.exp(metrics["before_eval_loss"]))
    assert metrics["before_reference_loss"] > 0
    assert any("learned" in text for text in told)
    answered = [text for text in told if text.startswith(f"{found.samples[0]['question']} - ")]
    assert len(answered) >= 2  # at each evaluation
    written = json.loads((job.output_dir / "metrics.json").read_text())
    assert written["after_eval_loss"] == pytest.approx(metrics["after_eval_loss"])
    assert len(written["samples"]) == 2
    assert "Held-out answers" in (job.output_dir / "report.md").read_text()
    assert (job.output_dir / "plots" / "loss.png").stat().st_size > 1000
    # The saved folder is the base with the adapter merged.
    said = []
    questions = iter(["What is a prime number?", "/bye"])
    model = job.output_dir / "model"
    talk(Talk(str(model), max_new_tokens=4), lambda prompt: next(questions), said.append)
    assert "".join(said).count("\n") >= 1
    base = load_decoder(places[0])
    tuned = load_decoder(model)
    assert tuned.template == base.template
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), base.params, tuned.params)
    assert moved["model"]["layers"]["0"]["self_attn"]["q_proj"]["kernel"]
    assert not moved["model"]["embed_tokens"]["embedding"]


def test_last_blocks_under_a_dose_move_and_no_others(places):
    job = job_of(places, "last", training={"train": ("last:1",), "dose": 1.0})
    found = chat(job, quiet)
    assert found.metrics["after_eval_loss"] < found.metrics["before_eval_loss"]
    before = load(places[0], head="causal-lm").params["model"]["layers"]
    after = load(job.output_dir / "model", head="causal-lm").params["model"]["layers"]
    for layer, moves in (("0", False), ("1", True)):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before[layer], after[layer])
        assert any(not leaf for leaf in jax.tree.leaves(same)) == moves
    # The same command is the same run: nothing is trained again.
    again = chat(job, quiet)
    assert again.metrics == found.metrics


def test_unpacked_rows_and_the_pull_to_the_base(places):
    rows = ChatRows(max_length=256, packing=False)
    settings = {"adapter": ("lora:r=4",), "max_steps": 6}
    job = job_of(places, "asft", rows=rows, training=settings, dft=True, base_kl=0.1)
    one, *_ = (places[1]).read_text().splitlines(keepends=True)
    alike = places[3] / "alike.jsonl"  # rows of one length: one shape to compile
    alike.write_text(one * 20)
    job = dataclasses.replace(job, data=str(alike))
    history = chat(job, quiet).tuned.fit.history
    assert any(record.get("base_kl", 0.0) > 0 for record in history)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"training": {"anchor": "logits"}}, "--anchor logits is not for chat"),
        ({"base_kl": 0.1}, "train one"),
        ({"rows": ChatRows(max_length=16)}, r"rows.jsonl rows .* up to \d+ tokens"),
        ({"training": {"adapter": ("lora:targets=lm_head",)}}, "an adapter sits at lm_head"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(places, change, error):
    with pytest.raises(ValueError, match=error):
        chat(job_of(places, "bad", **change), quiet)


def test_a_vocabulary_smaller_than_an_id_names_the_row(places, tmp_path):
    model = write_tiny_llama(tmp_path / "llama")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    extra = dict(tokenizer["added_tokens"][0], id=len(tokenizer["model"]["vocab"]), content="Yes")
    tokenizer["added_tokens"].append(extra)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    data = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
    fine = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No"}]
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (fine, fine, turns)))
    job = dataclasses.replace(
        job_of(places, "vocabulary"), model=str(model), data=str(data), eval_data=str(data)
    )
    with pytest.raises(
        ValueError,
        match=r"row 3: the tokenizer gives token id 472, and the model's vocabulary has 472",
    ):
        chat(job, quiet)


def test_the_loss_is_that_of_trl():
    """Of the rows of tests/parity/chat, by the tiny Llama; TRL pads, we pack."""
    import pathlib
    import tempfile
    from types import SimpleNamespace

    from tokenizers import Tokenizer

    from sftjax.data import ChatBatches, ChatTemplate, Table, encode_chat
    from sftjax.objectives import next_token

    goldens = json.loads((CHAT / "goldens.json").read_text())
    rows = json.loads((CHAT / "rows.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(write_tiny_llama(pathlib.Path(folder) / "llama"), head="causal-lm")
    model = loaded.model
    backend = Tokenizer.from_file(str(CHAT / "tokenizer.json"))
    run = jax.jit(next_token(model.hidden, model.words))
    for case, golden in goldens["small"].items():
        kind, setting = case.split("/")
        names = {name for row in rows[kind] for name in row}
        table = Table({name: [row.get(name) for row in rows[kind]] for name in names}, kind)
        learn = "assistant" if kind == "alpaca" else setting
        encoded = encode_chat(
            table, SimpleNamespace(backend=backend, pad_id=2),
            ChatTemplate(goldens["template"], "<|im_start|>", "<|im_end|>"), max_length=384,
            learn=learn, end_of_turn="turn", on_long="refuse", on_problem="refuse",
        )  # fmt: skip
        batches = ChatBatches(encoded, 2)
        parts = [
            run(loaded.params, {}, batches.at(i), None)[0] for i in range(batches.steps_per_epoch)
        ]
        loss = sum(parts[1:], parts[0])
        assert float(loss.mean) == pytest.approx(golden["loss"], rel=2e-6), case
