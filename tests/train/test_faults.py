"""What a run does when it is asked to stop, when numbers are not finite, and how it is replayed."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import Aux, Loss
from sftjax.train import (
    Interrupted,
    compile_step,
    diagnosis,
    fit,
    guard,
    init,
    make_step,
    open_checkpoints,
    replay,
    stop_on_signals,
)

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-2))


def objective(params, model_state, batch, key):
    noise = jax.random.normal(key, batch["x"].shape) * 0.1
    error = (batch["x"] + noise) @ params["trunk"]["w"] + params["head"]["b"] - batch["y"]
    mean = {"mean": 0.9 * model_state["mean"] + 0.1 * jnp.mean(batch["x"])}
    return Loss(jnp.sum(error**2), error.shape[0]), Aux({}, mean)


def batch_at(step):
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(8, 4)).astype(np.float32)
    return {"x": x, "y": x[:, :3], "index": np.arange(8 * step, 8 * step + 8, dtype=np.int32)}


def poisoned(*numbers):
    def at(step):
        batch = batch_at(step)
        if step in numbers:
            batch["x"][2, 1] = np.nan
        return batch

    return at


def start():
    params = {"trunk": {"w": jnp.zeros((4, 3))}, "head": {"b": jnp.zeros(3)}}
    mask = {"trunk": {"w": True}, "head": {"b": True}}
    return init(params, mask, TX, jax.random.key(3), model_state={"mean": jnp.zeros(())})


PLAIN = make_step(objective, TX)
STEPS = {name: compile_step(guard(PLAIN, name)) for name in ("stop", "skip", "rollback")}
TOLD = diagnosis(make_step(objective, optax.identity()))


def bits(tree):
    def raw(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

    return [raw(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_guard_changes_nothing_where_all_is_finite():
    plain = fit(compile_step(PLAIN), *start(), batch_at, 12)
    for name, step in STEPS.items():
        held = fit(step, *start(), batch_at, 12, on_nan="stop")
        for a, b in zip(
            jax.tree.leaves(held.state[:4]), jax.tree.leaves(plain.state[:4]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7, err_msg=name)
    assert plain.faults == ()


def test_stop_names_the_rows_the_input_and_the_first_bad_leaf():
    with pytest.raises(FloatingPointError) as caught:
        fit(STEPS["stop"], *start(), poisoned(4), 10, diagnose=TOLD)
    said = str(caught.value)
    assert "loss is nan at update 4" in said
    assert "the batch's 'x' is not finite in row 2" in said
    assert "gradient is not finite in 2 of 2 leaves, first head/b" in said
    assert "32, 33, 34" in said
    assert "--on-nan" in said


def test_a_guarded_state_halts_before_the_bad_update():
    state, fixed = start()
    for number in range(7):
        if number == 4:
            before = bits(state._replace(step=state.step * 0))
        state, _ = STEPS["stop"](state, fixed, poisoned(4)(number))
    assert int(~state.step) == 4
    assert bits(state._replace(step=state.step * 0)) == before


def test_skip_is_the_run_without_that_update_and_counts_it():
    state, fixed = start()
    for number in range(10):
        if number in (3, 6):
            state = state._replace(step=state.step + 1)
        else:
            state, _ = STEPS["skip"](state, fixed, batch_at(number))
    events = []
    run = fit(STEPS["skip"], *start(), poisoned(3, 6), 10, on_nan="skip", log_steps=5,
              watch=events.append)  # fmt: skip
    assert bits(run.state) == bits(state)
    assert [(e["update"], e["did"], e["rows"][0]) for e in run.faults] == [
        (3, "skipped", 24), (6, "skipped", 48)]  # fmt: skip
    assert [entry["skipped"] for entry in run.history] == [1, 1]
    assert all(np.isfinite(entry["loss"]) for entry in run.history)
    assert sum(event["event"] == "fault" for event in events) == 2


def test_skipping_does_not_go_on_for_ever():
    with pytest.raises(FloatingPointError, match="25 updates in a row"):
        fit(STEPS["skip"], *start(), poisoned(*range(4, 60)), 60, on_nan="skip")


def test_rollback_goes_on_from_the_save_with_the_batches_after_the_bad_one(tmp_path):
    options = {"on_nan": "rollback", "save_steps": 5, "log_steps": 5}
    with open_checkpoints(tmp_path / "a") as checkpoints:
        run = fit(STEPS["rollback"], *start(), poisoned(7), 12, checkpoints=checkpoints, **options)
    assert run.faults[0]["did"] == "rolled back to 5"
    assert int(run.state.step) == 12
    state, fixed = start()
    for number, batch in enumerate([0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14]):
        assert int(state.step) == number
        state, _ = STEPS["rollback"](state, fixed, batch_at(batch))
    assert bits(run.state) == bits(state)
    # Interrupted after the rollback, the run still knows which batches it passed over.
    with open_checkpoints(tmp_path / "b") as checkpoints, pytest.raises(Interrupted):
        fit(STEPS["rollback"], *start(), poisoned(7), 12, checkpoints=checkpoints, **options,
            interrupted=lambda step: step == 9)  # fmt: skip
    with open_checkpoints(tmp_path / "b") as checkpoints:
        on = fit(STEPS["rollback"], *start(), poisoned(7), 12, checkpoints=checkpoints, **options)
    assert bits(on.state) == bits(run.state)
    assert on.faults == run.faults


def test_rollback_without_a_save_goes_back_to_the_start_and_gives_up_in_the_end(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FloatingPointError, match="8 rollbacks did not help"):
            fit(STEPS["rollback"], *start(), poisoned(*range(500)), 12, checkpoints=checkpoints,
                on_nan="rollback")  # fmt: skip
        with pytest.raises(ValueError, match="give checkpoints"):
            fit(STEPS["rollback"], *start(), batch_at, 12, on_nan="rollback")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_the_whole_one(number, tmp_path):
    def evaluate(state, fixed):
        return {"eval_loss": float(state.trainable["head"]["b"][0])}

    options = {"log_steps": 4, "eval_steps": 6, "evaluate": evaluate}
    whole = fit(STEPS["stop"], *start(), batch_at, 15, **options)

    def signalling(step):
        if step == 9:
            os.kill(os.getpid(), number)
        return batch_at(step)

    with (
        open_checkpoints(tmp_path) as checkpoints,
        stop_on_signals() as asked,
        pytest.raises(Interrupted, match="after update 10: saved") as caught,
    ):
        fit(STEPS["stop"], *start(), signalling, 15, checkpoints=checkpoints,
            interrupted=asked, **options)  # fmt: skip
    assert (caught.value.step, caught.value.saved) == (10, True)
    events = []
    with open_checkpoints(tmp_path) as checkpoints:
        rest = fit(STEPS["stop"], *start(), batch_at, 15, checkpoints=checkpoints,
                   watch=events.append, **options)  # fmt: skip
    assert events[0] == {"event": "resume", "step": 10}
    assert bits(rest.state) == bits(whole.state)
    assert bits(rest.best) == bits(whole.best)
    assert rest.history == whole.history


def test_a_second_ctrl_c_is_a_keyboard_interrupt():
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        assert asked(1)
        os.kill(os.getpid(), signal.SIGINT)
        asked(2)

    with stop_on_signals() as asked, pytest.raises(KeyboardInterrupt):
        twice()


@pytest.mark.parametrize("kept", [True, False])
def test_a_replayed_update_has_the_logged_loss_to_the_bit(kept, tmp_path):
    logged = {}

    def watch(event):
        if event["event"] == "update":
            logged[event["update"]] = event["loss"], event["grad_norm"]

    states = {}
    plain, fixed = start()
    for number in range(11):
        states[number] = bits(plain)
        plain, _ = STEPS["stop"](plain, fixed, batch_at(number))
    with open_checkpoints(tmp_path) as checkpoints:
        fit(STEPS["stop"], *start(), batch_at, 11, checkpoints=checkpoints, save_steps=4,
            watch=watch)  # fmt: skip
        for number in (10, 8, 5, 0):
            found = replay(STEPS["stop"], *start(), batch_at, number,
                           checkpoints=checkpoints if kept else None)  # fmt: skip
            assert (found.metrics["loss"], found.metrics["grad_norm"]) == logged[number]
            assert bits(found.state) == states[number]
            np.testing.assert_array_equal(found.batch["x"], batch_at(number)["x"])
            assert found.since == (8 if kept and number >= 8 else 0)


def test_waiting_for_data_is_measured():
    import time

    def slow(step):
        time.sleep(0.02)
        return batch_at(step)

    events = []
    run = fit(STEPS["stop"], *start(), slow, 20, log_steps=10, watch=events.append)
    last = [event for event in events if event["event"] == "record"][-1]
    assert last["waiting"] > 0.5
    assert 0.2 < run.waited <= run.seconds
    assert last["rows_per_second"] == pytest.approx(8 * last["updates_per_second"])
