"""Phases: weights, moments, data and anchor go on; cut and continued is the same run."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor.adamw import adamw
from sftjax.core import Aux, Loss, flatten, map_with_path
from sftjax.train.devices import replicate, spread
from sftjax.train.phase_start import join_late
from sftjax.train.phases import Phase, gradual, lp_ft, run_phases
from sftjax.train.replay_phases import replay_phases
from sftjax.train.step import compile_step, init, make_step

WIDTH, BLOCKS = 6, 3
KEY = jax.random.key(11)


def params_of():
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape) / 3, jnp.float32)

    layer = {str(i): {"kernel": array(WIDTH, WIDTH), "bias": array(WIDTH)} for i in range(BLOCKS)}
    return {"embed": array(WIDTH, WIDTH), "layer": layer, "head": {"kernel": array(WIDTH, 2)}}


def moves(*names):
    """Mask of the leaves whose path starts with one of the names; `""` is all."""
    return map_with_path(lambda path, _: path.startswith(names), params_of())


def objective(params, model_state, batch, key):
    """Noisy regression, so that a wrong key or batch would show."""
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    x = x @ params["embed"]
    for block in params["layer"].values():
        x = x + jnp.tanh(x @ block["kernel"] + block["bias"])
    error = x @ params["head"]["kernel"] - batch["y"]
    return Loss(jnp.sum(error**2), error.shape[0]), Aux({})


def batch_at(step):
    x = np.random.default_rng([3, step]).normal(size=(8, WIDTH)).astype(np.float32)
    return {"x": x, "y": np.sin(x[:, :2])}


def make(tx):
    return compile_step(make_step(objective, tx))


def run(phases, **options):
    return run_phases(params_of(), phases, make, batch_at, KEY, tell=lambda line: None, **options)


def bytes_of(tree):
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(tree).items()}


def plain(trainable, tx, numbers, anchor=None):
    """The loop without phases; returns each state, copied."""
    state, fixed = init(params_of(), trainable, tx, KEY, anchor=anchor)
    step, states = make(tx), []
    for number in numbers:
        state, _ = step(state, fixed, batch_at(number))
        states.append(jax.tree.map(jnp.copy, state))
    return states


def test_a_phase_boundary_that_changes_nothing_changes_no_bit():
    tx = adamw(optax.linear_schedule(1e-2, 0.0, 12), strength=0.3)
    mask = moves("layer/2", "head")
    params = params_of()
    ended = run([Phase("a", mask, tx, 5), Phase("b", mask, tx, 7)], anchor=params)
    anchor = jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, params)
    alone = plain(mask, tx, range(12), anchor)[-1]
    assert bytes_of(ended.end.state.trainable) == bytes_of(alone.trainable)
    assert bytes_of(ended.end.state.opt_state) == bytes_of(alone.opt_state)
    assert int(ended.end.state.step) == 12


def test_frozen_bytes_stay_through_all_phases_and_the_head_goes_on():
    before = bytes_of(params_of())
    tx = optax.adamw(1e-2, weight_decay=0.1)
    probed = run([Phase("lp", moves("head"), tx, 6)])
    tuned = run([
        Phase("lp", moves("head"), tx, 6),
        Phase("ft", moves("layer/1", "head"), tx, 1, reset_optimizer=True),
        Phase("rest", moves("layer/2"), tx, 4, reset_optimizer=True),
    ])  # fmt: skip
    first = bytes_of(probed.params)
    assert {path for path in before if first[path] != before[path]} == {"head/kernel"}
    after = bytes_of(tuned.params)
    still = {"embed", "layer/0/kernel", "layer/0/bias"}
    assert {path for path in before if after[path] == before[path]} == still
    # One update lies between the probed head and the tuned one, which then rests in phase 3.
    gap = np.abs(np.asarray(tuned.params["head"]["kernel"] - probed.params["head"]["kernel"]))
    assert 0 < gap.max() < 0.011 * 1.05
    start = np.abs(np.asarray(params_of()["head"]["kernel"] - probed.params["head"]["kernel"]))
    assert start.max() > 0.03


def test_the_second_phase_starts_from_the_first_ones_weights_step_and_data():
    """Against two plain runs glued by hand."""
    lp, ft = optax.adam(3e-2), optax.adam(1e-2)
    ended = run(lp_ft(moves("head"), moves(""), probe=lp, probe_steps=4, tune=ft, tune_steps=3))
    head = plain(moves("head"), lp, range(4))[-1].trainable["head"]
    state, fixed = init({**params_of(), "head": head}, moves(""), ft, KEY)
    state, step = state._replace(step=jnp.int32(4)), make(ft)
    for number in range(4, 7):
        state, _ = step(state, fixed, batch_at(number))
    assert bytes_of(ended.params) == bytes_of(state.trainable)
    assert [entry["step"] for entry in ended.history] == [4, 7]


@pytest.mark.parametrize("kept", [False, True])
def test_an_update_of_any_phase_is_replayed_to_the_bit(kept, tmp_path):
    tx = adamw(1e-2, strength=0.3)
    phases = [Phase("a", moves("head"), tx, 4), Phase("b", moves("layer/2", "head"), tx, 5)]
    logged = {}

    def watch(event):
        if event["event"] == "update":
            logged[event["update"]] = event["loss"], event["grad_norm"]

    run(phases, anchor=params_of(), folder=tmp_path if kept else None, save_steps=3, watch=watch)
    for number, since in ((1, 0), (3, 3), (4, 4), (8, 6)):  # saved at 3, 4, 6 and 9
        found = replay_phases(
            params_of(), phases, make, batch_at, KEY, number, anchor=params_of(),
            folder=tmp_path if kept else tmp_path / "none",
        )  # fmt: skip
        assert (found.metrics["loss"], found.metrics["grad_norm"]) == logged[number]
        assert int(found.state.step) == number
        assert found.since == (since if kept else 4 * (number >= 4))
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="the run has 9 updates"):
        replay_phases(params_of(), phases, make, batch_at, KEY, 9, anchor=params_of())


@pytest.mark.parametrize("folder", [False, True])
def test_cut_at_a_boundary_and_continued_is_the_uninterrupted_run(folder, tmp_path):
    tx = adamw(optax.linear_schedule(2e-2, 0.0, 11), strength=0.2)
    masks = [moves("head"), moves("layer/2", "head"), moves("layer/1", "layer/2", "head")]
    phases, anchor = gradual(masks, tx, [4, 4, 3]), params_of()
    whole = run(phases, anchor=anchor)
    if folder:
        run(phases[:2], anchor=anchor, folder=tmp_path)
        ended = run(phases, anchor=anchor, folder=tmp_path)
    else:
        cut = run(phases[:2], anchor=anchor)
        kept = bytes_of(cut.end.state.opt_state)
        ended = run(phases, anchor=anchor, start=cut.end)
        assert bytes_of(cut.end.state.opt_state) == kept  # not donated with the next phase
    assert bytes_of(ended.params) == bytes_of(whole.params)
    assert bytes_of(ended.end.state.opt_state) == bytes_of(whole.end.state.opt_state)
    assert ended.end.late == whole.end.late


def test_a_kill_inside_a_phase_resumes_there(tmp_path):
    tx = optax.adam(1e-2)
    phases = gradual([moves("head"), moves("layer/2", "head")], tx, 4)
    whole = run(phases)

    class Crash(Exception):
        pass

    def crashing(number):
        if number == 6:
            raise Crash
        return batch_at(number)

    options = {"folder": tmp_path, "save_steps": 1, "tell": lambda line: None}
    with pytest.raises(Crash):
        run_phases(params_of(), phases, make, crashing, KEY, **options)
    seen = []

    def watched(number):
        seen.append(number)
        return batch_at(number)

    resumed = run_phases(params_of(), phases, make, watched, KEY, **options)
    assert seen == [6, 7]
    assert bytes_of(resumed.params) == bytes_of(whole.params)


def test_the_anchor_is_the_pretrained_value_in_every_phase():
    """Zero gradients and a pull: leaves go back to theta_0, not to the start of the phase."""

    def still(params, model_state, batch, key):
        return Loss(0.0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), 1.0), Aux({})

    def away(params, model_state, batch, key):
        return Loss(-sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), 1.0), Aux({})

    params, mask = params_of(), moves("layer/2", "head")
    seen = []

    def making(tx):
        seen.append(tx)
        return compile_step(make_step([away, still][len(seen) - 1], tx))

    push = adamw(1e-1, max_grad_norm=None, strength=0.0, weight_decay=0.0)
    pull = adamw(1e-1, max_grad_norm=None, strength=1.0, weight_decay=0.0)
    anchor = {**params, "head": {"kernel": None}}  # new: never held
    phases = [Phase("push", mask, push, 5), Phase("pull", mask, pull, 10, True)]
    ended = run_phases(params, phases, making, batch_at, KEY, anchor=anchor, tell=lambda line: None)
    gone = np.asarray(ended.params["layer"]["2"]["bias"] - params["layer"]["2"]["bias"])
    np.testing.assert_allclose(gone, 0.5 * 0.9**10, rtol=1e-4)
    head = np.asarray(ended.params["head"]["kernel"] - params["head"]["kernel"])
    np.testing.assert_allclose(head, 0.5, rtol=1e-4)


def test_a_leaf_that_joins_late_is_updated_as_by_a_new_adam():
    """And the one that was there goes on as if nothing had joined (no clipping couples them)."""
    params = {"old": jnp.ones(5), "new": jnp.linspace(0.5, 1.5, 5)}

    def separate(params, model_state, batch, key):
        return sum(
            (Loss(jnp.sum(leaf**2 * (2.0 + jnp.sin(batch["t"]))), 0.5) for leaf in params.values()),
            start=Loss(0.0, 0.0),
        ), Aux({})

    tx = optax.adamw(optax.linear_schedule(1e-2, 1e-3, 60), weight_decay=0.1)
    make_separate = lambda tx: compile_step(make_step(separate, tx))  # noqa: E731
    times = lambda step: {"t": np.float32(step)}  # noqa: E731
    phases = [
        Phase("one", {"old": True, "new": False}, tx, 30),
        Phase("both", {"old": True, "new": True}, tx, 20),
    ]
    ended = run_phases(params, phases, make_separate, times, KEY, tell=lambda line: None)

    def alone(leaf, first, last):
        schedule = optax.linear_schedule(1e-2, 1e-3, 60)
        own = optax.adamw(lambda count: schedule(count + first), weight_decay=0.1)
        state = own.init(leaf)
        for number in range(first, last):
            grad = 2 * leaf * (2.0 + jnp.sin(jnp.float32(number)))
            updates, state = own.update(grad, state, leaf)
            leaf = optax.apply_updates(leaf, updates)
        return leaf

    np.testing.assert_allclose(ended.params["old"], alone(params["old"], 0, 50), rtol=1e-5)
    np.testing.assert_allclose(ended.params["new"], alone(params["new"], 30, 50), rtol=1e-5)


def test_three_generations_of_leaves_each_have_their_clock():
    tx = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda count: 1.0 + count))
    late = {"a": 0, "b": 4, "c": 9, "frozen": None}
    wrapped = join_late(tx, late)
    grads = {"a": jnp.ones(2), "b": jnp.full(2, 3.0), "c": jnp.full(2, -2.0), "frozen": None}
    state = tx.init(grads)
    count = jnp.int32(9)
    state = (
        state[0]._replace(count=count, mu={**grads, "c": jnp.zeros(2)}),
        state[1]._replace(count=count),
    )
    updates, after = jax.jit(wrapped.update)(grads, state)
    for name, age in (("a", 9), ("b", 5), ("c", 0)):
        own = tx.init(grads[name])
        own = (
            own[0]._replace(count=jnp.int32(age), mu=state[0].mu[name], nu=state[0].nu[name]),
            own[1]._replace(count=count),
        )
        expected, following = tx.update(grads[name], own)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-6)
        np.testing.assert_allclose(after[0].nu[name], following[0].nu, rtol=1e-6)
    assert updates["frozen"] is None
    assert int(after[0].count) == int(after[1].count) == 10


def test_a_new_phase_brings_its_own_hyperparameters():
    tx = [optax.inject_hyperparams(optax.sgd)(learning_rate=rate, momentum=0.0) for rate in (1, 2)]

    def unit(params, model_state, batch, key):
        return Loss(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), 1.0), Aux({})

    mask = moves("head")
    ended = run_phases(
        params_of(), [Phase("a", mask, tx[0], 1), Phase("b", mask, tx[1], 1)],
        lambda tx: compile_step(make_step(unit, tx)), batch_at, KEY, tell=lambda line: None,
    )  # fmt: skip
    gone = np.asarray(params_of()["head"]["kernel"] - ended.params["head"]["kernel"])
    np.testing.assert_allclose(gone, 3.0, rtol=1e-5)


def test_frozen_leaves_in_bfloat16_move_again_in_full_precision():
    tx = optax.sgd(1e-6)
    masks = [moves("head"), moves("layer/2")]
    ended = run(
        [Phase("a", masks[0], tx, 1), Phase("b", masks[1], tx, 1)], frozen_dtype=jnp.bfloat16
    )
    assert bytes_of(ended.params)["embed"] == bytes_of(params_of())["embed"]
    chex.assert_trees_all_close(ended.params, params_of(), atol=1e-4)
    gap = np.abs(
        np.asarray(ended.params["layer"]["2"]["kernel"]) - params_of()["layer"]["2"]["kernel"]
    )
    assert gap.max() < 1e-4  # rounding to bfloat16 would be ten times that


def test_one_compilation_a_phase_and_each_is_told():
    traced, told = [], []

    def counting(tx):
        step = make_step(objective, tx)

        def traced_step(*args):
            traced.append(len(made))
            return step(*args)

        made.append(tx)
        return compile_step(traced_step)

    made = []
    tx = optax.adam(1e-2)
    phases = gradual([moves("head"), moves("layer/2", "head"), moves("")], tx, 3)
    run_phases(params_of(), phases, counting, batch_at, KEY, tell=told.append)
    assert traced == [1, 2, 3]
    assert len(told) == 3
    assert told[1] == (
        "phase 2/3 'unfreeze-2': 3 of 8 leaves move (54 parameters), updates 3 to 6, "
        "kept optimizer; compiles once"
    )


def test_eight_devices_equal_one():
    tx = adamw(1e-2, strength=0.3)
    phases = gradual([moves("head"), moves("layer/2", "head")], tx, 3)
    one = run(phases, anchor=params_of())
    eight = run_phases(
        replicate(params_of()), phases, make, spread(batch_at), KEY, anchor=params_of(),
        place=replicate, tell=lambda line: None,
    )  # fmt: skip
    chex.assert_trees_all_close(one.params, jax.device_get(eight.params), atol=1e-6)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (lambda tx: [], "list of phases is empty"),
        (lambda tx: [Phase("x", moves("head"), tx, 0)], r"phase 1 \('x'\) has num_steps 0"),
        (lambda tx: [Phase("x", moves("none"), tx, 3)], r"phase 1 \('x'\) moves nothing"),
        (lambda tx: [Phase("x", {"head": True}, tx, 3)], "differ at embed, head"),
        (
            lambda tx: [
                Phase("x", moves("head"), optax.sgd(0.1, momentum=0.9), 3),
                Phase("y", moves("head"), tx, 3),
            ],
            r"phase 2 \('y'\) keeps the optimizer of 'x', but its tx has another form",
        ),
    ],
)
def test_phases_that_cannot_be_meant(phases, message):
    def never(tx):
        raise AssertionError("an error must come before anything is made")

    with pytest.raises(ValueError, match=message):
        run_phases(params_of(), phases(optax.adam(0.1)), never, batch_at, KEY)


def test_builders_refuse_what_does_not_grow():
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match="phase 2 unfreezes nothing"):
        gradual([moves("head"), moves("head")], tx, 3)
    with pytest.raises(ValueError, match="head/kernel moves in phase 1 and no longer in phase 2"):
        lp_ft(moves("head"), moves("layer"), probe=tx, probe_steps=1, tune=tx, tune_steps=1)
    with pytest.raises(ValueError, match="2 numbers for 1 phases"):
        gradual([moves("head")], tx, [1, 2])
    with pytest.raises(ValueError, match="give folder="):
        run([Phase("x", moves("head"), tx, 1)], checkpoints=None)
