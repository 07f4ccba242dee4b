"""Real processes on one machine: the same run as in one, each reading its rows; trouble is told."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

sys.path.insert(0, __file__.rpartition("/")[0])
from mesh_cases import CASES, STEPS, rules, tiny_llama

from sftjax.core import flatten
from sftjax.hub import load
from sftjax.train import (
    Saved,
    compile_step,
    join_processes,
    make_mesh,
    open_checkpoints,
    patience,
    place_state,
    spread,
)

HERE = pathlib.Path(__file__).parent
RUNS = [
    ("mlp", "data=4", 4),
    *((case, "data=2,fsdp=2", size) for case in ("bert", "llama", "resnet") for size in (2, 4)),
]
"""Case, mesh, processes; the first alone unless SFTJAX_EVERY_MESH asks for all."""

if not os.environ.get("SFTJAX_EVERY_MESH"):
    RUNS = RUNS[:1]


def start(case, mesh, size, folder, each=1, trouble=""):
    """Start the processes and return them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={each}")
    environment = {
        **os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", str(HERE / "one_process.py"), case, mesh, str(port)]
    return [
        subprocess.Popen(
            [*command, str(size), str(index), str(folder), *([trouble] if trouble else [])],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(size)
    ]  # fmt: skip


def ended(running, seconds=480):
    """Wait for the processes; return their exit codes and last words."""
    try:
        words = [process.communicate(timeout=seconds)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], words


@pytest.mark.parametrize(("case", "mesh", "size"), RUNS)
def test_several_processes_are_one_run(case, mesh, size, tmp_path):
    codes, words = ended(start(case, mesh, size, tmp_path, each=4 // size))
    assert codes == [0] * size, words
    made = CASES[case]()
    step, state, losses, rows = compile_step(made.step), made.again(), [], []
    for number in range(STEPS):
        batch = made.batches.at(number)
        state, metrics = step(state, made.fixed, batch)
        losses.append(float(metrics["loss"]))
        rows.append(len(next(iter(batch.values()))))
    facts = json.loads((tmp_path / "facts.json").read_text())
    np.testing.assert_allclose(facts["losses"], losses, rtol=1e-5)
    assert facts["devices"] == 4
    own = [count // size for count in rows]
    assert facts["read"] == own, "a process reads its own rows and no others"
    with np.load(tmp_path / "weights.npz") as found:
        for path, leaf in flatten((state.trainable, state.model_state)).items():
            np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-5, err_msg=path)


def test_a_run_of_one_process_goes_on_in_two_and_comes_back(tmp_path):
    made = CASES["mlp"]()
    step, state, losses = compile_step(made.step), made.again(), []
    for number in range(STEPS):
        state, metrics = step(state, made.fixed, made.batches.at(number))
        losses.append(float(metrics["loss"]))
    mesh = make_mesh("data=8")
    placed, fixed = place_state(made.again(), made.fixed, mesh, rules(mesh))
    on_eight = compile_step(made.step, mesh, rules(mesh))
    placed, _ = on_eight(placed, fixed, spread(made.batches.at, mesh)(0))
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(Saved(placed, None, {}))
    codes, words = ended(start("mlp", "fsdp=2,tensor=2", 2, tmp_path, each=2, trouble="on"))
    assert codes == [0, 0], words
    facts = json.loads((tmp_path / "facts.json").read_text())
    np.testing.assert_allclose(facts["losses"], losses[1:], rtol=1e-5)
    assert facts["read"] == [made.batches.rows // 2] * (STEPS - 1)
    with open_checkpoints(tmp_path / "after", read_only=True) as checkpoints:
        back = checkpoints.latest(made.again())
    assert back is not None
    assert int(back.state.step) == STEPS
    with np.load(tmp_path / "weights.npz") as found:
        for path, leaf in flatten((back.state.trainable, back.state.model_state)).items():
            np.testing.assert_array_equal(found[path], leaf)
            whole = flatten((state.trainable, state.model_state))[path]
            np.testing.assert_allclose(leaf, whole, rtol=0, atol=1e-5)
    # What two processes held in parts, one of them wrote whole.
    saved, params = load(tmp_path / "model"), flatten(tiny_llama()[1])
    for path, leaf in flatten(saved.params).items():
        np.testing.assert_array_equal(leaf, params[path])


def test_a_peer_that_dies_ends_the_others_with_a_message(tmp_path):
    codes, words = ended(start("mlp", "data=2", 2, tmp_path, trouble="die"), 120)
    assert codes[1] == -9
    assert codes[0] != 0
    assert not (tmp_path / "facts.json").exists()
    assert any(sign in words[0] for sign in ("heartbeat", "Connection", "closed", "UNAVAILABLE"))


def test_patience_ends_and_a_beat_renews_it(monkeypatch):
    told, ended = [], threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: (told.append(code), ended.set()))
    with patience(0.3, told.append) as beat:
        for _ in range(4):
            time.sleep(0.15)
            beat()
        assert not told
        assert ended.wait(20)
    assert told[1] == 75
    assert "process 0 of 1: no step was finished for 0.3 s, so a peer or the input" in told[0]


def test_processes_that_cannot_be_found_are_told(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    given = []

    def initialize(**words):
        given.append(words)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=r"No cluster .* JAX_COORDINATOR_ADDRESS"):
        join_processes()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="cannot find each other"):
        join_processes("host:1", index=0, start_seconds=7)
    assert given[1]["num_processes"] == 2
    assert (given[1]["process_id"], given[1]["initialization_timeout"]) == (0, 7)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 'two' and should be a number"):
        join_processes("host:1", index=0)
