"""The loop and its checkpoints: resumed equals uninterrupted, early stop, telling errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import Aux, Loss
from sftjax.train import (
    Interrupted,
    claim,
    compile_step,
    fit,
    init,
    make_mesh,
    make_step,
    open_checkpoints,
    place_state,
    replay,
    replicate,
    spread,
)

TARGET = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)


def objective(params, model_state, batch, key):
    """Noisy regression, so that a wrong key or batch on resume would show."""
    noise = jax.random.normal(key, batch["x"].shape) * 0.1
    error = (batch["x"] + noise) @ params["trunk"]["w"] + params["head"]["b"] - batch["y"]
    return Loss(jnp.sum(error**2), error.shape[0]), Aux({})


def batch_at(step):
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(8, 4)).astype(np.float32)
    return {"x": x, "y": x @ TARGET}


def start(tx):
    params = {"trunk": {"w": jnp.zeros((4, 3))}, "head": {"b": jnp.zeros(3)}}
    mask = {"trunk": {"w": True}, "head": {"b": True}}
    return init(params, mask, tx, jax.random.key(3))


@pytest.fixture(scope="module")
def compiled():
    tx = optax.adamw(3e-2)
    return tx, compile_step(make_step(objective, tx))


def evaluate(state, fixed):
    del fixed
    return {"eval_loss": float(jnp.sum((state.trainable["trunk"]["w"] - TARGET) ** 2))}


def assert_same_bytes(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_resumed_equals_uninterrupted(compiled, tmp_path):
    tx, step = compiled
    options = {"evaluate": evaluate, "eval_steps": 6, "save_steps": 5, "log_steps": 4}
    with open_checkpoints(tmp_path / "whole") as checkpoints:
        whole = fit(step, *start(tx), batch_at, 20, checkpoints=checkpoints, **options)

    class Crash(Exception):
        pass

    def crashing(number):
        if number == 13:
            raise Crash
        return batch_at(number)

    with open_checkpoints(tmp_path / "cut") as checkpoints, pytest.raises(Crash):
        fit(step, *start(tx), crashing, 20, checkpoints=checkpoints, **options)
    with open_checkpoints(tmp_path / "cut") as checkpoints:
        resumed = fit(step, *start(tx), batch_at, 20, checkpoints=checkpoints, **options)

    assert_same_bytes(whole.state, resumed.state)
    assert_same_bytes(whole.best, resumed.best)
    assert whole.history == resumed.history
    assert whole.best_step == resumed.best_step


PROGRAMS = []
"""Names of what was compiled, or taken from the compilation cache, as jax says it."""


def heard(event, duration, **about):
    if event == "/jax/core/compile/backend_compile_duration":
        PROGRAMS.append(about.get("fun_name", ""))


jax.monitoring.register_event_duration_secs_listener(heard)


@pytest.mark.parametrize("where", ["one device", "every device", "a mesh"])
def test_a_resumed_run_takes_the_program_of_the_run_before(where, tmp_path):
    """Fresh or restored, the state is committed, laid out and typed alike."""
    tx, mesh = optax.inject_hyperparams(optax.adamw)(3e-2), make_mesh("data=4,fsdp=2")

    def named(state, fixed, batch):
        return make_step(objective, tx)(state, fixed, batch)

    step = compile_step(named, mesh) if where == "a mesh" else compile_step(named)
    at = spread(batch_at, mesh) if where == "a mesh" else batch_at

    def begin():
        state, fixed = start(tx)
        if where == "a mesh":
            return place_state(state, fixed, mesh)
        return (state, fixed) if where == "one device" else replicate((state, fixed))

    PROGRAMS.clear()
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(Interrupted):
        fit(step, *begin(), at, 5, checkpoints=checkpoints, interrupted=lambda number: number == 3)
    with open_checkpoints(tmp_path) as checkpoints:
        fit(step, *begin(), at, 5, checkpoints=checkpoints)
        replay(step, *begin(), at, 4, checkpoints=checkpoints)
        replay(step, *begin(), at, 2)
    assert sum("named" in name for name in PROGRAMS) == 1


def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(compiled, tmp_path):
    tx, step = compiled
    with open_checkpoints(tmp_path) as checkpoints:
        fit(step, *start(tx), batch_at, 10, checkpoints=checkpoints, save_steps=5)
    for file in (tmp_path / "10" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"torn")
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.warns(UserWarning, match="checkpoint 10 cannot be read"):
            saved = checkpoints.latest(start(tx)[0])
        assert saved is not None
        assert int(saved.state.step) == 5


def test_early_stop_keeps_the_best(compiled):
    tx, step = compiled
    scores = iter([3.0, 1.0, 2.0, 2.5, 0.1])
    seen = []

    def scripted(state, fixed):
        seen.append(jax.tree.map(np.asarray, state.trainable))
        return {"eval_loss": next(scores)}

    run = fit(
        step, *start(tx), batch_at, 50, evaluate=scripted, eval_steps=3, patience=2, log_steps=3
    )
    assert int(run.state.step) == 12  # evaluations at 3, 6 (best), 9, 12: two without a new best
    assert run.best_step == 6
    assert_same_bytes(run.best, seen[1])


def test_history_is_the_mean_of_every_step(compiled):
    tx, step = compiled
    each = fit(step, *start(tx), batch_at, 6, log_steps=1).history
    means = fit(step, *start(tx), batch_at, 6, log_steps=3).history
    assert [entry["step"] for entry in means] == [3, 6]
    np.testing.assert_allclose(
        means[1]["loss"], np.mean([entry["loss"] for entry in each[3:]]), rtol=1e-6
    )


def test_the_first_update_is_told_of_before_the_second_begins(compiled):
    tx, step = compiled
    state, fixed = start(tx)
    told = []

    def telling(state, fixed, batch):
        told.append("begins")
        return step(state, fixed, batch)

    def watch(event):
        if event["event"] == "update":
            told.append(event["update"])

    fit(telling, state, fixed, batch_at, 4, watch=watch)
    # The later ones are read while the device is at work on the next.
    assert told == ["begins", 0, "begins", "begins", 1, "begins", 2, 3]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_update(compiled):
    tx, step = compiled

    def poisoned(number):
        batch = batch_at(number)
        return {**batch, "y": batch["y"] * (np.nan if number == 4 else 1.0)}

    with pytest.raises(FloatingPointError, match="loss is nan at update 4"):
        fit(step, *start(tx), poisoned, 10)


def test_evaluate_must_report_the_metric_that_decides(compiled):
    tx, step = compiled
    with pytest.raises(ValueError, match="eval_f1"):
        fit(step, *start(tx), batch_at, 2, evaluate=evaluate, metric="eval_f1")


def test_a_folder_belongs_to_one_run(tmp_path):
    folder = tmp_path / "run"
    assert claim(folder, {"seed": 0, "data": "a.csv"}) is False
    assert claim(folder, {"seed": 0, "data": "a.csv"}) is True
    with pytest.raises(ValueError, match=r"another run \(seed: 0 there, 1 now\)"):
        claim(folder, {"seed": 1, "data": "a.csv"})
    assert json.loads((folder / "run.json").read_text())["seed"] == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        claim(tmp_path / "other", {"seed": 0})
