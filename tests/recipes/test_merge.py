"""Merged models are exact at their ends, open like any other, and misfits are refused."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from sftjax.cli import main
from sftjax.core import flatten
from sftjax.hub import load, load_tokenizer, save
from sftjax.models import Head, build
from sftjax.recipes.classify import Classify, classify
from sftjax.recipes.merge import Merge, merge
from sftjax.recipes.text_rows import Columns
from sftjax.recipes.training import Training

SHORT = Training(
    train=("last:1",), max_steps=6, per_device_train_batch_size=4, eval_steps=6, anchor="none",
    learning_rate=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tiny_model, reviews, tmp_path_factory):
    """Three models of one head and one order of rows, and one that diverged from the task."""
    folder = tmp_path_factory.mktemp("tuned")
    for name, rate in (("a", 1e-3), ("b", 2e-3), ("c", 5e-4)):
        training = dataclasses.replace(SHORT, learning_rate=rate)
        classify(
            Classify(str(tiny_model), str(reviews), folder / name, training=training,
                     columns=Columns(max_length=16)),
            tell=lambda text: None,
        )  # fmt: skip
    return {name: str(folder / name / "model") for name in "abc"}


def merged(tiny_model, models, folder, how, **options):
    return merge(Merge(str(tiny_model), tuple(models), folder, how=how, **options), lambda _: None)


def leaves(folder):
    return flatten(load(folder).params)


def test_the_command_saves_a_model_that_opens_and_predicts(tiny_model, tuned, tmp_path, capsys):
    out = tmp_path / "soup"
    code = main(["merge", str(tiny_model), tuned["a"], tuned["b"], "--how", "uniform",
                 "--output-dir", str(out)])  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "the base has no classifier" in said.out
    assert "retention" in said.out
    a, b, soup = leaves(tuned["a"]), leaves(tuned["b"]), leaves(out / "model")
    for path, leaf in soup.items():
        np.testing.assert_allclose(leaf, (a[path] + b[path]) / 2, atol=1e-7, err_msg=path)
    card = (out / "model" / "README.md").read_text()
    assert "uniform soup (uniform) of 2 fine-tuned models" in card
    assert str(tmp_path) not in card
    assert "What was kept" in (out / "report.md").read_text()
    assert main(["predict", str(out / "model"), "--text", "the film was great"]) == 0
    assert load_tokenizer(out / "model").sha256 == load_tokenizer(tuned["a"]).sha256


@pytest.mark.parametrize(("how", "number", "ends_at"), [
    ("wise:0", 1, "base"), ("wise:1", 1, "a"), ("add:0", 1, "base"), ("add:1", 1, "a"),
    ("negate:0", 1, "base"), ("uniform", 1, "a"), ("uniform", 2, "a"), ("add:0", 2, "base"),
    ("ties:1", 2, "a"),
])  # fmt: skip
def test_ends_are_exact(how, number, ends_at, tiny_model, tuned, tmp_path):
    merged(tiny_model, [tuned["a"]] * number, tmp_path / "run", how)
    a, found = leaves(tuned["a"]), leaves(tmp_path / "run" / "model")
    base = flatten(load(tiny_model, head="pooled").params)
    for path, leaf in found.items():
        want = base[path] if ends_at == "base" and path in base else a[path]
        if how == "ties:1":  # w0 + (w - w0) rounds
            np.testing.assert_allclose(leaf, want, atol=1e-7)
        else:
            assert np.asarray(leaf).tobytes() == np.asarray(want).tobytes(), path


def test_negation_mirrors_what_was_learned(tiny_model, tuned, tmp_path):
    merged(tiny_model, [tuned["a"]], tmp_path / "run", "negate:1")
    a, found = leaves(tuned["a"]), leaves(tmp_path / "run" / "model")
    base = flatten(load(tiny_model, head="pooled").params)
    moved = 0.0
    for path, start in base.items():
        np.testing.assert_allclose(found[path] - start, start - a[path], atol=1e-6)
        moved = max(moved, float(np.abs(a[path] - start).max()))
    assert moved > 1e-4


def test_task_vectors_of_several_models_add_up(tiny_model, tuned, tmp_path):
    merged(tiny_model, [tuned["a"], tuned["b"]], tmp_path / "run", "add:0.5")
    a, b, found = leaves(tuned["a"]), leaves(tuned["b"]), leaves(tmp_path / "run" / "model")
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, (a[path] + b[path]) / 2, atol=1e-6, err_msg=path)


def test_a_greedy_soup_is_no_worse_than_its_best_model(tiny_model, tuned, reviews, tmp_path):
    options = {"data": str(reviews), "columns": Columns(max_length=16)}
    soup = merged(tiny_model, tuned.values(), tmp_path / "soup", "greedy", **options)
    alone = [
        merged(tiny_model, [model], tmp_path / name, "uniform", **options).metrics["eval_loss"]
        for name, model in tuned.items()
    ]
    assert soup.metrics["eval_loss"] <= min(alone)
    assert soup.mixed.soup.chosen[0] == int(np.argmin(alone))
    facts = json.loads((tmp_path / "soup" / "metrics.json").read_text())
    assert [trial["model"] for trial in facts["soup"]] == list(np.argsort(alone))
    assert soup.retention.features is not None


def test_frozen_bytes_of_the_base_come_through(tiny_model, tuned, tmp_path):
    merged(tiny_model, tuned.values(), tmp_path / "run", "ties:0.2")
    base = flatten(load(tiny_model, head="pooled").params)
    found = leaves(tmp_path / "run" / "model")
    frozen = [path for path in base if "embeddings" in path or "/layer/0/" in path]
    assert frozen
    for path in frozen:
        assert np.asarray(found[path]).tobytes() == np.asarray(base[path]).tobytes(), path


@pytest.fixture(scope="module")
def misfits(tiny_model, tuned, tmp_path_factory):
    """Models that differ from the tuned ones in labels, width and vocabulary."""
    folder = tmp_path_factory.mktemp("misfits")
    model, params, report = load(tuned["a"])
    other = dataclasses.replace(model, head=Head("sequence", ("no", "yes")))
    save(folder / "labels", other, params, report=report)
    narrow = build({**model.config, "intermediate_size": 32}, model.head)
    save(folder / "narrow", narrow, narrow.init(jax.random.key(0)), tokenizer_from=tuned["a"])
    save(folder / "words", model, params, report=report)
    words = folder / "words" / "tokenizer.json"
    words.write_text(words.read_text().replace('"film"', '"movie"'))
    return {name: str(folder / name) for name in ("labels", "narrow", "words")}


@pytest.mark.parametrize(("models", "how", "message"), [
    (("a", "labels"), "uniform", "tell apart the same labels"),
    (("a", "narrow"), "uniform", r"has shape \(32,\) in .*narrow"),
    (("a", "words"), "uniform", "different tokenizers"),
    (("a", "b"), "wise:0.5", "takes one model"),
    (("a",), "ties:0.2", "settles what models disagree on"),
    (("a", "b"), "greedy", "give --data"),
    (("a",), "wise", "write 'wise:0.5'"),
    (("a",), "wise:2", "from 0 to 1"),
    (("a",), "mean", "is no way to merge"),
    (("base",), "uniform", "these have a pooled head"),
])  # fmt: skip
def test_what_cannot_be_merged_is_refused(
    models, how, message, tiny_model, tuned, misfits, tmp_path, capsys
):
    known = {**tuned, **misfits, "base": str(tiny_model)}
    words = [known[name] for name in models]
    data = ["--data", str(tiny_model)] if models == ("base",) else []
    code = main(["merge", str(tiny_model), *words, "--how", how, *data,
                 "--output-dir", str(tmp_path / "run")])  # fmt: skip
    said = capsys.readouterr().err
    assert code == 2
    assert re.search(message, said), said
    assert len(said.strip().split("\n\n")) == 1
    assert not (tmp_path / "run").exists()
