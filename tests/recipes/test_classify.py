"""The recipe end to end on a tiny model: every task, resume after kill -9, and bad input."""

import json

import numpy as np
import pytest

from sftjax.cli import main
from sftjax.hub import load
from sftjax.recipes.classify import Classify, classify
from sftjax.recipes.report_to import read_log
from sftjax.recipes.text_rows import Columns
from sftjax.recipes.training import Training

QUICK = {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 5}
LEARN = {"max_steps": 100, "eval_steps": 50, "learning_rate": 2e-3, "dose": 0.1}


def job(model, data, folder, columns=None, **training):
    return Classify(
        model=str(model),
        data=str(data),
        output_dir=folder,
        columns=Columns(max_length=16) if columns is None else columns,
        training=Training(**{**QUICK, **training}),
        per_device_eval_batch_size=4,
    )


@pytest.fixture(scope="module")
def finished(tiny_model, reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    said = []
    result = classify(job(tiny_model, reviews, folder, **LEARN), said.append)
    return folder, result, "\n".join(said)


def test_a_run_learns_and_leaves_a_whole_folder(finished):
    folder, result, said = finished
    assert result.metrics["eval_accuracy"].value > 0.9
    for name in (
        "run.json", "metrics.json", "report.md", "predictions.csv", "plots/loss.png",
        "plots/moved.png", "plots/reliability.png", "model/model.safetensors",
        "model/config.json", "model/tokenizer.json", "model/README.md",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "neg", "1": "pos"}
    assert "trainable params" in said
    assert "L2-SP" in (folder / "model" / "README.md").read_text()


def test_frozen_tensors_of_the_saved_model_are_those_of_the_pretrained_one(finished, tiny_model):
    from safetensors.numpy import load_file

    before = load_file(tiny_model / "model.safetensors")
    after = load_file(finished[0] / "model" / "model.safetensors")
    trunk = {name.removeprefix("bert."): tensor for name, tensor in after.items()}
    frozen = [name for name in before if name.removeprefix("bert.").startswith("embeddings")]
    assert frozen
    for name in frozen:
        assert before[name].tobytes() == trunk[name.removeprefix("bert.")].tobytes()


def test_the_saved_model_predicts_what_the_run_predicted(finished, capsys):
    folder, _, _ = finished
    out = folder / "again.csv"
    lines = (folder / "predictions.csv").read_text().splitlines()
    assert lines[0].startswith("row,label,prediction,probability_neg")
    texts = ["the film was great", "the book was awful"]
    assert main(["predict", str(folder / "model"), "--text", *texts]) == 0
    printed = capsys.readouterr().out
    assert "pos" in printed
    assert "neg" in printed
    data = folder / "new.jsonl"
    data.write_text('{"text": "the song was lovely"}\n')
    assert main(["predict", str(folder / "model"), "--data", str(data), "--output", str(out)]) == 0
    assert ",pos," in out.read_text()


def test_the_same_command_again_resumes_and_gives_the_same(finished, tiny_model, reviews):
    folder, result, _ = finished
    before = (folder / "model" / "model.safetensors").read_bytes()
    said = []
    again = classify(job(tiny_model, reviews, folder, **LEARN), said.append)
    assert any("holds this very run" in line for line in said)
    assert again.metrics == result.metrics
    assert (folder / "model" / "model.safetensors").read_bytes() == before


def test_another_run_in_the_same_folder_is_refused(finished, tiny_model, reviews):
    with pytest.raises(ValueError, match=r"another run \(dose: 0.1 there, 3.0 now\)"):
        classify(job(tiny_model, reviews, finished[0], **{**LEARN, "dose": 3.0}))


def test_stopped_in_the_middle_resumes_to_the_same_bytes(command, tiny_model, reviews, tmp_path):
    """kill -9 and SIGTERM; the resumed run ends with the bytes of the one never interrupted."""
    options = [
        "classify", "--model", str(tiny_model), "--data", str(reviews), "--max-steps", "90",
        "--save-steps", "10", "--eval-steps", "30", "--per-device-train-batch-size", "16",
        "--max-length", "16", "--per-device-eval-batch-size", "16", "--logging-steps", "7",
        "--reference-rows", "32",
    ]  # fmt: skip
    command.stopped_and_resumed(options, tmp_path)
    whole = tmp_path / "whole"
    for stopped in ("cut", "asked"):
        for name in ("model/model.safetensors", "metrics.json", "predictions.csv"):
            assert command.digest(whole / name) == command.digest(tmp_path / stopped / name), name
        events = [event["event"] for event in read_log(tmp_path / stopped)]
        assert events.count("start") == events.count("resume") == 1


@pytest.mark.parametrize("task", ["multi-label", "regression", "token", "pair"])
def test_every_task_runs_and_saves_its_head(task, tiny_model, tmp_path):
    rng = np.random.default_rng(0)
    words = ["good", "bad", "film", "dull", "very"]
    lines = []
    for _ in range(24):
        chosen = [str(word) for word in rng.choice(words, 4)]
        row = {"text": " ".join(chosen)}
        if task == "multi-label":
            row["label"] = sorted(
                {"G" if w == "good" else "B" for w in chosen if w in ("good", "bad")}
            )
        elif task == "regression":
            row["label"] = float(chosen.count("good"))
        elif task == "token":
            row = {"text": chosen, "label": ["B-X" if w == "good" else "O" for w in chosen]}
        else:
            row |= {"other": chosen[0], "label": int("good" in chosen)}
        lines.append(json.dumps(row))
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(lines))
    columns = Columns(
        task="single-label" if task == "pair" else task,
        pair="other" if task == "pair" else None,
        max_length=16,
    )
    result = classify(job(tiny_model, data, tmp_path / "run", columns, max_steps=4), lambda _: None)
    assert np.isfinite(result.metrics["eval_loss"])
    model, _, report = load(tmp_path / "run" / "model")
    assert model.head.kind == ("token" if task == "token" else "sequence")
    assert report.new == ()


def test_bf16_keeps_the_frozen_weights_as_they_were(tiny_model, reviews, tmp_path):
    classify(job(tiny_model, reviews, tmp_path / "run", max_steps=2, bf16=True), lambda _: None)
    before, after = load(tiny_model, head="hidden"), load(tmp_path / "run" / "model")
    for path in ("embeddings",):
        for a, b in zip(
            jax_leaves(before.params["bert"][path]),
            jax_leaves(after.params["bert"][path]),
            strict=True,
        ):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def jax_leaves(tree):
    import jax

    return jax.tree.leaves(tree)


BAD_DATA = {
    "empty file": ("", "empty|no rows"),
    "missing column": ("sentence,label\n" + "a,1\nb,0\n" * 9, "no column 'text'"),
    "one class": ("text,label\n" + "good,1\n" * 20, "class"),
    "NaN label": ("text,label\n" + "good,1\nbad,0\n" * 10 + "bad,nan\n", "row 21"),
    "label out of range": ("text,label\n" + "good,1\nbad,0\n" * 10 + "bad,7\n", "7"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_data_ends_in_one_paragraph(what, tiny_model, tmp_path, capsys):
    content, message = BAD_DATA[what]
    data = tmp_path / "data.csv"
    data.write_text(content)
    labels = ["--labels", "0", "1"] if what == "label out of range" else []
    refused(message, tiny_model, data, tmp_path, capsys, *labels)


def test_text_that_is_not_utf8(tiny_model, tmp_path, capsys):
    data = tmp_path / "data.csv"
    data.write_bytes(b"text,label\ngood,1\nbad,0\n" + "caf\xe9,1\n".encode("latin1"))
    refused("UTF-8", tiny_model, data, tmp_path, capsys)


def test_text_longer_than_the_model(tiny_model, tmp_path, capsys):
    data = tmp_path / "data.csv"
    rows = "".join(f"{'good ' * (3 + 40 * (i == 5))},{i % 2}\n" for i in range(20))
    data.write_text("text,label\n" + rows)
    refused("row 6", tiny_model, data, tmp_path, capsys, "--on-long", "error")


def test_a_pattern_that_matches_nothing(tiny_model, reviews, tmp_path, capsys):
    refused(
        "did you mean", tiny_model, reviews, tmp_path, capsys, "--train", "bert/encoder/layers/1"
    )


def test_a_model_of_an_unknown_architecture(reviews, tmp_path, capsys):
    model = tmp_path / "mamba"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "mamba"}')
    refused("mamba", model, reviews, tmp_path, capsys)


def test_a_truncated_weight_file(tiny_model, reviews, tmp_path, capsys):
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "torn")
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused("truncated|shorter|cut", model, reviews, tmp_path, capsys)


def refused(message, model, data, folder, capsys, *more):
    import re

    code = main(["classify", "--model", str(model), "--data", str(data), "--output-dir",
                 str(folder / "run"), "--max-steps", "2", *more])  # fmt: skip
    said = capsys.readouterr().err
    assert code == 2
    assert re.search(message, said), said
    assert len(said.strip().split("\n\n")) == 1, "one paragraph"
    assert not (folder / "run" / "model").exists()
