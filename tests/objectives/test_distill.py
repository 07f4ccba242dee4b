"""Distillation against its closed forms, and through the step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor.decay import anchor_of
from sftjax.anchor.dose import distillation_weight_of, remaining
from sftjax.core import Aux, Loss, combine
from sftjax.objectives.distill import (
    channel_importance,
    column,
    distill_features,
    distill_logits,
    with_outputs,
    with_term,
)
from sftjax.objectives.text import classification, multi_label, regression
from sftjax.train.reference import with_reference
from sftjax.train.step import compile_step, init, make_step

RNG = np.random.default_rng(0)
ROWS, WIDTH, CLASSES = 16, 6, 4
X = RNG.normal(size=(ROWS, WIDTH))
W = RNG.normal(size=(WIDTH, CLASSES))
W0 = RNG.normal(size=(WIDTH, CLASSES))


def nothing(params, model_state, batch, key):
    """An objective of zero over the rows that count."""
    valid = batch.get("valid", np.ones(len(batch["x"])))
    return Loss(0.0, jnp.sum(valid)), Aux({})


def linear(params, batch, key):
    return batch["x"] @ params


def term_of(objective, params, batch):
    return objective(params, {}, batch, None)[1].metrics["distill"]


def kl_of(params, reference_params, **options):
    batch = {"x": jnp.asarray(X), "reference_logits": jnp.asarray(X @ reference_params)}
    return term_of(distill_logits(nothing, linear, 1.0, **options), params, batch)


def test_small_divergences_are_half_the_fisher_quadratic_both_ways():
    with jax.enable_x64(True):
        delta = 1e-3 * RNG.normal(size=W0.shape)
        p0 = np.exp(X @ W0) / np.exp(X @ W0).sum(-1, keepdims=True)
        away = X @ delta
        fisher = np.einsum("nk,nk,nk->", p0, away, away) - np.sum(np.sum(p0 * away, -1) ** 2)
        forward = float(kl_of(jnp.asarray(W0 + delta), W0).sum)
        backward = float(kl_of(jnp.asarray(W0), W0 + delta).sum)
        assert forward / (fisher / 2) == pytest.approx(1.0, abs=2e-3)
        assert backward / (fisher / 2) == pytest.approx(1.0, abs=2e-3)
        assert forward != backward


def test_the_pretrained_model_is_the_target():
    """KL(p0 || p), not KL(p || p0), by hand."""
    with jax.enable_x64(True):
        log_p, log_p0 = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (X @ W, X @ W0))
        by_hand = np.sum(np.exp(log_p0) * (log_p0 - log_p))
        assert float(kl_of(jnp.asarray(W), W0).sum) == pytest.approx(by_hand, rel=1e-10)


def test_temperature_squared_keeps_the_gradient_in_scale():
    """For large T the gradient tends to that of |centred z - z0|^2 / 2K, whatever T."""
    with jax.enable_x64(True):
        batch = {"x": jnp.asarray(X), "reference_logits": jnp.asarray(X @ W0)}

        def grad(temperature):
            objective = distill_logits(nothing, linear, 1.0, temperature)
            return np.asarray(jax.grad(lambda w: objective(w, {}, batch, None)[0].sum)(W))

        away = X @ (W - W0)
        limit = X.T @ (away - away.mean(-1, keepdims=True)) / CLASSES
        np.testing.assert_allclose(grad(1e4), limit, atol=1e-3 * np.abs(limit).max())
        ratio = np.linalg.norm(grad(50.0)) / np.linalg.norm(grad(100.0))
        assert ratio == pytest.approx(1.0, abs=0.05)  # without T squared it would be 4


@pytest.mark.parametrize("weights", [None, np.array([0.7, 0.1, 0.1, 0.1])])
def test_features_cost_nothing_at_the_pretrained_weights(weights):
    batch = {"x": jnp.asarray(X), "reference_features": jnp.asarray(X) @ jnp.asarray(W0)}
    objective = distill_features(nothing, linear, 1.0, weights)
    loss, grad = jax.value_and_grad(lambda w: objective(w, {}, batch, None)[0].sum)(jnp.asarray(W0))
    assert float(loss) == 0.0
    assert np.all(np.asarray(grad) == 0.0)  # not NaN
    moved = term_of(objective, jnp.asarray(W), batch)
    shares = np.full(CLASSES, 0.25) if weights is None else weights
    by_hand = np.sum(shares * (X @ (W - W0)) ** 2)
    assert float(moved.sum) == pytest.approx(by_hand, rel=1e-5)


def test_channels_matter_by_how_the_loss_rises_without_them():
    features, head = RNG.normal(size=(8, CLASSES)), RNG.normal(size=(CLASSES, 3))
    labels = RNG.integers(0, 3, 8)

    def loss(features):
        log_p = jax.nn.log_softmax(features @ head)
        return Loss(-jnp.sum(jnp.take_along_axis(log_p, labels[:, None], 1)), 8.0)

    rises = []
    for j in range(CLASSES):
        without = features.copy()
        without[:, j] = 0.0
        rises.append(float(loss(jnp.asarray(without)).mean - loss(jnp.asarray(features)).mean))
    expected = np.exp(rises) / np.exp(rises).sum()
    found = channel_importance(loss, jnp.asarray(features))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert float(found.sum()) == pytest.approx(1.0)
    scalar = channel_importance(lambda f: loss(f).mean, jnp.asarray(features))
    np.testing.assert_allclose(found, scalar)


@pytest.mark.parametrize("dose", [0.5, 1.0, 4.0])
def test_the_dose_leaves_its_share_of_the_travel(dose):
    """Squared error with the output as the feature: the minimum is at w0 + remaining (w* - w0)."""
    with jax.enable_x64(True):
        w0, goal = RNG.normal(size=(2, WIDTH, 1))
        batch = {
            "x": jnp.asarray(X),
            "labels": jnp.asarray((X @ goal)[:, 0]),
            "reference_features": jnp.asarray(X @ w0),
        }
        objective = distill_features(regression(linear), linear, distillation_weight_of(dose))
        there = jnp.asarray(w0 + remaining(dose) * (goal - w0))
        grad = jax.grad(lambda w: objective(w, {}, batch, None)[0].sum)
        # The base loss is summed in float32.
        assert np.abs(grad(there)).max() < 1e-5 * np.abs(grad(jnp.asarray(w0))).max()


def test_filler_rows_and_padding_change_nothing():
    batch = {"x": X, "reference_logits": X @ W0, "reference_features": X @ W0}
    filled = {k: np.concatenate([v, np.full((3, v.shape[1]), 7.0)]) for k, v in batch.items()}
    filled["valid"] = (np.arange(ROWS + 3) < ROWS).astype(np.float32)
    for make in (distill_logits, distill_features):
        objective = make(nothing, linear, 0.5)
        a, b = (objective(jnp.asarray(W), {}, data, None)[0] for data in (batch, filled))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    tokens = RNG.normal(size=(3, 5, WIDTH))
    mask = (np.arange(5) < np.array([[5], [2], [3]])).astype(np.int32)

    def padded(extra):
        wide = np.concatenate([tokens, np.full((3, extra, WIDTH), 3.0)], 1)
        where = np.concatenate([mask, np.zeros((3, extra), np.int32)], 1)
        return {"x": wide, "attention_mask": where, "reference_features": wide @ W0,
                "reference_logits": wide @ W0}  # fmt: skip

    for make in (distill_logits, distill_features):
        objective = make(nothing, linear, 1.0, counts=lambda batch: batch["attention_mask"])
        short, long = (term_of(objective, jnp.asarray(W), padded(n)) for n in (0, 4))
        np.testing.assert_allclose(short, long, rtol=1e-5)
        assert float(short.weight) == (10.0 if make is distill_logits else 3.0)


def test_the_term_is_added_as_a_mean_whatever_the_loss_counts():
    labels = RNG.integers(0, 2, (ROWS, CLASSES)).astype(np.float32)
    batch = {"x": jnp.asarray(X), "labels": labels, "reference_logits": jnp.asarray(X @ W0)}
    base, _ = multi_label(linear)(jnp.asarray(W), {}, batch, None)
    assert float(base.weight) == ROWS * CLASSES
    loss, aux = distill_logits(multi_label(linear), linear, 0.3)(jnp.asarray(W), {}, batch, None)
    expected = float(base.mean) + 0.3 * float(aux.metrics["distill"].mean)
    assert float(loss.mean) == pytest.approx(expected, rel=1e-5)
    assert set(aux.metrics) == {"subset_accuracy", "distill"}
    empty = {**batch, "valid": jnp.zeros(ROWS)}
    loss, _ = distill_logits(multi_label(linear), linear, 0.3)(jnp.asarray(W), {}, empty, None)
    assert float(loss.sum) == 0.0


# Through the step: a trunk that moves, the old head held still, a fresh head for the task.


def trunk(params, batch):
    return jnp.tanh(jnp.tanh(batch["x"] @ params["below"]) @ params["trunk"])


def logits_of(params, batch, key=None):
    return trunk(params, batch) @ params["head"]


def old_logits(params, batch, key=None):
    return trunk(params, batch) @ params["old_head"]


def params_of(width=16):
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "below": jax.random.normal(keys[0], (width, width)) / width**0.5,
        "trunk": jax.random.normal(keys[1], (width, width)) / width**0.5,
        "old_head": jax.random.normal(keys[2], (width, 5)),
        "head": jax.random.normal(keys[3], (width, 3)),
    }


def batch_at(step, rows=16, width=16):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(rows, width)).astype(np.float32)
    return {
        "x": x,
        "labels": (x[:, 0] > 0).astype(np.int32) + (x[:, 1] > 0).astype(np.int32),
        "valid": (np.arange(rows) % 5 > 0).astype(np.float32),
    }


def set_up(kind, weight, accumulate=1):
    params = params_of()
    mask = {"below": False, "trunk": True, "old_head": False, "head": True}
    anchor = anchor_of(params, mask, new=["head"])
    tx = optax.sgd(0.05)
    state, fixed = init(params, mask, tx, jax.random.key(1), anchor=anchor)
    objective = classification(logits_of)
    if kind == "logits":
        objective = distill_logits(objective, old_logits, weight, 2.0)
        outputs, name = (lambda p, b: old_logits(p, b)), "reference_logits"
    else:
        objective = distill_features(objective, lambda p, b, k: trunk(p, b), weight)
        outputs, name = trunk, "reference_features"
    step = with_reference(make_step(objective, tx, accumulate=accumulate), outputs, name)
    return params, state, fixed, compile_step(step)


def run(kind, weight, accumulate=1, steps=20, place=lambda state, fixed: (state, fixed, batch_at)):
    params, state, fixed, step = set_up(kind, weight, accumulate)
    state, fixed, at = place(state, fixed)
    metrics = {}
    for number in range(steps):
        state, metrics = step(state, fixed, at(number))
        if number == 0:
            assert abs(float(metrics["distill"])) < 1e-6  # nothing has moved yet
    return params, combine(state.trainable, fixed.frozen), metrics


@pytest.mark.parametrize(("kind", "weights"), [("logits", (0, 1, 4)), ("features", (0, 10, 40))])
def test_the_step_stays_nearer_with_more_weight_and_keeps_frozen_bytes(kind, weights):
    drifts = []
    for weight in weights:
        params, after, metrics = run(kind, weight)
        drifts.append(float(metrics["distill"]))
        for path in ("below", "old_head"):
            assert np.asarray(after[path]).tobytes() == np.asarray(params[path]).tobytes()
        assert np.any(np.asarray(after["trunk"] != params["trunk"]))
    assert drifts[0] > 1.3 * drifts[1] > 1.69 * drifts[2] > 0.0


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_accumulation_and_eight_devices_equal_the_plain_step(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def spread(state, fixed):
        state, fixed = jax.device_put((state, fixed), whole)
        return state, fixed, lambda number: jax.device_put(batch_at(number), rows)

    results = [
        jax.tree.map(np.asarray, run(kind, 1.0, steps=4, **options)[1])
        for options in ({}, {"accumulate": 4}, {"place": spread})
    ]
    chex.assert_trees_all_close(results[0], results[1], atol=1e-6)
    chex.assert_trees_all_close(results[0], results[2], atol=1e-6)


def flops_of(objective, batch):
    def total(params):
        return objective(params, {}, batch, None)[0].sum

    params = params_of(64)
    params["head"] = jnp.ones((64, 3))
    lowered = jax.jit(jax.value_and_grad(total)).lower(params)
    return lowered.compile().cost_analysis()["flops"]


def test_one_forward_and_with_shared_outputs_one_backward():
    """XLA merges the two forward passes, not the two backward ones; with_outputs has one of each.

    Of two square layers the forward costs 2 products and the backward 3 (no gradient of the input).
    """
    batch = batch_at(0, rows=2048, width=64)
    batch["reference_logits"] = np.zeros((2048, 3), np.float32)

    def apply(params, batch, key):
        return (batch["x"] @ params["below"]) @ params["trunk"] @ params["head"]

    base = flops_of(classification(apply), batch)
    twice = flops_of(distill_logits(classification(apply), apply, 1.0), batch)
    read = column("logits")
    shared = with_outputs(
        distill_logits(classification(read), read, 1.0),
        lambda params, batch, key: {"logits": apply(params, batch, key)},
    )
    assert twice / base == pytest.approx(8 / 5, rel=0.05)
    assert flops_of(shared, batch) / base == pytest.approx(1.0, rel=0.05)
    params = {**params_of(64), "head": jnp.ones((64, 3))}
    plain = distill_logits(classification(apply), apply, 1.0)
    grads = [jax.grad(lambda p, f=f: f(p, {}, batch, None)[0].sum)(params) for f in (plain, shared)]
    chex.assert_trees_all_close(*grads, rtol=1e-4, atol=1e-2)


def test_bfloat16_logits_are_compared_in_float32():
    batch = {"x": jnp.asarray(X, jnp.bfloat16), "reference_logits": jnp.asarray(X @ W0)}
    term = term_of(distill_logits(nothing, linear, 1.0), jnp.asarray(W, jnp.bfloat16), batch)
    assert term.sum.dtype == jnp.float32


def test_what_cannot_be_distilled():
    batch = {"x": jnp.asarray(X), "reference_logits": jnp.asarray(X @ W0)}
    w = jnp.asarray(W)
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="a weight is a finite number"):
            distill_logits(nothing, linear, weight)
    for temperature in (0.0, float("inf")):
        with pytest.raises(ValueError, match="temperature is"):
            distill_logits(nothing, linear, 1.0, temperature)
    with pytest.raises(ValueError, match="no column 'reference_logits'"):
        term_of(distill_logits(nothing, linear, 1.0), w, {"x": X})
    with pytest.raises(ValueError, match=r"has shape \(16, 4\) and the model's output \(16, 2\)"):
        term_of(distill_logits(nothing, linear, 1.0), w[:, :2], batch)
    two = distill_logits(distill_logits(nothing, linear, 1.0), linear, 1.0)
    with pytest.raises(ValueError, match="two terms report the metric 'distill'"):
        term_of(two, w, batch)
    features = {"x": batch["x"], "reference_features": batch["reference_logits"]}
    with pytest.raises(ValueError, match="the features have 4 channels"):
        term_of(distill_features(nothing, linear, 1.0, np.ones(3)), w, features)
    tokens = {
        "x": jnp.ones((2, 3, WIDTH)),
        "attention_mask": jnp.ones((2, 3)),
        "reference_features": jnp.ones((2, 3, CLASSES)),
        "reference_logits": jnp.ones((2, 3, CLASSES)),
    }
    with pytest.raises(ValueError, match="some of them padding"):
        term_of(distill_features(nothing, linear, 1.0), w, tokens)
    with pytest.raises(ValueError, match="say which of them count"):
        term_of(distill_logits(nothing, linear, 1.0), w, tokens)
    with pytest.raises(ValueError, match=r"counts gives shape \(2,\)"):
        term_of(distill_logits(nothing, linear, 1.0, counts=lambda batch: jnp.ones(2)), w, tokens)
    with pytest.raises(ValueError, match="has a column 'x' already"):
        with_outputs(nothing, lambda p, b, k: {"x": p})(w, {}, batch, None)


def test_any_term_can_be_added():
    objective = with_term(nothing, lambda params, batch, key: Loss(2.0, 4.0), 3.0, "extra")
    loss, aux = objective({}, {}, {"x": X}, None)
    assert float(loss.mean) == 1.5
    assert float(aux.metrics["extra"].mean) == 0.5
