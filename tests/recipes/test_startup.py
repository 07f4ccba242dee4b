"""What a command says of the time to its first update."""

import re
import time

import jax
import jax.numpy as jnp
import pytest

from sftjax.recipes import startup


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
