"""A command as several processes is one run: real processes, and what they say to each other."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sftjax.cli import main
from sftjax.recipes.classify import Classify, classify
from sftjax.recipes.several import all_ready, one_of_several
from sftjax.recipes.text_rows import Columns
from sftjax.recipes.training import Training
from sftjax.train import (
    Interrupted,
    RollCall,
    agreed,
    apart,
    at_home,
    board,
    processes,
    roll_call,
    spread,
)

HERE = pathlib.Path(__file__).parents[2]
WAYS = [("data=1,fsdp=2", 2)]
"""Mesh, processes; with SFTJAX_EVERY_MESH other ways, too, and a run that is stopped."""
EVERY = bool(os.environ.get("SFTJAX_EVERY_MESH"))
if EVERY:
    WAYS += [("", 2), ("data=2,fsdp=2", 4)]


def start(folder, size, *words, each=1, last=()):
    """Start the processes of a command; `last` is what the last one is given in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "sftjax", "classify", *map(str, words)]
    command += ["--distributed", "--output-dir", str(folder / "run")]
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(size),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={each}"),
    }
    return [
        subprocess.Popen(
            [*command, *(last if index == size - 1 else ())],
            env={**environment, "JAX_PROCESS_ID": str(index)},
            cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(size)
    ]  # fmt: skip


def ended(running, seconds=300):
    """Wait for the processes; return their exit codes, and what they said to both streams."""
    try:
        words = [process.communicate(timeout=seconds) for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], words


def words_of(model, data, rows=4, updates=6):
    return (
        *("--model", model, "--data", data, "--max-length", "16", "--max-steps", updates),
        *("--eval-steps", "3", "--batch", rows, "--learning-rate", "1e-3", "--dose", "0.1"),
    )


@pytest.mark.parametrize(("mesh", "size"), WAYS)
def test_several_processes_do_what_one_does(mesh, size, tiny_model, reviews, tmp_path):
    words = words_of(tiny_model, reviews, rows=8 // size)
    codes, said = ended(start(tmp_path, size, *words, *(("--mesh", mesh) if mesh else ())))
    assert codes == [0] * size, said
    alone = tmp_path / "alone"
    training = Training(
        max_steps=6, eval_steps=3, per_device_train_batch_size=1, learning_rate=1e-3, dose=0.1
    )  # on eight devices: eight rows, too
    columns = Columns(max_length=16)
    found = classify(Classify(str(tiny_model), str(reviews), alone, columns, training=training))
    run = tmp_path / "run"
    names = sorted(str(path.relative_to(alone)) for path in alone.rglob("*.*"))
    assert [name for name in names if not (run / name).exists()] == []
    weights = load_file(run / "model" / "model.safetensors")
    for name, leaf in load_file(alone / "model" / "model.safetensors").items():
        np.testing.assert_allclose(weights[name], leaf, rtol=0, atol=1e-5, err_msg=name)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["eval_loss"] == pytest.approx(found.metrics["eval_loss"], rel=1e-5)
    assert (run / "predictions.csv").read_text().count("\n") > 3
    assert "eval_accuracy" in said[0][0], "the first one speaks"
    own = [line for out, _ in said[1:] for line in out.splitlines() if "[Gloo]" not in line]
    assert own == [], "and the others do not"
    log = (run / "log.jsonl").read_text().splitlines()
    updates = [event["update"] for event in map(json.loads, log) if event["event"] == "update"]
    assert updates == list(range(6)), "one writes the log"


def test_what_one_process_cannot_read_ends_all_with_its_words(tiny_model, reviews, tmp_path):
    words = words_of(tiny_model, reviews)
    wrong = ("--text", "nowhere")
    began = time.monotonic()
    codes, said = ended(start(tmp_path, 2, *words, last=wrong))
    assert codes == [2, 2], said
    assert "nowhere" in said[1][1]
    assert "process 1 of this run ended: " in said[0][1]
    assert "nowhere" in said[0][1]
    assert time.monotonic() - began < 120  # none waited for a time-out
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.skipif(not EVERY, reason="two minutes; SFTJAX_EVERY_MESH=1 runs it")
def test_a_signal_to_one_stops_all_and_the_same_command_goes_on(tiny_model, reviews, tmp_path):
    words = words_of(tiny_model, reviews, updates=60)
    (tmp_path / "whole").mkdir()
    assert ended(start(tmp_path / "whole", 2, *words))[0] == [0, 0]
    running = start(tmp_path, 2, *words)
    log = tmp_path / "run" / "log.jsonl"
    while not log.exists() or log.read_text().count('"update"') < 10:
        time.sleep(0.05)
    running[1].send_signal(signal.SIGTERM)
    codes, said = ended(running)
    assert codes == [75, 75], said
    codes, said = ended(start(tmp_path, 2, *words))
    assert codes == [0, 0], said
    assert "going on from update" in said[0][0]
    for name in ("model/model.safetensors", "predictions.csv"):
        made, whole = (
            (folder / "run" / name).read_bytes() for folder in (tmp_path, tmp_path / "whole")
        )
        assert made == whole, name


@pytest.mark.parametrize(
    "words",
    [
        ("classify", "--model", "m", "--data", "d", "--sweep", "dose=0|4"),
        ("compare", "--model", "m", "--data", "d"),
    ],
)
def test_what_one_process_does_is_refused_before_anything_is_joined(words, tmp_path, capsys):
    assert main([*words, "--distributed", "--output-dir", str(tmp_path / "run")]) == 2
    assert "leave" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_processes_that_were_not_joined_do_not_share_a_folder(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"2 processes would write one run .*--distributed"):
        all_ready()


def test_alone_one_of_several_is_the_run_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("sftjax.recipes.several.join_processes", processes)
    job = Classify("m", "d", tmp_path, training=Training(distributed=True, report_to=("wandb",)))
    with one_of_several(job) as own:
        assert own is job
        all_ready()
    with pytest.raises(ValueError, match="--replay is done by one"):
        one_of_several(dataclasses.replace(job, training=Training(replay=3))).__enter__()


class Board(dict):
    """A coordinator's board that lies here."""

    def key_value_set(self, name, text):
        if name in self:
            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
        self[name] = text

    def key_value_try_get(self, name):
        if name not in self:
            raise jax.errors.JaxRuntimeError("NOT_FOUND")
        return self[name]


@pytest.fixture
def process(monkeypatch):
    """A function that makes this process another of three, before one board."""
    shared = Board()
    monkeypatch.setattr(roll_call, "the_board", lambda: shared)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    return lambda index: monkeypatch.setattr(jax, "process_index", lambda: index)


def calls():
    """One roll call as three processes have it."""
    made = [RollCall() for _ in range(3)]
    for one in made:
        one._name = made[0]._name
    return made


def test_all_are_here_once_each_has_said_so(process):
    one, two, three = calls()
    for index, call in ((1, two), (2, three)):
        process(index)
        call._say("here")
    process(0)
    one.here()


def test_a_failure_is_heard_though_another_has_not_come(process):
    one, two, three = calls()
    process(2)
    three.failed(ValueError("column text is missing; token hf_" + "A1" * 17))
    process(0)
    with pytest.raises(ValueError, match=r"^process 2 of this run ended: column text .*redacted"):
        one.here()
    process(1)
    two.failed(Interrupted(None, saved=True))
    process(0)
    with pytest.raises(Interrupted):
        one.here()


def test_who_has_come_has_not_failed(process):
    one, *_ = calls()
    process(0)
    one._say("here")
    one.failed(ValueError("later"))
    assert board.read(roll_call.the_board(), f"{one._name}/0") == "here"


def test_alone_everything_is_at_home():
    tree = {"w": np.ones(3)}
    assert at_home(tree) is tree
    assert agreed({"eval_loss": 0.1, "rows": 3.0}) == {"eval_loss": 0.1, "rows": 3.0}
    with apart():
        assert len(spread(lambda step: {"x": np.ones(8)})(0)["x"].sharding.device_set) == 8
