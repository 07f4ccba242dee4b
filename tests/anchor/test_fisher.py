"""The Fisher against closed forms and Jacobians, in float64; and what it must not cost."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor.fisher import fisher
from sftjax.core import flatten

FEATURES, CLASSES = 5, 3


def linear(params, batch):
    return batch["x"] @ params["kernel"] + params["bias"]


def two_layers(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["trunk"]["kernel"])
    return hidden @ params["head"]["kernel"]


def linear_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(FEATURES, CLASSES))),
        "bias": jnp.asarray(rng.normal(size=CLASSES)),
    }


def deep_params():
    rng = np.random.default_rng(1)
    return {
        "trunk": {"kernel": jnp.asarray(rng.normal(size=(FEATURES, 4)))},
        "head": {"kernel": jnp.asarray(rng.normal(size=(4, CLASSES)))},
    }


def everywhere(params):
    return jax.tree.map(lambda _: True, params)


def rows_of(count, seed=2):
    return np.random.default_rng(seed).normal(size=(count, FEATURES))


def streamed(x, size, **columns):
    """Cut into batches of one size; the last is filled up with wild rows that must not count."""
    for start in range(0, len(x), size):
        real = len(x[start : start + size])
        fill = size - real
        valid = np.r_[np.ones(real), np.zeros(fill)].astype(np.float32)
        batch = {"x": np.concatenate([x[start : start + size], np.full((fill, FEATURES), 7.0)])}
        for name, column in columns.items():
            batch[name] = np.r_[column[start : start + size], np.zeros(fill, column.dtype)]
        yield batch | {"valid": valid, "index": np.where(valid, start, -1)}


@pytest.fixture
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("size", "chunk"), [(23, 8), (8, 3), (5, 1), (30, 100)])
def test_logistic_regression_is_exact(size, chunk):
    """O4: F of a weight is the mean of x^2 p (1 - p), however the rows are cut."""
    params, x = linear_params(), rows_of(23)
    found = fisher(linear, params, everywhere(params), streamed(x, size), chunk=chunk)
    p = np.asarray(jax.nn.softmax(linear(params, {"x": x})))
    spread = p * (1 - p)
    np.testing.assert_allclose(found["kernel"], (x**2).T @ spread / len(x), rtol=1e-12)
    np.testing.assert_allclose(found["bias"], spread.mean(0), rtol=1e-12)


@pytest.mark.usefixtures("_float64")
def test_any_model_equals_its_jacobian_row_by_row():
    params, x = deep_params(), rows_of(7)
    found = fisher(two_layers, params, everywhere(params), streamed(x, 4), chunk=3)
    expected = jax.tree.map(np.zeros_like, params)
    for row in x:
        log_p = lambda params, row=row: jax.nn.log_softmax(two_layers(params, {"x": row}))  # noqa: E731
        jacobian, p = jax.jacrev(log_p)(params), np.exp(np.asarray(log_p(params)))
        expected = jax.tree.map(
            lambda total, j, p=p: total + np.tensordot(p, np.asarray(j) ** 2, 1) / len(x),
            expected,
            jacobian,
        )
    chex.assert_trees_all_close(found, expected, rtol=1e-12)


@pytest.mark.usefixtures("_float64")
def test_squared_batch_gradients_are_a_batch_too_small():
    """The negative control of O4: with the model's own labels and B = 25, about 1/25."""
    params, x, size = linear_params(), rows_of(1000), 25
    y = np.asarray(jax.random.categorical(jax.random.key(3), linear(params, {"x": x})))
    exact = fisher(linear, params, everywhere(params), [{"x": x}], chunk=100)

    def loss(params, x, y):
        picked = jnp.take_along_axis(jax.nn.log_softmax(linear(params, {"x": x})), y[:, None], 1)
        return -picked.mean()

    grads = jax.vmap(jax.grad(loss), (None, 0, 0))(
        params, x.reshape(-1, size, FEATURES), y.reshape(-1, size)
    )
    squared = jax.tree.map(lambda g: (g**2).mean(0), grads)
    ratio = float(squared["kernel"].sum() / exact["kernel"].sum())
    assert 0.03 < ratio < 0.06


@pytest.mark.usefixtures("_float64")
def test_sampled_labels_are_unbiased_and_the_datas_own_are_not():
    params, x = linear_params(), np.tile(rows_of(20), (400, 1))
    exact = fisher(linear, params, everywhere(params), [{"x": x[:20]}])
    sampled = fisher(
        linear, params, everywhere(params), streamed(x, 2000),
        labels="sampled", key=jax.random.key(0), chunk=500,
    )  # fmt: skip
    for found, true in zip(jax.tree.leaves(sampled), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(found, true, rtol=0.1)
        assert np.abs(np.asarray(found) / np.asarray(true) - 1).max() > 1e-4  # drawn, not summed
    labels = np.asarray(jnp.argmin(linear(params, {"x": x[:20]}), -1), np.int32)
    given = fisher(
        linear, params, everywhere(params), streamed(x[:20], 6, labels=labels), labels="given"
    )
    error = np.eye(CLASSES)[labels] - np.asarray(jax.nn.softmax(linear(params, {"x": x[:20]})))
    np.testing.assert_allclose(given["kernel"], (x[:20] ** 2).T @ error**2 / 20, rtol=1e-12)
    assert float(given["kernel"].sum() / exact["kernel"].sum()) > 2.0  # where the model is wrong


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("labels", ["expected", "given"])
def test_tokens_that_count_add_up_within_a_row(labels):
    params, rng = linear_params(), np.random.default_rng(4)
    x = rng.normal(size=(3, 4, FEATURES))
    valid = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]], np.float32)
    y = np.where(valid > 0, rng.integers(0, CLASSES, (3, 4)), -100).astype(np.int32)
    batch = {"x": x, "valid": valid, "labels": y}
    found = fisher(linear, params, everywhere(params), [batch], labels=labels, chunk=2)
    p = np.asarray(jax.nn.softmax(linear(params, batch)))
    if labels == "expected":  # tokens are independent, so cross terms vanish in expectation
        rows = np.einsum("btf,btc->bfc", x**2 * valid[..., None], p * (1 - p))
    else:
        error = valid[..., None] * (np.eye(CLASSES)[np.maximum(y, 0)] - p)
        rows = np.einsum("btf,btc->bfc", x, error) ** 2
    np.testing.assert_allclose(found["kernel"], rows.sum(0) / 2, rtol=1e-12)  # two rows count


def test_draws_do_not_depend_on_the_chunk_nor_on_the_devices():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), deep_params())
    batch = {"x": rows_of(24).astype(np.float32)}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    for labels in ("sampled", "expected"):
        options = {"labels": labels, "key": jax.random.key(5)}
        one = fisher(two_layers, params, everywhere(params), [batch], chunk=24, **options)
        cut = fisher(two_layers, params, everywhere(params), [batch], chunk=7, **options)
        eight = fisher(two_layers, whole, everywhere(params), [spread], chunk=8, **options)
        chex.assert_trees_all_close(one, cut, rtol=1e-5)
        chex.assert_trees_all_close(one, jax.device_get(eight), rtol=1e-5, atol=1e-6)
    again = fisher(
        two_layers, params, everywhere(params), [batch], labels="sampled", key=jax.random.key(6)
    )
    sampled = fisher(
        two_layers, params, everywhere(params), [batch], labels="sampled", key=jax.random.key(5)
    )
    assert float(jnp.abs(again["head"]["kernel"] - sampled["head"]["kernel"]).max()) > 1e-4


def test_the_anchor_says_which_leaves_and_the_frozen_cost_no_gradient():
    @jax.custom_vjp
    def trunk(x, kernel):
        return jnp.tanh(x @ kernel)

    def refuse(*_):
        raise AssertionError("the frozen trunk was differentiated")

    trunk.defvjp(lambda x, kernel: (trunk(x, kernel), None), refuse)

    def model(params, batch):
        return trunk(batch["x"], params["trunk"]["kernel"]) @ params["head"]["kernel"]

    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), deep_params())
    anchor = {"trunk": {"kernel": None}, "head": {"kernel": params["head"]["kernel"]}}
    found = fisher(model, params, anchor, [{"x": rows_of(6).astype(np.float32)}])
    assert list(flatten(found)) == ["head/kernel"]
    assert found["head"]["kernel"].dtype == jnp.float32  # of bfloat16 params
    chex.assert_trees_all_equal(
        found,
        fisher(
            model,
            params,
            {"trunk": {"kernel": False}, "head": {"kernel": True}},
            [{"x": rows_of(6).astype(np.float32)}],
        ),
    )
    with pytest.raises(AssertionError, match="was differentiated"):  # the probe works
        fisher(model, params, everywhere(params), [{"x": rows_of(6).astype(np.float32)}])


def test_one_trace_a_shape_and_the_params_stay_the_callers():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), linear_params())
    traces = []

    def counted(params, batch):
        traces.append(batch["x"].shape)
        return linear(params, batch)

    fisher(counted, params, everywhere(params), [{"x": rows_of(4)}])
    once, traces[:] = len(traces), []
    fisher(counted, params, everywhere(params), [{"x": rows_of(4, seed)} for seed in range(6)])
    assert len(traces) == once
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))  # not donated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "true"}, "choose one of expected, sampled, given"),
        ({"labels": "sampled"}, "need a key"),
        ({"labels": "given"}, "no column `labels`"),
        ({"chunk": 0}, "chunk is 0"),
        ({"batches": []}, "no row counts"),
        ({"batches": [{"x": np.ones((2, FEATURES)), "valid": np.zeros(2)}]}, "no row counts"),
        ({"batches": [{"x": np.ones((2, FEATURES)), "valid": np.ones(3)}]}, "2 rows and `valid`"),
        ({"anchored": {"kernel": None, "bias": None}}, "no leaf is anchored"),
        ({"params": {"kernel": jnp.ones((FEATURES, 3), int), "bias": jnp.ones(3)}}, "kernel has d"),
        ({"params": {"kernel": jnp.ones((FEATURES, 1)), "bias": jnp.ones(1)}}, "a single logit"),
        ({"batches": [{"x": np.ones((2, 4, FEATURES))}]}, r"need `valid` \(B, T\)"),
        (
            {"labels": "given", "batches": [{"x": np.ones((1, 5)), "labels": np.array([-100])}]},
            "negative label that counts",
        ),
        (
            {"labels": "given", "batches": [{"x": np.ones((1, 5)), "labels": np.array([0.5])}]},
            "needs integers",
        ),
    ],
)
def test_what_has_no_fisher_is_refused(change, message):
    call = {
        "params": {"kernel": jnp.ones((FEATURES, 3)), "bias": jnp.ones(3)},
        "anchored": {"kernel": True, "bias": True},
        "batches": [{"x": np.ones((2, FEATURES), np.float32)}],
    }
    with pytest.raises(ValueError, match=message):
        fisher(linear, **(call | change))


def test_outputs_of_a_unit_normal_are_weighed_by_their_squared_jacobian():
    """Of x W + b the squared Jacobian is x^2 for every output; the draws average to it."""
    with jax.enable_x64(True):
        x = rows_of(20000)
        found = fisher(
            linear, linear_params(), everywhere(linear_params()), streamed(x, 500),
            labels="normal", key=jax.random.key(0), chunk=500,
        )  # fmt: skip
    expected = np.square(x).mean(0)[:, None] * np.ones((1, CLASSES))
    np.testing.assert_allclose(found["kernel"], expected, rtol=0.06)
    np.testing.assert_allclose(found["bias"], np.ones(CLASSES), rtol=0.04)


def test_a_single_output_is_a_regression_and_no_class():
    params = {"w": jnp.ones(3)}
    batch = [{"x": jnp.ones((2, 3))}]

    def one(params, batch):
        return (batch["x"] @ params["w"])[:, None]

    with pytest.raises(ValueError, match="single logit"):
        fisher(one, params, {"w": True}, batch)
    found = fisher(one, params, {"w": True}, batch, labels="normal", key=jax.random.key(0))
    assert np.isfinite(found["w"]).all()
    with pytest.raises(ValueError, match="normal labels need a key"):
        fisher(one, params, {"w": True}, batch, labels="normal")
