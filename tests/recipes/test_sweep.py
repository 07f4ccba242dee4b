"""A sweep's runs are their separate twins; its folder is whole; bad input is one paragraph."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

from sftjax.cli import main
from sftjax.core import flatten
from sftjax.data import read
from sftjax.evaluate import moved
from sftjax.hub import load, load_tokenizer
from sftjax.models import Head
from sftjax.objectives import classification
from sftjax.recipes.classify import Classify, classify
from sftjax.recipes.deciding import pretrained
from sftjax.recipes.finetune import finetune
from sftjax.recipes.keeping import Reference
from sftjax.recipes.report_to import read_log
from sftjax.recipes.sweep import training_of_run
from sftjax.recipes.text_parts import text_parts
from sftjax.recipes.text_rows import Columns, encode_rows, labels_of
from sftjax.recipes.training import Training
from sftjax.train import take_run

SHORT = Training(
    train=("last:1",), max_steps=4, per_device_train_batch_size=1, learning_rate=1e-3,
    logging_steps=2,
)  # fmt: skip


def job(model, data, folder, sweep, **options):
    return Classify(
        str(model), str(data), folder, sweep=sweep, columns=Columns(max_length=16),
        training=dataclasses.replace(SHORT, **options), eval_data=str(data),
        per_device_eval_batch_size=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_model, reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "run"
    said = []
    made = job(tiny_model, reviews, folder, "seeds=2,dose=0|1")
    return made, classify(made, said.append), "\n".join(said)


@pytest.fixture(scope="module")
def weighed(tiny_model, reviews, tmp_path_factory):
    """A sweep of the importance weight of EWC, at two doses and so at two caps."""
    folder = tmp_path_factory.mktemp("sweep") / "weighed"
    made = job(
        tiny_model,
        reviews,
        folder,
        "dose=0.5|1,importance_weight=0|0.5|1",
        anchor="ewc",
        max_steps=4,
    )
    return made, classify(made, lambda text: None)


@pytest.mark.parametrize("number", range(4))
def test_each_run_equals_its_separate_twin(finished, tiny_model, reviews, number):
    twin = twin_of(*finished[:2], ("dose", "seed"), number, tiny_model, reviews)
    row = finished[1].rows[number]
    start = load(tiny_model, head=Head("sequence", ("neg", "pos")), key=jax.random.key(0))
    blocks = {b.block: b for b in moved(pretrained(start.params, start.report.new), twin.params)}
    for block in ("layer 0", "layer 1", "pooler"):
        assert row[f"moved {block}"] == pytest.approx(blocks[block].distance, abs=1e-5)
        assert row[f"spectral {block}"] == pytest.approx(blocks[block].spectral, abs=1e-5)
    assert row["moved layer 1"] > 0


@pytest.mark.parametrize("number", range(6))
def test_each_weighing_equals_its_separate_twin(weighed, tiny_model, reviews, number):
    twin_of(*weighed, ("dose", "importance_weight", "seed"), number, tiny_model, reviews)


def test_the_importance_weight_makes_a_difference(weighed):
    by = {(row["dose"], row["importance_weight"]): row["moved"] for row in weighed[1].rows}
    assert len({round(value, 6) for value in by.values()}) == 6
    report = (weighed[0].output_dir / "report.md").read_text()
    assert "importance_weight" in report


def twin_of(made, swept, names, number, tiny_model, reviews):
    """Train a run of a sweep alone, and hold the two to one another."""
    run = {name: swept.rows[number][name] for name in names}
    training = training_of_run(made.training, run)
    table = read(str(reviews))
    labels = labels_of(table, made.columns, (), least=2)
    model, params, report = load(
        tiny_model, head=Head("sequence", labels.names), key=jax.random.key(training.seed)
    )
    rows = encode_rows(table, made.columns, load_tokenizer(report.folder), labels)
    twin = finetune(
        params, report.new, text_parts(model, classification),
        rows.batches(training.rows, seed=made.training.seed, shuffle=True), training,
    )  # fmt: skip
    start, alone = flatten(params), flatten(twin.params)
    own = flatten(take_run(swept.fit.states.trainable, number))
    assert any(np.abs(own[path] - start[path]).max() > 1e-4 for path in own)
    for path, leaf in own.items():
        np.testing.assert_allclose(leaf, alone[path], atol=1e-5, err_msg=path)
    return twin


def test_the_folder_is_whole(finished):
    made, swept, said = finished
    folder = made.output_dir
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["dose"], row["seed"]) for row in rows] == [
        ("0.0", "0"), ("0.0", "1"), ("1.0", "0"), ("1.0", "1"),
    ]  # fmt: skip
    facts = json.loads((folder / "metrics.json").read_text())
    assert len(facts["means"]) == 2
    assert len(facts["differences"]) == 1
    assert (folder / "plots" / "sweep.png").stat().st_size > 0
    assert not (folder / "model").exists()
    log = read_log(folder)
    updates = [event for event in log if event["event"] == "update"]
    assert [event["update"] for event in updates] == list(range(4))
    assert all(len(event["loss"]) == 4 for event in updates)
    assert [event["step"] for event in log if event["event"] == "record"] == [2, 4]
    assert len(log[0]["runs"]) == 4
    report = (folder / "report.md").read_text()
    assert "paired by seed" in report
    assert "same batches" in report
    assert "sftjax classify --model" in report
    assert "4 runs x (trainable" in said
    assert "do not divide evenly over 8 devices" in said
    for seed in range(2):
        assert swept.rows[2 + seed]["moved"] < swept.rows[seed]["moved"]


def test_the_whole_retention_stands_in_columns_with_intervals(tiny_model, reviews, tmp_path):
    other = tmp_path / "texts.csv"
    lines = [f"the {word} was {mood},{word}" for word in ("film", "book", "song")
             for mood in ("good", "bad", "fine")]  # fmt: skip
    other.write_text("text,topic\n" + "\n".join(lines) + "\n")
    made = dataclasses.replace(
        job(tiny_model, reviews, tmp_path / "run", "seeds=3,dose=0|2"),
        reference=Reference(str(other), "topic"),
    )
    swept = classify(made, lambda text: None)
    for row in swept.rows:
        task = "same-group retrieval P@1"
        assert 0 <= row[f"kept {task}"] <= 1
        assert np.isfinite(row[f"forgotten {task}"])
        assert 0 < row["cka"] <= 1
        assert row["moved"] >= row["moved layer 1"] > row["moved layer 0"] == 0
    with (made.output_dir / "means.csv").open() as file:
        means = list(csv.DictReader(file))
    mine = next(m for m in means if m["dose"] == "2.0" and m["measure"] == "moved layer 1")
    values = [row["moved layer 1"] for row in swept.rows if row["dose"] == 2]
    assert float(mine["mean"]) == pytest.approx(np.mean(values))
    assert float(mine["sd"]) == pytest.approx(np.std(values, ddof=1))
    half = 4.302652729696142 * np.std(values, ddof=1) / np.sqrt(3)  # Student's t, 2 degrees
    assert float(mine["high"]) - float(mine["mean"]) == pytest.approx(half, rel=1e-4)
    report = (made.output_dir / "report.md").read_text()
    assert "## How far each block moved" in report
    assert "forgotten same-group retrieval P@1" in report


def test_outputs_drift_is_measured_where_the_head_is_not_new(tiny_model, reviews, tmp_path):
    single = dataclasses.replace(job(tiny_model, reviews, tmp_path / "a", ""), sweep="")
    first = classify(single, lambda text: None)
    assert first.retention.outputs is None
    again = job(first.folder / "model", reviews, tmp_path / "b", "dose=0|2")
    swept = classify(again, lambda text: None)
    assert 0 < swept.rows[1]["kl"] < swept.rows[0]["kl"]
    one = dataclasses.replace(
        again, sweep="", output_dir=tmp_path / "c",
        training=dataclasses.replace(again.training, dose=0.0),
    )  # fmt: skip
    assert classify(one, lambda text: None).retention.outputs.value == pytest.approx(
        swept.rows[0]["kl"], rel=1e-3
    )


def test_a_run_that_fails_leaves_the_others(tiny_model, reviews, tmp_path):
    said = []
    made = job(
        tiny_model, reviews, tmp_path / "run", "learning_rate=1e-3|1e38", anchor="none",
        train=("head",), max_steps=6,
    )  # fmt: skip
    swept = classify(made, said.append)
    assert np.isfinite(swept.rows[0]["eval_loss"])
    assert swept.rows[1]["failed_at"] is not None
    assert np.isnan(swept.rows[1]["eval_loss"])
    assert any("learning_rate=1e+38 seed=0 failed" in line for line in said)


def test_eight_runs_are_dealt_out_over_eight_devices(tiny_model, reviews, tmp_path, finished):
    said = []
    made = job(tiny_model, reviews, tmp_path / "run", "seeds=4,dose=0|1")
    swept = classify(made, said.append)
    assert any("8 runs over 8 devices, 1 on each" in line for line in said)
    for here, there in ((0, 0), (1, 1), (4, 2), (5, 3)):  # the runs that both sweeps have
        one, other = swept.rows[here], finished[1].rows[there]
        assert one["seed"] == other["seed"]
        for name in ("eval_loss", "moved", "train_loss"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4)


BAD = {
    "unknown axis": (["--sweep", "doze=1"], "did you mean 'dose'"),
    "unreadable": (["--sweep", "dose=0:4"], "start:stop:count"),
    "other anchor": (["--sweep", "seeds=2", "--anchor", "mixout"], "mixout cannot be swept"),
    "phases": (["--sweep", "seeds=2", "--phases", "lp", "ft"], "--phases"),
    "no anchor": (["--sweep", "dose=0|1", "--anchor", "none"], "no dose to sweep"),
    "two doses": (["--sweep", "dose=0|1", "--anchor", "l2-sp:1"], "gives a dose"),
    "strength beside": (["--sweep", "dose=0|1", "--strength", "1"], "exclude each other"),
    "overshoot": (["--sweep", "dose=1|900"], "overshoot"),
    "early stopping": (["--sweep", "seeds=2", "--early-stopping-patience", "1"], "end together"),
    "metric": (["--sweep", "seeds=2", "--metric-for-best-model", "f2"], "not measured"),
    "importance of l2-sp": (["--sweep", "importance_weight=0|1"], "use --anchor ewc"),
    "importance above 1": (
        ["--sweep", "importance_weight=0|2", "--anchor", "ewc"],
        "it goes from 0",
    ),
    "average": (["--sweep", "seeds=2", "--average", "swa"], "leave --average out"),
    "coupled dose": (["--sweep", "dose=0|1", "--coupled"], "coupled"),
    "frozen head": (["--sweep", "seeds=2", "--train", "classifier=0", "last:1"], "new and frozen"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_ends_in_one_paragraph(what, tiny_model, reviews, tmp_path, capsys):
    more, message = BAD[what]
    code = main(["classify", "--model", str(tiny_model), "--data", str(reviews), "--output-dir",
                 str(tmp_path / "run"), "--max-steps", "4", *more])  # fmt: skip
    said = capsys.readouterr().err
    assert code == 2
    assert message in said, said
    assert len(said.strip().split("\n\n")) == 1
    assert not (tmp_path / "run").exists()
