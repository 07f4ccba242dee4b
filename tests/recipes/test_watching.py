"""What surrounds a run: its log, its writers, a profile, replay, faults, changed data, secrets."""

import json
import struct
import sys
import types

import numpy as np
import pytest

from sftjax.cli import main
from sftjax.core import redact
from sftjax.recipes.replaying import Replay, replay_run
from sftjax.recipes.report_to import read_log, reporting
from sftjax.train import changes_of

TOKEN = "hf_" + "Zq7" * 11
OTHER = "wandb-key-0123456789"


@pytest.fixture(scope="module")
def few(tmp_path_factory, reviews):
    path = tmp_path_factory.mktemp("few") / "reviews.csv"
    path.write_text("\n".join(reviews.read_text().splitlines()[:33]) + "\n")
    return path


def options(model, data, folder, *more, held_out=None):
    return ["classify", "--model", str(model), "--data", str(data),
            "--eval-data", str(held_out or data),
            "--output-dir", str(folder), "--train", "new", "--max-steps", "6", "--eval-steps", "3",
            "--logging-steps", "2", "--per-device-train-batch-size", "1", "--max-length", "16",
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_model, few, tmp_path_factory):
    """A run whose model lies in a folder with a token in its name."""
    import shutil

    root = tmp_path_factory.mktemp("watched")
    model = shutil.copytree(tiny_model, root / TOKEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", OTHER)
        code = main(options(model, few, root / "run", "--report-to", "tensorboard", "--profile",
                            "2"))  # fmt: skip
    assert code == 0
    return root / "run"


def test_the_log_has_every_update_record_evaluation_and_save(run):
    events = read_log(run)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    updates = [event for event in events if event["event"] == "update"]
    assert [event["update"] for event in updates] == list(range(6))
    records = [event for event in events if event["event"] == "record"]
    assert [event["step"] for event in records] == [2, 3, 4, 6]
    weights = [event["weight"] for event in updates]
    assert records[0]["loss"] == pytest.approx(
        np.average([event["loss"] for event in updates[:2]], weights=weights[:2])
    )
    assert {"seconds", "waiting", "rows_per_second", "tokens_per_second"} <= records[0].keys()
    assert [event["step"] for event in events if event["event"] == "evaluation"] == [3, 6]
    saves = [event for event in events if event["event"] == "save"]
    assert [event["step"] for event in saves] == [3, 6]
    assert all(event["failed"] == [] for event in saves)


def test_tensorboard_has_the_same_numbers(run):
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (run / "tensorboard").iterdir()
    data, at, seen = path.read_bytes(), 0, {}
    while at < len(data):  # records of TensorFlow: length, its checksum, bytes, their checksum
        (size,) = struct.unpack("<Q", data[at : at + 8])
        event = Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                seen[value.tag, event.step] = value.simple_value
        at += 16 + size
    for event in read_log(run):
        if event["event"] == "record":
            assert seen["train/loss", event["step"]] == pytest.approx(event["loss"], rel=1e-6)
        if event["event"] == "evaluation":
            loss = event["eval_loss"]
            assert seen["eval/loss", event["step"]] == pytest.approx(loss, rel=1e-6)


def test_weights_and_biases_is_given_the_same_through_a_stand_in(tmp_path, monkeypatch):
    seen = {}

    class Run:
        def log(self, numbers, step):
            seen[step] = numbers

        def finish(self):
            seen["finished"] = True

    def init(**how):
        seen["init"] = how
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with reporting(tmp_path, ["wandb"], {"model": f"https://ann:{OTHER}@host/x"}) as write:
        write({"event": "update", "update": 0, "loss": 1.0})
        write({"event": "record", "step": 2, "loss": 0.5, "strange": float("nan")})
        write({"event": "evaluation", "step": 2, "eval_loss": 0.25})
    assert seen[2] in ({"train/loss": 0.5}, {"eval/loss": 0.25})
    assert seen["finished"]
    assert seen["init"]["resume"] == "allow"
    assert OTHER not in json.dumps(seen["init"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"sftjax\[wandb\]"), reporting(tmp_path, ["wandb"], {}):
        pass
    with pytest.raises(ValueError, match="known are tensorboard and wandb"):
        reporting(tmp_path, ["mlflow"], {}).__enter__()


def test_a_profile_was_taken(run):
    assert list((run / "profile").rglob("*.xplane.pb"))


def test_no_secret_is_written_anywhere(run, monkeypatch):
    for path in run.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert TOKEN.encode() not in data, path
            assert OTHER.encode() not in data, path
    assert "[redacted]" in (run / "job.json").read_text()
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    assert redact("x a-token-of-no-known-form y") == "x [redacted] y"
    assert redact("see https://host/f?token=abcdefgh123&x=1") == (
        "see https://host/f?token=[redacted]&x=1"
    )


def test_errors_of_the_command_line_hold_no_secret(tmp_path, few, capsys):
    assert main(options(tmp_path / TOKEN, few, tmp_path / "run")) == 2
    said = capsys.readouterr()
    assert TOKEN not in said.err + said.out
    assert "[redacted]" in said.err


def test_an_update_of_a_run_is_replayed_to_the_bit(tiny_model, few, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(options(tiny_model, few, folder)) == 0
    assert "first update after" in capsys.readouterr().out
    logged = {e["update"]: e["loss"] for e in read_log(folder) if e["event"] == "update"}
    assert main(["replay", str(folder), "--step", "4"]) == 0
    said = capsys.readouterr().out
    assert "made again from update 3" in said
    assert "the logged loss, to the bit" in said
    found = replay_run(Replay(folder, 1), lambda text: None)
    assert found.same
    assert found.found.metrics["loss"] == logged[1]
    assert found.found.since == 0
    assert int(found.found.state.step) == 1
    phased = tmp_path / "phased"
    assert main(options(tiny_model, few, phased, "--phases", "lp", "last:1")) == 0
    assert capsys.readouterr().out.count("first update after") == 1  # of two phases, once
    for number in (1, 4):
        assert replay_run(Replay(phased, number), lambda text: None).same
    # Other rows under the same name are refused, or accepted and noted.
    other = tmp_path / "other.csv"
    other.write_text("".join(few.read_text().splitlines(keepends=True)[:25]))
    again = options(tiny_model, other, folder, held_out=few)
    assert main(again) == 2
    assert "train_rows" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="made with something else"):
        assert main([*again, "--on-change", "accept"]) == 0
    assert "train_rows" in changes_of(folder)[0]


def test_updates_that_are_not_finite_are_skipped_counted_and_told(tiny_model, tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [{"text": str(rng.choice(["good", "bad", "film"])), "label": 1.0} for _ in range(32)]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows[5]["label"] = 3e38
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = options(tiny_model, tmp_path / "train.jsonl", tmp_path / "run", "--task", "regression",
                    held_out=tmp_path / "eval.jsonl")  # fmt: skip
    assert main([*given, "--on-nan", "stop"]) == 2
    said = capsys.readouterr().err
    assert "at update" in said
    assert "The loss" in said or "the loss is inf" in said
    assert "Its rows" in said
    given[given.index(str(tmp_path / "run"))] = str(tmp_path / "skip")
    assert main([*given, "--on-nan", "skip"]) == 0
    faults = json.loads((tmp_path / "skip" / "metrics.json").read_text())["faults"]
    assert faults
    assert all(5 in fault["rows"] and fault["did"] == "skipped" for fault in faults)
    assert "not finite" in (tmp_path / "skip" / "report.md").read_text()
