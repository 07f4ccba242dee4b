"""Mixtures of weights: exact at their ends, linear in between, dtypes and holes kept."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor.merging import (
    add_task_vectors,
    interpolate,
    task_vector,
    ties,
    wise_ft,
)
from sftjax.core import Aux, Loss, combine
from sftjax.train import compile_step, init, make_step


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def params_of(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        # Magnitudes over twelve decades, and the values that arithmetic trips over.
        values = rng.normal(size=shape) * 10.0 ** rng.integers(-6, 6, size=shape)
        values = np.clip(values, -6e4, 6e4)  # float16 ends there
        values.flat[:3] = [-0.0, 0.0, rng.normal()]
        return jnp.asarray(values, dtype)

    return {
        "trunk": {"kernel": draw(40, 30), "bias": draw(30)},
        "count": jnp.int32(seed),
        "flags": jnp.array([bool(seed), True]),
        "key": jax.random.key(seed),
    }


def tuned_of(params, seed, size=1e-3):
    rng = np.random.default_rng(seed)

    def move(w):
        return w * (1 + size * rng.normal(size=w.shape)).astype(w.dtype)

    return {**params, "trunk": jax.tree.map(move, params["trunk"])}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_ends_are_exact_to_the_last_bit(dtype, compiled):
    """O13; a + (b - a) t is not: the negative control below."""
    a, b = params_of(1, dtype), params_of(2, dtype)
    mix = jax.jit(interpolate) if compiled else interpolate
    for t, wanted in ((0.0, a), (1.0, b)):
        found = mix(a, b, t)
        for path in ("kernel", "bias"):
            assert found["trunk"][path].dtype == dtype
            assert bits(found["trunk"][path]) == bits(wanted["trunk"][path])
        for path in ("count", "flags", "key"):
            assert bits(found[path]) == bits(b[path])
    if dtype == jnp.float32:
        other = a["trunk"]["kernel"] + (b["trunk"]["kernel"] - a["trunk"]["kernel"]) * 1.0
        assert bits(other) != bits(b["trunk"]["kernel"])


def test_infinities_do_not_spoil_the_ends():
    a, b = {"w": jnp.array([jnp.inf, 1.0])}, {"w": jnp.array([1.0, -jnp.inf])}
    assert bits(interpolate(a, b, 0.0)["w"]) == bits(a["w"])
    assert bits(interpolate(a, b, 1.0)["w"]) == bits(b["w"])


def test_logits_of_a_linear_model_interpolate():
    """O13, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(7, 5)))
        a, b = ({"w": jnp.asarray(rng.normal(size=(5, 3)))} for _ in range(2))
        for t in (0.0, 0.3, 0.5, 1.0, 1.7):
            found = x @ interpolate(a, b, t)["w"]
            np.testing.assert_allclose(
                found, (1 - t) * (x @ a["w"]) + t * (x @ b["w"]), rtol=1e-12, atol=1e-13
            )


def test_half_precision_is_mixed_in_single():
    a, b = {"w": jnp.full(1, 256.0, jnp.bfloat16)}, {"w": jnp.full(1, 258.0, jnp.bfloat16)}
    # 0.9 is 0.8984 in bfloat16, and (1 - t) a + t b would come to 256 +- 2 there.
    assert float(interpolate(a, b, 0.9)["w"][0]) == 258.0


def objective(params, model_state, batch, key):
    error = batch["x"] @ params["trunk"] @ params["head"] - batch["y"]
    return Loss(jnp.sum(error**2), jnp.float32(len(error))), Aux({})


def fine_tune(seed=0, tx=None):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {"trunk": draw(6, 4), "head": draw(4, 2), "frozen": draw(3)}
    moves = {"trunk": True, "head": True, "frozen": False}
    batch = {"x": draw(12, 6), "y": draw(12, 2)}
    if seed:
        batch = jax.tree.map(
            lambda leaf: leaf[np.random.default_rng(seed).permutation(12)[:8]], batch
        )
    tx = optax.adam(1e-2) if tx is None else tx
    state, fixed = init(params, moves, tx, jax.random.key(0))
    step = compile_step(make_step(objective, tx))
    for _ in range(20):
        state, _ = step(state, fixed, batch)
    return params, combine(state.trainable, fixed.frozen)


def test_the_curve_of_a_run_has_the_pretrained_and_the_tuned_weights_at_its_ends():
    """Through `make_step`: the new head is the tuned one all along."""
    params, tuned = fine_tune()
    pretrained = {**params, "head": None}
    curve = dict(wise_ft(pretrained, tuned, [0.0, 0.5, 1.0]))
    for path in ("trunk", "frozen"):
        assert bits(curve[0.0][path]) == bits(params[path])
    for path in params:
        assert bits(curve[1.0][path]) == bits(tuned[path])
    for mixed in curve.values():
        assert bits(mixed["head"]) == bits(tuned["head"])
    np.testing.assert_allclose(
        curve[0.5]["trunk"], (params["trunk"] + tuned["trunk"]) / 2, rtol=1e-6
    )


def test_task_vectors_add_and_subtract():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w0, w1, w2 = ({"w": jnp.asarray(rng.normal(size=9))} for _ in range(3))
        first, second = task_vector(w0, w1), task_vector(w0, w2)
        both = add_task_vectors(w0, [first, second], [0.4, 0.7])
        np.testing.assert_allclose(
            both["w"], w0["w"] + 0.4 * (w1["w"] - w0["w"]) + 0.7 * (w2["w"] - w0["w"]), rtol=1e-12
        )
        # Negation mirrors the run at the start; with the run itself it is the curve of WiSE-FT.
        less = add_task_vectors(w0, [first], [-1.0])
        np.testing.assert_allclose(less["w"], 2 * w0["w"] - w1["w"], rtol=1e-12)
        line = add_task_vectors(w0, [first], [0.3])
        np.testing.assert_allclose(line["w"], interpolate(w0, w1, 0.3)["w"], rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_task_vectors_are_exact_at_their_ends(dtype):
    params = params_of(1, dtype)
    tuned = tuned_of(params, 2, 0.1)  # |w - w0| well below |w| / 2
    vector = task_vector(params, tuned)
    assert vector["count"] is vector["key"] is vector["flags"] is None
    assert vector["trunk"]["kernel"].dtype == jnp.float32
    for scale, wanted in ((0.0, params), (1.0, tuned)):
        found = add_task_vectors(params, [vector], [scale])
        for path in ("kernel", "bias"):
            assert found["trunk"][path].dtype == dtype
            assert bits(found["trunk"][path]) == bits(wanted["trunk"][path])
    assert found["count"] is params["count"]


def test_a_far_move_comes_back_within_a_unit_in_the_last_place():
    rng = np.random.default_rng(0)

    def draw():
        return jnp.asarray(rng.normal(size=5000) * 10.0 ** rng.integers(-4, 4, 5000), jnp.float32)

    w0, w = {"w": draw()}, {"w": draw()}
    found = add_task_vectors(w0, [task_vector(w0, w)], [1.0])["w"]
    gap = np.abs(np.asarray(found, np.float64) - np.asarray(w["w"], np.float64))
    unit = np.spacing(np.maximum(np.abs(np.asarray(w0["w"])), np.abs(np.asarray(w["w"]))))
    assert np.all(gap <= unit)
    assert np.any(gap > 0)


def test_new_leaves_have_no_task_vector():
    params, tuned = fine_tune()
    pretrained = {**params, "head": None}
    vector = task_vector(pretrained, tuned)
    assert vector["head"] is None
    np.testing.assert_array_equal(vector["frozen"], 0.0)
    found = add_task_vectors(pretrained, [vector], [1.0])
    assert found["head"] is None
    np.testing.assert_allclose(found["trunk"], tuned["trunk"], rtol=1e-6)


def test_ties_by_hand():
    """Three vectors of five entries, keep 3/5: trimmed, elected, averaged on paper."""
    vectors = [
        {"a": jnp.array([5.0, -1.0]), "b": jnp.array([2.0, 0.5, -3.0])},  # keeps 5, 2, -3
        {"a": jnp.array([1.0, 4.0]), "b": jnp.array([-6.0, 3.0, 0.1])},  # keeps 4, -6, 3
        {"a": jnp.array([-9.0, 2.0]), "b": jnp.array([1.0, 5.0, 0.2])},  # keeps -9, 2, 5
    ]
    found = ties(vectors, keep=0.6)
    np.testing.assert_array_equal(found["a"], [-9.0, 3.0])
    np.testing.assert_array_equal(found["b"], [-6.0, 4.0, -3.0])


@pytest.mark.parametrize("copies", [1, 3, 7])
def test_ties_of_copies_is_the_vector_itself(copies):
    vector = task_vector(params_of(1), tuned_of(params_of(1), 2))
    found = ties([vector] * copies, keep=1.0)
    chex.assert_trees_all_equal(found, vector)


def test_ties_elects_nothing_where_the_sum_is_zero():
    found = ties([{"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([-1.0, 2.0])}], keep=1.0)
    np.testing.assert_array_equal(found["w"], [0.0, 1.5])


def test_trimming_counts_over_all_leaves_together():
    vector = {"big": jnp.arange(10.0, 20.0), "small": jnp.arange(1.0, 91.0) / 100}
    found = ties([vector], keep=0.1)
    np.testing.assert_array_equal(found["big"], vector["big"])
    np.testing.assert_array_equal(found["small"], 0.0)
    # Per tensor it would have kept nine of the small ones.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: wise_ft(w, w, [0.5, 1.2]), "alpha 1.2 is outside"),
        (lambda w: wise_ft(w, {"w": None}, [0.5]), "tuned has no leaf at 'w'"),
        (lambda w: interpolate(w, {"v": jnp.ones(2)}, 0.5), "only one of two trees"),
        (lambda w: interpolate(w, {"w": jnp.ones(3)}, 0.5), r"'w' has shape \(2,\)"),
        (lambda w: task_vector(w, {"w": jnp.ones(3)}), r"'w' has shape \(2,\)"),
        (lambda w: add_task_vectors(w, [w], [1.0, 2.0]), "1 task vectors and 2 scales"),
        (lambda w: add_task_vectors(w, [{"w": jnp.ones(3)}], [1.0]), "has shape"),
        (lambda w: ties([]), "no task vector"),
        (lambda w: ties([w], keep=0.0), "keep is 0"),
        (lambda w: ties([w, {"w": None}]), "only one of two trees to be merged has a leaf"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call({"w": jnp.ones(2)})
