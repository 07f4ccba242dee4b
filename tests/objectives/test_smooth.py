"""R3F and SMART: closed forms of a linear model, what carries a gradient, and the slow copy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.core import Aux, Loss
from sftjax.objectives.distill import column, with_outputs
from sftjax.objectives.smooth import (
    bregman,
    r3f,
    slow_copy,
    smart,
    squared_difference,
    symmetric_kl,
)
from sftjax.objectives.text import classification, regression
from sftjax.train.step import compile_step, init, make_step

RNG = np.random.default_rng(0)
ROWS, WIDTH, CLASSES = 8, 6, 4
KEY = jax.random.key(0)


def nothing(params, model_state, batch, key):
    return Loss(0.0, float(len(batch["x"]))), Aux({})


def embed(params, batch):
    return batch["x"] @ params["embed"]


def rest(params, h, batch, key):
    return h @ params["rest"]


def whole(params, batch, key):
    return rest(params, embed(params, batch), batch, key)


def params_of(dtype=np.float32):
    rng = np.random.default_rng(1)
    return {
        "embed": jnp.asarray(rng.normal(size=(5, WIDTH)), dtype),
        "rest": jnp.asarray(rng.normal(size=(WIDTH, CLASSES)), dtype),
    }


def batch_of(dtype=np.float32, **more):
    return {"x": jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, 5)), dtype), **more}


def term_of(objective, name, params, batch, key=KEY):
    return objective(params, {}, batch, key)[1].metrics[name]


def test_symmetric_kl_is_both_divergences_and_survives_float32():
    with jax.enable_x64(True):
        a, b = RNG.normal(size=(2, 5, 7))
        log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (a, b))
        p, q = np.exp(log_p), np.exp(log_q)
        by_hand = np.sum(p * (log_p - log_q), -1) + np.sum(q * (log_q - log_p), -1)
        np.testing.assert_allclose(symmetric_kl(jnp.asarray(a), jnp.asarray(b)), by_hand)
        np.testing.assert_array_equal(symmetric_kl(jnp.asarray(a), jnp.asarray(b)),
                                      symmetric_kl(jnp.asarray(b), jnp.asarray(a)))  # fmt: skip
        near = a + 3e-5 * RNG.normal(size=a.shape)
        exact = np.asarray(symmetric_kl(jnp.asarray(a), jnp.asarray(near)))
    ours = symmetric_kl(jnp.asarray(a, jnp.float32), jnp.asarray(near, jnp.float32))
    np.testing.assert_allclose(ours, exact, rtol=0.05)


@pytest.mark.parametrize("make", [r3f, smart])
@pytest.mark.parametrize("distance", ["kl", "squared"])
def test_a_model_that_does_not_read_its_embeddings_costs_nothing(make, distance):
    def constant(params, h, batch, key):
        return jnp.broadcast_to(params["rest"][0], (len(h), CLASSES))

    objective = make(nothing, embed, constant, 1.0, distance=distance)
    loss, grad = jax.value_and_grad(lambda p: objective(p, {}, batch_of(), KEY)[0].sum)(params_of())
    assert float(loss) == 0.0
    assert all(np.all(np.asarray(leaf) == 0.0) for leaf in jax.tree.leaves(grad))  # not NaN


@pytest.mark.parametrize(("noise", "variance"), [("uniform", 1 / 3), ("normal", 1.0)])
def test_the_mean_of_r3f_is_the_trace_of_the_fisher(noise, variance):
    """To second order symmetric KL is z' W F W' z, F the Fisher information of the logits."""
    scale = 1e-4
    with jax.enable_x64(True):
        params, batch = params_of(np.float64), batch_of(np.float64)
        objective = r3f(nothing, embed, rest, noise=noise, scale=scale)
        keys = jax.random.split(KEY, 3000)
        draws = np.asarray(
            jax.jit(jax.vmap(lambda key: term_of(objective, "r3f", params, batch, key).sum))(keys)
        )
        w = np.asarray(params["rest"])
        p = np.asarray(jax.nn.softmax(whole(params, batch, None)))
        expected = scale**2 * variance * sum(
            np.trace(w @ (np.diag(row) - np.outer(row, row)) @ w.T) for row in p
        )  # fmt: skip
        error = draws.std() / len(draws) ** 0.5
        assert abs(draws.mean() - expected) < 5 * error < 0.1 * expected


def test_smart_climbs_as_the_closed_form_says():
    """For squared differences of a linear model, v = 2 u W W' and z = eta v / (max|v| + eps)."""
    eta, sigma, epsilon = 1e-2, 1e-3, 1e-6
    with jax.enable_x64(True):
        params, batch = params_of(np.float64), batch_of(np.float64)
        w = np.asarray(params["rest"])
        seen = []

        def spy(params, h, batch, key):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), h)
            return rest(params, h, batch, key)

        objective = smart(
            nothing, embed, spy, step_size=eta, sigma=sigma, epsilon=epsilon, distance="squared"
        )
        term = term_of(objective, "smart", params, batch)
        jax.effects_barrier()
        h = np.asarray(embed(params, batch))
        z, u = (min(seen, key=lambda x: abs(np.abs(x - h).max() - size)) - h
                for size in (eta, sigma * 2.5))  # fmt: skip
        v = 2 * u @ w @ w.T
        expected = eta * v / (np.abs(v).max(-1, keepdims=True) + epsilon)
        np.testing.assert_allclose(z, expected, rtol=1e-6)
        assert np.all(np.abs(z) <= eta)
        assert float(term.sum) == pytest.approx(np.sum((z @ w) ** 2), rel=1e-6)
        # Worse than changes of the same size at random.
        others = eta * RNG.choice([-1.0, 1.0], size=(200, *h.shape))
        others = others * (np.linalg.norm(z, axis=-1) / np.linalg.norm(others[0], axis=-1))[:, None]
        assert float(term.sum) > 1.3 * np.mean(np.sum((others @ w) ** 2, (1, 2)))


@pytest.mark.parametrize(("make", "name"), [(r3f, "r3f"), (smart, "smart")])
def test_the_noised_branch_does_not_reach_the_embeddings(make, name):
    objective = make(
        nothing, embed, rest, logits=lambda *args: jax.lax.stop_gradient(whole(*args)),
        **({"scale": 1e-2} if make is r3f else {}),
    )  # fmt: skip
    grad = jax.grad(lambda p: term_of(objective, name, p, batch_of()).sum)(params_of())
    assert np.all(np.asarray(grad["embed"]) == 0.0)
    assert np.any(np.asarray(grad["rest"]) != 0.0)
    through_clean = jax.grad(
        lambda p: term_of(make(nothing, embed, rest), name, p, batch_of()).sum
    )(params_of())
    assert np.any(np.asarray(through_clean["embed"]) != 0.0)


@pytest.mark.parametrize(("make", "name"), [(r3f, "r3f"), (smart, "smart")])
def test_rows_that_do_not_count_and_padding(make, name):
    objective = make(nothing, embed, rest)
    batch = batch_of(valid=jnp.asarray(np.arange(ROWS) < 5, jnp.float32))
    term = term_of(objective, name, params_of(), batch)
    assert float(term.weight) == 5.0
    spoiled = {**batch, "x": batch["x"].at[5:].set(3.0)}
    again = term_of(objective, name, params_of(), spoiled)
    assert float(term.sum) == pytest.approx(float(again.sum), rel=1e-6)
    # Noise does not fall on padding: a model that reads nothing else is not moved.
    tokens = {
        "x": jnp.ones((2, 4, 5)),
        "attention_mask": jnp.asarray([[1, 1, 0, 0], [1, 0, 0, 0]]),
    }

    def last(params, h, batch, key):
        return h[:, -1] @ params["rest"]

    assert float(term_of(make(nothing, embed, last), name, params_of(), tokens).sum) == 0.0


@pytest.mark.parametrize("make", [r3f, smart, lambda o, e, r: bregman(o, whole)])
def test_evaluation_adds_nothing(make):
    labels = jnp.zeros(ROWS, jnp.int32)
    base = classification(whole)
    a = base(params_of(), {}, batch_of(labels=labels), None)
    b = make(base, embed, rest)(params_of(), {}, batch_of(labels=labels), None)
    chex.assert_trees_all_equal(a, b)


def test_shared_outputs_give_the_same_term():
    labels = jnp.zeros(ROWS, jnp.int32)
    plain = r3f(classification(whole), embed, rest, scale=1e-2)
    read = column("logits")
    shared = with_outputs(
        r3f(classification(read), embed, rest, scale=1e-2, logits=read),
        lambda params, batch, key: {"logits": whole(params, batch, key)},
    )
    batch = batch_of(labels=labels)
    results = [
        jax.jit(jax.value_and_grad(lambda p, f=f: f(p, {}, batch, KEY)[0].sum))(params_of())
        for f in (plain, shared)
    ]
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


# Through the step.


def set_up(kind, accumulate=1, decay=0.9):
    params = {**params_of(), "frozen": jnp.eye(5)}
    mask = {"embed": True, "rest": True, "frozen": False}

    def embed_of(params, batch):
        return embed(params, {"x": batch["x"] @ params["frozen"]})

    def apply(params, batch, key):
        return rest(params, embed_of(params, batch), batch, key)

    objective = regression(lambda *args: apply(*args)[:, :1]) if kind == "regression" else (
        classification(apply)
    )  # fmt: skip
    model_state = held = None
    if kind == "bregman":
        objective = bregman(objective, apply, 0.5, decay=decay)
        model_state, held = slow_copy(params, mask)
    elif kind == "smart":
        # At the default sigma the direction carries rounding of a percent in float32.
        objective = smart(objective, embed_of, rest, step_size=1e-2, sigma=1e-2)
    elif kind == "regression":
        objective = r3f(objective, embed_of, rest, distance="squared", scale=1e-2, noise="normal")
    else:
        objective = r3f(objective, embed_of, rest, 1.0, scale=1e-2)
    tx = optax.sgd(0.05)
    state, fixed = init(
        params, mask, tx, jax.random.key(3), model_state=model_state, held_state=held
    )
    return params, state, fixed, compile_step(make_step(objective, tx, accumulate=accumulate))


def batch_at(step, kind):
    rng = np.random.default_rng(step)
    labels = rng.integers(0, CLASSES, 16)
    kept = labels.astype(np.float32 if kind == "regression" else np.int32)
    return {"x": rng.normal(size=(16, 5)).astype(np.float32), "labels": kept}


@pytest.mark.parametrize("kind", ["r3f", "smart", "regression", "bregman"])
def test_the_step_runs_and_eight_devices_equal_one(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    name = {"regression": "r3f", "bregman": "proximal"}.get(kind, kind)
    ends = []
    for sharded in (False, True):
        params, state, fixed, step = set_up(kind)
        if sharded:
            state, fixed = jax.device_put((state, fixed), everywhere)
        for number in range(4):
            batch = batch_at(number, kind)
            state, metrics = step(state, fixed, jax.device_put(batch, rows) if sharded else batch)
            assert np.isfinite(float(metrics[name]))
        assert float(metrics[name]) > 0.0
        assert np.asarray(fixed.frozen["frozen"]).tobytes() == np.eye(5, dtype="f4").tobytes()
        ends.append(jax.tree.map(np.asarray, (state.trainable, state.model_state)))
    chex.assert_trees_all_close(*ends, atol=1e-6)
    assert np.any(ends[0][0]["rest"] != np.asarray(params["rest"]))


def test_the_slow_copy_follows_as_an_average():
    params, state, fixed, step = set_up("bregman", decay=0.9)
    slow, first = np.asarray(params["rest"]), True
    for number in range(5):
        slow = 0.9 * slow + 0.1 * np.asarray(state.trainable["rest"])
        state, metrics = step(state, fixed, batch_at(number, "bregman"))
        assert (abs(float(metrics["proximal"])) < 1e-9) == first  # at the pretrained weights
        first = False
        np.testing.assert_allclose(state.model_state["slow"]["rest"], slow, rtol=1e-5)
    assert state.model_state["slow"]["frozen"] is None
    np.testing.assert_array_equal(params["rest"], params_of()["rest"])  # survives donation


def test_the_slow_copy_holds_the_model_back():
    ends = []
    for weight in (0.0, 5.0):
        params = params_of()
        mask = {"embed": True, "rest": True}
        objective = bregman(classification(whole), whole, weight, decay=1.0)
        moving, held = slow_copy(params, mask)
        tx = optax.sgd(0.05)
        state, fixed = init(
            params, mask, tx, jax.random.key(0), model_state=moving, held_state=held
        )
        step = compile_step(make_step(objective, tx))
        for number in range(20):
            state, metrics = step(state, fixed, batch_at(number, "classes"))
        ends.append(float(metrics["proximal"]))
    assert ends[0] > 3 * ends[1] > 0.0


def test_accumulation_moves_the_slow_copy_once_a_micro_batch():
    _, state, fixed, step = set_up("bregman", accumulate=2, decay=0.5)
    state, _ = step(state, fixed, batch_at(0, "bregman"))
    now = np.asarray(state.trainable["rest"])
    state, _ = step(state, fixed, batch_at(1, "bregman"))
    expected = 0.25 * np.asarray(params_of()["rest"]) + 0.75 * now
    np.testing.assert_allclose(state.model_state["slow"]["rest"], expected, rtol=1e-5)


def test_squared_difference_is_of_the_last_axis():
    a, b = RNG.normal(size=(2, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(squared_difference(a, b), ((a - b) ** 2).sum(-1), rtol=1e-5)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="noise 'gauss' is unknown"):
        r3f(nothing, embed, rest, noise="gauss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="distance 'js' is unknown"):
        smart(nothing, embed, rest, distance="js")  # type: ignore[arg-type]
    for size in (0.0, float("nan")):
        with pytest.raises(ValueError, match="scale is"):
            r3f(nothing, embed, rest, scale=size)
        with pytest.raises(ValueError, match="step_size is"):
            smart(nothing, embed, rest, step_size=size)
    with pytest.raises(ValueError, match="slow copy keeps a share"):
        bregman(nothing, whole, decay=1.5)
    with pytest.raises(ValueError, match="a weight is a finite number"):
        r3f(nothing, embed, rest, -1.0)
    with pytest.raises(ValueError, match="no 'slow' copy"):
        bregman(nothing, whole)(params_of(), {}, batch_of(), KEY)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params_of(), batch_of()))
    for make in (r3f, smart):
        with pytest.raises(ValueError, match="rounded away by embeddings in bfloat16"):
            make(nothing, embed, rest)(half[0], {}, half[1], KEY)
