"""The demo in small, on the real model and the real sentences."""

import json

import pytest

from sftjax.cli import main
from sftjax.recipes.demo import Demo, demo

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def results(minilm, rated_sentences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    said = []
    job = Demo(
        output_dir=folder, train_rows=640, eval_rows=150, retrieval_rows=400, num_train_epochs=2
    )
    return folder, demo(job, said.append), "\n".join(said)


def test_the_anchor_keeps_more_and_moves_less(results):
    _, rows, _ = results
    free, held = rows["without anchor"], rows["with anchor"]
    assert held.distance < 0.8 * free.distance
    assert held.retrieval.precision > free.retrieval.precision
    assert rows["before"].distance == 0.0
    assert rows["before"].retrieval.precision >= held.retrieval.precision


def test_both_runs_learn_the_task(results):
    _, rows, _ = results
    for name in ("without anchor", "with anchor"):
        assert rows[name].accuracy["movie"].low > 0.5, name


def test_the_folder_is_whole_and_the_table_is_said(results):
    folder, _, said = results
    for name in (
        "report.md", "metrics.json", "model/model.safetensors", "model/README.md",
        "model/tokenizer.json", "plots/domains.png", "plots/moved.png",
        "plots/loss-with-anchor.png", "plots/loss-without-anchor.png",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert "with anchor" in said
    facts = json.loads((folder / "metrics.json").read_text())
    assert set(facts["results"]) == {"before", "without anchor", "with anchor"}


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
    assert "local folder" in capsys.readouterr().err
