"""What a command says of the time to its first update."""

import os
import re
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import Aux, Loss
from sftjax.recipes import startup, stepping
from sftjax.train import (
    chosen_mesh,
    compile_step,
    fit,
    init,
    make_step,
    settle,
    spread,
    use_mesh,
)


@pytest.fixture(autouse=True)
def no_clock_is_left():
    yield
    startup._clocks.clear()


def seconds(said: str) -> dict[str, float]:
    total = re.fullmatch(r"first update after ([\d.]+) s: (.*)", said)
    assert total is not None, said
    parts = dict(re.fullmatch(r"(.*) ([\d.]+) s", one).groups() for one in total[2].split(", "))
    return {"all": float(total[1]), **{name: float(value) for name, value in parts.items()}}


def test_parts_add_up_and_what_a_part_compiles_is_not_its_own():
    startup.begin()
    with startup.part("load"):
        time.sleep(0.3)
    with startup.part(startup.MEASURING):
        time.sleep(0.9)
        jax.jit(lambda x: jnp.sin(x) + 0.123456)(jnp.ones(3))
        jax.monitoring.record_event_duration_secs(startup._COMPILING[1], 0.4)  # a slow one
    heard = startup._clocks[0].parts["compile"]
    found = seconds(startup.told())
    assert found["load"] == pytest.approx(0.3, abs=0.15)
    assert heard > 0.4  # jax's own events have the names that are listened to
    assert found["compile"] == pytest.approx(heard, abs=0.06)
    assert 0.5 <= found[startup.MEASURING] < 0.9
    assert sum(found.values()) - found["all"] == pytest.approx(found["all"], abs=0.3)  # rounded
    assert startup.told() == ""  # once


def test_a_command_that_measures_nothing_first_does_not_speak_of_it():
    startup.begin()
    assert list(seconds(startup.told())) == [
        "all",
        "import",
        "load",
        "compile",
        "data and the rest",
    ]


PROGRAMS = []
"""What was compiled, or taken from the compilation cache, and by which thread."""


def heard(event, duration, **about):
    if event == "/jax/core/compile/backend_compile_duration":
        PROGRAMS.append((about.get("fun_name", ""), threading.current_thread()))


jax.monitoring.register_event_duration_secs_listener(heard)


@pytest.mark.parametrize("mesh", ["", "data=-1"])
def test_a_step_compiles_while_something_is_measured_and_not_again(mesh):
    """The loop begins with the very program: what the state lies on is settled before."""
    measured = []

    def objective(params, model_state, batch, key):
        return Loss(jnp.sum((params["w"] - batch["x"]) ** 2), 2.0), Aux({})

    tx = optax.adam(0.1)
    bare = make_step(objective, tx)

    def named(state, fixed, batch):
        return bare(state, fixed, batch)

    begun = init({"w": jnp.zeros(2)}, {"w": True}, tx, jax.random.key(0))
    try:
        use_mesh(mesh)
        state, fixed = settle(*begun)
        step = compile_step(named, chosen_mesh())
        at = spread(lambda number: {"x": np.ones((8, 2), np.float32)})
        PROGRAMS.clear()
        startup.begin()
        with startup.part("measured"):
            stepping.compiled_while(
                lambda: measured.append(time.sleep(0.2)), step, state, fixed, at(0)
            )
        assert measured == [None]
        # What the thread compiled was not taken off.
        assert startup._clocks[0].parts["measured"] > 0.15
        run = fit(step, state, fixed, lambda number: jax.device_put(at(number)), 2)
    finally:
        use_mesh("")
    assert int(run.state.step) == 2
    (compiling,) = [thread for name, thread in PROGRAMS if "named" in name]
    assert compiling is not threading.main_thread()


def test_what_cannot_be_compiled_is_said_when_the_work_is_done():
    done = []
    step = jax.jit(lambda state, fixed, batch: state @ batch)
    with pytest.raises(TypeError, match="contracting dimensions"):
        stepping.compiled_while(lambda: done.append(1), step, jnp.ones(2), None, jnp.ones(3))
    assert done == [1]


def test_where_compiling_tries_kernels_out_the_work_is_done_alone(monkeypatch):
    monkeypatch.setattr(stepping, "platform", lambda: "gpu")
    done = []
    stepping.compiled_while(lambda: done.append(1), None, None, None, None)
    assert done == [1]


def test_a_program_that_was_not_written_whole_is_compiled_and_written_again(tmp_path):
    said = "import jax; from sftjax.recipes.startup import keep_compiled; keep_compiled();"
    said += "print(jax.jit(lambda x: x * 2.5)(2.0))"
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip

    def start():
        found = subprocess.run(
            [sys.executable, "-c", said],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert float(found.stdout) == 5.0
        return found.stderr, {path: path.read_bytes() for path in tmp_path.glob("*-cache")}

    _, programs = start()
    assert programs
    for path, whole in programs.items():
        path.write_bytes(whole[: len(whole) // 2])  # as a full disk leaves it
    words, again = start()
    assert "Error reading" not in words
    assert {p: len(x) for p, x in again.items()} == {p: len(x) for p, x in programs.items()}
    dated = {path: path.stat().st_mtime_ns for path in again}
    start()
    assert {path: path.stat().st_mtime_ns for path in again} == dated  # whole ones stay
