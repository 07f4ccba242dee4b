"""Soups: order, copies, what greed keeps; and statistics measured anew."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor.merging import interpolate
from sftjax.anchor.soups import greedy_soup, recalibrate, uniform_soup
from sftjax.core import Aux, Loss, combine
from sftjax.train import compile_step, init, make_step


def model_of(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(20, 15)) * 10.0 ** rng.integers(-6, 6, size=(20, 15))
    values = np.clip(values, -6e4, 6e4)  # float16 ends there
    values.flat[:2] = [-0.0, 0.0] if seed % 2 else [-0.0, -0.0]
    return {"w": jnp.asarray(values, dtype), "count": jnp.int32(3), "key": jax.random.key(0)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("copies", [1, 2, 3, 7, 10])
def test_a_soup_of_copies_is_the_model_to_the_last_bit(dtype, copies):
    """O13."""
    model = model_of(1, dtype)
    soup = uniform_soup([model] * copies)
    assert soup["w"].dtype == dtype
    assert np.asarray(soup["w"]).tobytes() == np.asarray(model["w"]).tobytes()
    assert int(soup["count"]) == 3


def test_the_order_makes_no_difference_to_the_last_bit():
    """O13; adding up float32 in the order given would."""
    models = [model_of(seed) for seed in range(4)]
    soups = {
        np.asarray(uniform_soup(list(order))["w"]).tobytes()
        for order in itertools.permutations(models)
    }
    assert len(soups) == 1
    naive = {
        np.asarray(sum(model["w"] for model in order) / 4).tobytes()
        for order in itertools.permutations(models)
    }
    assert len(naive) > 1


def test_the_soup_is_the_mean():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        leaves = rng.normal(size=(5, 3, 2))
        soup = uniform_soup([{"w": jnp.asarray(leaf)} for leaf in leaves])
        np.testing.assert_allclose(soup["w"], leaves.mean(0), rtol=1e-13)


def quality(params):
    return -float(jnp.sum((params["w"] - 1.0) ** 2))


def test_greed_keeps_what_helps_and_never_ends_below_the_best():
    rng = np.random.default_rng(0)
    for _ in range(20):
        models = [{"w": jnp.asarray(1 + rng.normal(size=3))} for _ in range(6)]
        soup = greedy_soup(models, quality)
        alone = [quality(model) for model in models]
        assert quality(soup.params) >= max(alone)
        assert [trial.score for trial in soup.history if trial.kept][-1] == quality(soup.params)
        assert soup.chosen == tuple(trial.model for trial in soup.history if trial.kept)
        assert [trial.model for trial in soup.history] == sorted(range(6), key=lambda i: -alone[i])
        np.testing.assert_array_equal(
            soup.params["w"], uniform_soup([models[i] for i in soup.chosen])["w"]
        )


def test_greed_by_hand():
    models = [{"w": jnp.array([w])} for w in (0.0, 1.5, 4.0)]
    soup = greedy_soup(models, quality)  # alone: -1, -.25, -9
    assert soup.chosen == (1, 0)  # 1.5 with 0 is .75: -.0625; with 4 it is 1.83: worse
    assert [(trial.model, trial.kept) for trial in soup.history] == [
        (1, True),
        (0, True),
        (2, False),
    ]
    assert soup.history[1].score == pytest.approx(-0.0625)


def objective(params, model_state, batch, key):
    error = jnp.tanh(batch["x"] @ params["trunk"]) @ params["head"] - batch["y"]
    return Loss(jnp.sum(error**2), jnp.float32(len(error))), Aux({})


def test_a_soup_of_runs_from_one_start():
    """Through `make_step`: four runs on noisy labels; the soup beats the mean of its members."""
    rng = np.random.default_rng(0)
    params = {
        "trunk": jnp.asarray(rng.normal(size=(6, 8)) / 3, jnp.float32),
        "head": jnp.zeros((8, 1)),
        "frozen": jnp.arange(3),
    }
    moves = {"trunk": True, "head": True, "frozen": False}
    x = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
    y = jnp.sin(x[:, :1])
    tx = optax.adam(1e-2)
    step = compile_step(make_step(objective, tx))
    runs = []
    for _ in range(4):
        state, fixed = init(params, moves, tx, jax.random.key(0))
        noisy = y[:32] + jnp.asarray(rng.normal(size=(32, 1)), jnp.float32)
        for _ in range(100):
            state, _ = step(state, fixed, {"x": x[:32], "y": noisy})
        runs.append(combine(state.trainable, fixed.frozen))

    def score(params):
        return -float(objective(params, {}, {"x": x[32:], "y": y[32:]}, None)[0].mean)

    alone = [score(run) for run in runs]
    assert score(uniform_soup(runs)) > np.mean(alone)
    assert greedy_soup(runs, score).history[-1].model in range(4)
    assert score(greedy_soup(runs, score).params) >= max(alone)


def forward(params, state, batch, *, train=True, momentum=0.9):
    """Two linear layers, each followed by normalization with running statistics."""
    x, following = batch["x"], {"steps": state["steps"] + 1}
    for layer in ("first", "second"):
        x = x @ params[layer]
        mean, var = jnp.mean(x, 0), jnp.var(x, 0)
        old = state[layer]
        if train:
            following[layer] = {
                "mean": momentum * old["mean"] + (1 - momentum) * mean,
                "var": momentum * old["var"] + (1 - momentum) * var,
            }
        else:
            mean, var, following[layer] = old["mean"], old["var"], old
        x = jnp.tanh((x - mean) / jnp.sqrt(var + 1e-5))
    return following


def model_and_batches(seed=0):
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.normal(size=(4, 4))) for name in ("first", "second")}
    blank = {"mean": jnp.full(4, 50.0), "var": jnp.full(4, 1e4)}
    state = {"first": blank, "second": blank, "steps": jnp.int32(7)}
    batches = [{"x": jnp.asarray(rng.normal(size=(16, 4)) + 2.0)} for _ in range(12)]
    return params, state, batches


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_statistics_become_the_mean_over_the_batches_whatever_they_were(momentum):
    with jax.enable_x64(True):
        params, state, batches = model_and_batches()

        def apply(params, state, batch):
            return forward(params, state, batch, momentum=momentum)

        found = recalibrate(apply, params, state, batches)
        shown = [forward(params, state, batch, momentum=0.0) for batch in batches]
        for layer in ("first", "second"):
            for name in ("mean", "var"):
                wanted = np.mean([np.asarray(one[layer][name]) for one in shown], axis=0)
                np.testing.assert_allclose(found[layer][name], wanted, rtol=1e-10)
        assert int(found["steps"]) == 7


def test_in_single_precision_it_is_within_what_the_docstring_says():
    params, state, batches = model_and_batches()
    slow = recalibrate(lambda p, s, b: forward(p, s, b, momentum=0.99), params, state, batches)
    exact = recalibrate(lambda p, s, b: forward(p, s, b, momentum=0.0), params, state, batches)
    np.testing.assert_allclose(slow["second"]["var"], exact["second"]["var"], rtol=2e-5)


def test_interpolated_variances_are_wrong():
    """Why statistics are measured anew: the features of half-way weights are no mixture."""
    params, state, batches = model_and_batches(0)
    other = {name: -leaf for name, leaf in params.items()}
    ends = [recalibrate(forward, p, state, batches) for p in (params, other)]
    half = interpolate(params, other, 0.5)  # zero weights: no variance at all
    mixed = interpolate(*ends, 0.5)
    measured = recalibrate(forward, half, state, batches)
    np.testing.assert_allclose(measured["first"]["var"], 0.0, atol=1e-6)
    assert float(mixed["first"]["var"].min()) > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform_soup([]), "no model"),
        (lambda: greedy_soup([], quality), "no model"),
        (lambda: uniform_soup([{"w": jnp.ones(2)}, {"w": jnp.ones(3)}]), "has shape"),
        (lambda: uniform_soup([{"w": jnp.ones(2)}, {"w": None}]), "has a leaf at 'w'"),
        (
            lambda: uniform_soup([{"w": jnp.ones(2)}, {"w": jnp.ones(2, jnp.bfloat16)}]),
            "has the dtypes",
        ),
        (lambda: uniform_soup([{"n": jnp.int32(1)}, {"n": jnp.int32(2)}]), "has no mean"),
        (lambda: greedy_soup([{"w": jnp.array([jnp.nan])}], quality), "score of model 0 is nan"),
        (
            lambda: recalibrate(lambda p, s, b: s, {}, {"m": jnp.ones(2)}, [{"x": jnp.ones(1)}]),
            "did not move",
        ),
        (lambda: recalibrate(forward, {}, {"n": jnp.int32(1)}, []), "no float leaf"),
        (lambda: recalibrate(forward, {}, {"m": jnp.ones(2)}, []), "no batch"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()
