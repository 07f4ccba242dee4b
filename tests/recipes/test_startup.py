"""What a command says of the time to its first update."""

import re
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import Aux, Loss
from sftjax.recipes import startup, stepping
from sftjax.train import compile_step, guard, init, make_mesh, make_step


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
        time.sleep(0.5)
        jax.jit(lambda x: jnp.sin(x) + 0.123456)(jnp.ones(3))
        jax.monitoring.record_event_duration_secs(startup._COMPILING[1], 0.4)  # a slow one
    heard = startup._clocks[0].parts["compile"]
    found = seconds(startup.told())
    assert found["load"] == pytest.approx(0.3, abs=0.15)
    assert heard > 0.4  # jax's own events have the names that are listened to
    assert found["compile"] == pytest.approx(heard, abs=0.06)
    assert found[startup.MEASURING] < 0.5
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


@pytest.mark.parametrize("mesh", [None, "data=1"])
def test_a_step_compiles_while_something_is_measured_and_not_again(mesh):
    traced, measured = [], []

    def objective(params, model_state, batch, key):
        traced.append(threading.current_thread())
        return Loss(jnp.sum((params["w"] - batch["x"]) ** 2), 2.0), Aux({})

    tx = optax.adam(0.1)
    state, fixed = init({"w": jnp.zeros(2)}, {"w": True}, tx, jax.random.key(0))
    on = None if mesh is None else make_mesh(mesh, jax.devices()[:1])
    step = compile_step(guard(make_step(objective, tx)), on)
    batch = {"x": np.ones(2, np.float32)}
    startup.begin()
    with startup.part("measured"):
        stepping.compiled_while(lambda: measured.append(time.sleep(0.2)), step, state, fixed, batch)
    assert measured == [None]
    waited = dict(startup._clocks[0].parts)
    assert waited["measured"] > 0.15  # what the thread compiled was not taken off
    state, _ = step(state, fixed, jax.device_put(batch))
    assert startup._clocks[0].parts == waited  # nothing was compiled
    assert len(traced) == 1
    assert traced[0] is not threading.main_thread()
    assert int(state.step) == 1


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
