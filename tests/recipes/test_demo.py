"""The demo in small, on the real model and the real sentences, as the command line runs it."""

import json
import os
import subprocess
import sys

import pytest

from sftjax.cli import main

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def results(minilm, rated_sentences, tmp_path_factory):
    """The run folder, its results, and what was printed; one device, as on a newcomer's laptop."""
    folder = tmp_path_factory.mktemp("demo")
    command = [
        sys.executable, "-m", "sftjax.cli", "demo", "--output-dir", str(folder),
        "--train-rows", "800", "--eval-rows", "150", "--retrieval-rows", "300",
    ]  # fmt: skip
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    )
    assert run.returncode == 0, run.stderr
    return folder, json.loads((folder / "metrics.json").read_text())["results"], run.stdout


def test_the_anchor_keeps_more_and_moves_less(results):
    _, rows, _ = results
    free, held = rows["without anchor"], rows["with anchor"]
    assert held["distance"] < 0.8 * free["distance"]
    assert free["retrieval"] < held["retrieval"] <= rows["before"]["retrieval"]
    assert rows["before"]["distance"] == 0.0


def test_both_runs_learn_the_task(results):
    _, rows, _ = results
    for name in ("without anchor", "with anchor"):
        assert rows[name]["accuracy"]["movie"]["low"] > 0.5, name


def test_the_folder_is_whole_and_the_table_is_said(results):
    folder, rows, said = results
    for name in (
        "report.md", "model/model.safetensors", "model/README.md", "model/tokenizer.json",
        "plots/domains.png", "plots/moved.png", "plots/loss-with-anchor.png",
        "plots/loss-without-anchor.png",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert set(rows) == {"before", "without anchor", "with anchor"}
    assert all(name in said for name in rows)


def test_the_saved_model_predicts_new_text(results, capsys):
    folder, _, _ = results
    code = main(["predict", str(folder / "model"), "--text", "A wonderful, moving film."])
    assert code == 0
    assert "positive" in capsys.readouterr().out


def test_inspect_prints_the_tree_and_a_selection(minilm, capsys):
    assert main(["inspect", str(minilm), "--train", "last:1"]) == 0
    printed = capsys.readouterr().out
    assert "blocks: bert/encoder/layer/0 ... bert/encoder/layer/5 (6)" in printed
    assert "trainable params" in printed


def test_a_stranger_to_the_hub_gets_a_clear_answer(capsys):
    assert main(["inspect", "nobody/nothing"]) == 2
    assert "pass its path" in capsys.readouterr().err
