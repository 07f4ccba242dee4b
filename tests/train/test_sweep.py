"""The sweep's surface: grids from text, stacked states, memory, the loop, the tidy table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import Aux, Loss, nbytes
from sftjax.train import init, make_step
from sftjax.train.grid import grid, name_of, parse_grid, stack_settings
from sftjax.train.sweep import (
    compile_sweep_step,
    make_sweep_step,
    spread_runs,
    stack_states,
    sweep_memory,
    take_run,
)
from sftjax.train.sweep_loop import fit_sweep, tidy

TARGET = np.array([1.0, -1.0, 0.5], np.float32)


def objective(params, model_state, batch, key):
    """Least squares whose rows carry weights, so that means over updates must be weighted."""
    error = batch["x"] @ params["w"] - batch["y"]
    error = error + 0.01 * jax.random.normal(key, error.shape)
    return Loss(jnp.sum(batch["valid"] * error**2), jnp.sum(batch["valid"])), Aux({})


def batch_at(number):
    rng = np.random.default_rng([5, number])
    x = rng.normal(size=(8, 3)).astype(np.float32)
    valid = (np.arange(8) <= number % 8).astype(np.float32)
    return {"x": x, "y": x @ TARGET, "valid": valid}


def start(runs):
    def one(seed):
        params = {"w": jax.random.normal(jax.random.key(seed), (3,))}
        return init(params, {"w": True}, optax.sgd(0.1), jax.random.key(seed))

    states = stack_states(one(run["seed"])[0] for run in runs)
    return states, one(0)[1], stack_settings(runs)


@pytest.fixture(scope="module")
def step():
    return compile_sweep_step(
        make_sweep_step(lambda s: make_step(objective, optax.sgd(s["learning_rate"])))
    )


def test_a_grid_is_the_product_with_the_seeds_together():
    runs = grid(seeds=(5, 3), dose=(0, 1, 4), learning_rate=(1e-4, 5e-4))
    assert len(runs) == 12
    assert runs[:3] == [
        {"dose": 0.0, "learning_rate": 1e-4, "seed": 5},
        {"dose": 0.0, "learning_rate": 1e-4, "seed": 3},
        {"dose": 0.0, "learning_rate": 5e-4, "seed": 5},
    ]
    assert len({name_of(run) for run in runs}) == 12
    assert grid() == [{"seed": 0}]
    assert (
        name_of({"learning_rate": 1e-4, "seed": 12345678}) == "learning_rate=0.0001 seed=12345678"
    )


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("seeds=8,dose=0:4:5", grid(8, dose=(0, 1, 2, 3, 4))),
        ("dose=0|1|4", grid(1, dose=(0, 1, 4))),
        (" learning_rate = 1e-4 | 5e-4 , seeds = 3|5 ", grid((3, 5), learning_rate=(1e-4, 5e-4))),
        ("seeds=3|", None),
        ("seeds=1:3:3,strength=0.5", grid((1, 2, 3), strength=0.5)),
        ("dose=0:1:11", grid(dose=[n / 10 for n in range(11)])),
        ("dose=4:0:3", grid(dose=(4, 2, 0))),
    ],
)
def test_a_text_is_its_grid(text, runs):
    if runs is None:
        with pytest.raises(ValueError, match="cannot read"):
            parse_grid(text)
    else:
        assert parse_grid(text) == runs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"cannot read '' in the sweep"),
        ("dose", r"cannot read 'dose' .* name=values"),
        ("dose=", r"cannot read 'dose='"),
        ("dose=a|b", r"cannot read dose=a\|b"),
        ("dose=0:4", r"cannot read dose=0:4; a range is start:stop:count"),
        ("dose=0:4:1", r"a count of 2 or more"),
        ("dose=0:4:2.5", r"a count of 2 or more"),
        ("dose=0:4:inf", r"a count of 2 or more"),
        ("dose=0:4:3|5", r"a range is start:stop:count"),
        ("dsoe=1", r"'dsoe' cannot be swept; .* did you mean 'dose'"),
        ("dose=1,dose=2", r"dose comes twice"),
        ("dose=1|1", r"dose holds 1 2 times"),
        ("dose=-1", r"dose is -1 in the grid; it must be finite and 0 or more"),
        ("learning_rate=0", r"learning_rate is 0 in the grid; it must be finite and above 0"),
        ("dose=nan", r"dose is nan"),
        ("dose=1,strength=1", r"the dose or the strength, not both"),
        ("seeds=0", r"seeds is 0"),
        ("seeds=1.5", r"a seed is 1.5"),
        ("seeds=nan", r"a seed is nan"),
        ("seeds=-1|2", r"seeds are \[-1, 2\]"),
        ("seeds=1|1", r"seed holds 1 2 times"),
    ],
)
def test_a_text_that_is_no_grid_is_quoted(text, words):
    with pytest.raises(ValueError, match=words):
        parse_grid(text)


def test_other_axes_can_be_made_known():
    assert parse_grid("p=0.5", known=["p"]) == [{"p": 0.5, "seed": 0}]
    with pytest.raises(ValueError, match="'p' cannot be swept"):
        grid(p=0.5)
    with pytest.raises(ValueError, match="dose has no values"):
        grid(dose=())
    with pytest.raises(ValueError, match=r"seeds are \[\]"):
        grid(seeds=())


def test_settings_that_do_not_stack_are_named():
    with pytest.raises(ValueError, match="the list of runs is empty"):
        stack_settings([])
    with pytest.raises(ValueError, match="run 1 and run 0 differ in dose"):
        stack_settings([{"seed": 0}, {"seed": 1, "dose": 1.0}])
    with pytest.raises(ValueError, match=r"run 0 \(dose=nan seed=0\): dose is nan"):
        stack_settings([{"dose": float("nan"), "seed": 0}])


def test_states_that_do_not_stack_are_named():
    def state(tx, **params):
        tree = {name: jnp.zeros(size) for name, size in params.items()}
        return init(tree, jax.tree.map(lambda _: True, tree), tx, jax.random.key(0))[0]

    plain = state(optax.sgd(0.1), w=3)
    with pytest.raises(ValueError, match="the list of states is empty"):
        stack_states([])
    with pytest.raises(ValueError, match=r"run 1 differs from run 0's at trainable/w .*\[4\]"):
        stack_states([plain, state(optax.sgd(0.1), w=4)])
    with pytest.raises(ValueError, match=r"run 2 differs .* at opt_state/0/trace/w"):
        stack_states([plain, plain, state(optax.sgd(0.1, momentum=0.9), w=3)])
    with pytest.raises(ValueError, match="run 1 differs from run 0's at the nesting"):
        stack_states([plain, state(optax.chain(optax.identity(), optax.sgd(0.1)), w=3)])


def test_memory_is_what_the_states_take():
    runs, tx = grid(5), optax.adam(1e-3)
    params = {"w": jnp.zeros((7, 3)), "b": jnp.zeros(3, jnp.bfloat16), "frozen": jnp.zeros(999)}
    mask = {"w": True, "b": True, "frozen": False}
    state, _ = init(params, mask, tx, jax.random.key(0))
    states = stack_states([state] * 5)
    expected = sweep_memory(state.trainable, tx, len(runs))
    assert expected.total == nbytes(states.trainable) + nbytes(states.opt_state)
    assert expected.trainable == 4 * 24
    assert str(expected).startswith("5 runs x (trainable 96 B + optimizer 196 B) = 1.5 kB")
    with pytest.raises(ValueError, match="runs is 0"):
        sweep_memory(state.trainable, tx, 0)


def test_the_loop_is_the_step_again_and_again(step):
    runs = grid(2, learning_rate=(0.05, 0.2))
    states, fixed, settings = start(runs)
    losses, weights = [], []
    for number in range(7):
        states, metrics = step(states, fixed, settings, batch_at(number))
        losses.append(np.asarray(metrics["loss"], np.float64))
        weights.append(np.asarray(metrics["weight"], np.float64))
    seen = []
    events = []
    fitted = fit_sweep(step, *start(runs), batch_at, 7, log_steps=3, log=seen.append,
                       watch=events.append)  # fmt: skip
    updates = [event for event in json.loads(json.dumps(events)) if event["event"] == "update"]
    np.testing.assert_array_equal([event["loss"] for event in updates], losses)
    assert [event["step"] for event in events if event["event"] == "record"] == [3, 6, 7]
    assert events[0] == {"event": "start", "step": 0, "runs": [name_of(run) for run in runs]}
    np.testing.assert_array_equal(fitted.states.trainable["w"], states.trainable["w"])
    assert [record["step"] for record in fitted.history] == [3, 6, 7]
    assert seen == fitted.history
    for record, (a, b) in zip(fitted.history, [(0, 3), (3, 6), (6, 7)], strict=True):
        mean = np.average(losses[a:b], axis=0, weights=np.stack(weights[a:b]))
        np.testing.assert_allclose(record["loss"], mean, rtol=1e-12)
        np.testing.assert_allclose(record["weight"], np.mean(weights[a:b], axis=0))
    assert fitted.failed == {}
    assert fitted.seconds > 0
    assert int(take_run(fitted.states, 3).step) == 7


def test_the_loop_goes_on_from_where_the_states_stand(step):
    runs = grid(2, learning_rate=0.1)
    whole = fit_sweep(step, *start(runs), batch_at, 6)
    half = fit_sweep(step, *start(runs), batch_at, 4)
    rest = fit_sweep(step, half.states, *start(runs)[1:], batch_at, 6)
    np.testing.assert_array_equal(whole.states.trainable["w"], rest.states.trainable["w"])
    with pytest.raises(ValueError, match="the states stand at update 6, the run ends at 5"):
        fit_sweep(step, rest.states, *start(runs)[1:], batch_at, 5)


def test_a_run_that_fails_is_named_and_the_others_go_on(step):
    runs, events = grid(2, learning_rate=(0.05, 1e30)), []
    with pytest.warns(
        UserWarning, match=r"run learning_rate=\S+ seed=\d failed: .* at update"
    ) as w:
        fitted = fit_sweep(step, *start(runs), batch_at, 6, log_steps=2, watch=events.append)
    assert len(w) == 2
    assert list(fitted.failed) == [name_of(run) for run in runs[2:]]
    assert all(update == 1 for update in fitted.failed.values())
    faults = [event for event in events if event["event"] == "fault"]
    assert [(event["run"], event["update"]) for event in faults] == list(fitted.failed.items())
    rows = tidy(runs, fitted.history[-1])
    assert [np.isfinite(row["loss"]) for row in rows] == [True, True, False, False]
    well = fit_sweep(step, *start(grid(4, learning_rate=0.05)), batch_at, 6)
    np.testing.assert_array_equal(fitted.states.trainable["w"][:2], well.states.trainable["w"][:2])


def test_when_every_run_fails_the_loop_stops(step):
    runs = grid(4, learning_rate=1e30)
    calls = []

    def counted(number):
        calls.append(number)
        return batch_at(number)

    with (
        pytest.warns(UserWarning, match="failed"),
        pytest.raises(FloatingPointError, match=r"every run has failed, .*seed=3"),
    ):
        fit_sweep(step, *start(runs), counted, 50)
    assert len(calls) < 5


def test_runs_and_states_must_agree(step):
    runs = grid(4, learning_rate=0.1)
    states, fixed, settings = start(runs)
    with pytest.raises(ValueError, match="3 settings for 4 states"):
        fit_sweep(step, states, fixed, stack_settings(runs[:3]), batch_at, 3)
    unnamed = {"learning_rate": settings["learning_rate"]}
    with pytest.raises(ValueError, match="two runs have the same settings"):
        fit_sweep(step, states, fixed, unnamed, batch_at, 3)
    with pytest.raises(ValueError, match="4 runs cannot be dealt out evenly over 8 devices"):
        spread_runs(states, fixed, settings)


def test_a_tidy_table_has_a_row_a_run():
    runs = grid(2, dose=(0, 4))
    rows = tidy(runs, {"loss": jnp.arange(4.0), "step": 10})
    assert rows[3] == {"dose": 4.0, "seed": 1, "loss": 3.0, "step": 10}
    with pytest.raises(ValueError, match=r"loss has shape \(3,\); expected \(4,\)"):
        tidy(runs, {"loss": np.zeros(3)})
    with pytest.raises(ValueError, match="dose is a setting and a result"):
        tidy(runs, {"dose": np.zeros(4)})
