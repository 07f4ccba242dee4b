"""The pretrained model's outputs: the same in the step and looked up, and never moving."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor.decay import anchor_of
from sftjax.core import Aux, Loss
from sftjax.train.reference import reference_columns, with_columns, with_reference
from sftjax.train.step import compile_step, init, make_step

ROWS, SIZE = 20, 8
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(ROWS, 24, 4)).astype(np.float32)
LENGTHS = RNG.integers(3, 24, ROWS)


def params_of(scale=1.0):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "below": scale * jax.random.normal(keys[0], (4, 6)),
        "trunk": scale * jax.random.normal(keys[1], (6, 6)),
        "head": jax.random.normal(keys[2], (6, 2)),
    }


def features(params, batch):
    """Means over real tokens, so that they do not depend on the padding."""
    mask = batch["mask"][..., None]
    x = jnp.tanh(batch["x"] @ params["below"]) @ params["trunk"]
    return jnp.sum(mask * x, 1) / jnp.sum(mask, 1)


def objective(params, model_state, batch, key):
    """Squared distance of the logits from 1, and of the features from the reference."""
    now = features(params, batch)
    per_row = jnp.sum((now @ params["head"] - 1.0) ** 2, -1)
    apart = jnp.sum((now - batch["reference"]) ** 2, -1)
    valid = batch["valid"]
    weight = jnp.sum(valid)
    return Loss(jnp.sum(valid * (per_row + apart)), weight), Aux(
        {"apart": Loss(jnp.sum(valid * apart), weight)}
    )


def batch_at(step):
    """Batches of two padded lengths; the last of an epoch is filled up."""
    number = step % 3
    rows = np.arange(ROWS)[number * SIZE : (number + 1) * SIZE]
    index = np.full(SIZE, -1, np.int32)
    index[: len(rows)] = rows
    source = np.where(index < 0, rows[0], index)
    length = 24 if number else 32
    x = np.zeros((SIZE, length, 4), np.float32)
    x[:, :24] = TABLE[source]
    mask = (np.arange(length) < LENGTHS[source, None]).astype(np.float32)
    return {"x": x, "mask": mask, "index": index, "valid": (index >= 0).astype(np.float32)}


def set_up(accumulate=1, frozen_below=True, wrap=True):
    params = params_of()
    mask = {"below": not frozen_below, "trunk": True, "head": True}
    anchor = anchor_of(params, mask, new=["head"])
    tx = optax.sgd(0.05)
    state, fixed = init(params, mask, tx, jax.random.key(1), anchor=anchor)
    step = make_step(objective, tx, accumulate=accumulate)
    if wrap:
        step = with_reference(step, features, "reference")
    return params, state, fixed, compile_step(step)


def run(state, fixed, step, at=batch_at, steps=6):
    metrics = {}
    for number in range(steps):
        state, metrics = step(state, fixed, at(number))
    return jax.tree.map(np.asarray, state.trainable), metrics


def test_looked_up_equals_computed_in_the_step():
    params, state, fixed, step = set_up()
    inside, seen = run(state, fixed, step)
    pretrained = {**params, "head": None}
    table = reference_columns(features, pretrained, map(batch_at, range(3)), ROWS)
    assert table.shape == (ROWS, 6)
    np.testing.assert_allclose(table[8:16], features(params, batch_at(1)), atol=1e-6)
    _, state, fixed, step = set_up(wrap=False)
    outside, metrics = run(state, fixed, step, with_columns(batch_at, {"reference": table}))
    chex.assert_trees_all_close(inside, outside, atol=1e-6)
    assert float(seen["apart"]) == pytest.approx(float(metrics["apart"]), rel=1e-5)
    assert float(seen["apart"]) > 1e-3  # the model moved, the reference did not


def test_the_reference_is_the_pretrained_model_at_every_update():
    """At the first update nothing is apart, whatever the trainable leaves become afterwards."""
    _, state, fixed, step = set_up(frozen_below=False)
    _, first = step(jax.tree.map(jnp.copy, state), fixed, batch_at(0))
    assert abs(float(first["apart"])) < 1e-9
    frozen = np.asarray(features(params_of(), batch_at(0)))
    kept = compile_step(
        with_reference(
            lambda state, fixed, batch: (state, {"reference": batch["reference"]}),
            features,
            "reference",
        )
    )
    for number in range(3):
        state, _ = step(state, fixed, batch_at(number))
    state, metrics = kept(state, fixed, batch_at(0))
    np.testing.assert_allclose(metrics["reference"], frozen, atol=1e-6)
    assert np.abs(np.asarray(state.trainable["trunk"]) - params_of()["trunk"]).max() > 1e-3


def test_no_gradient_and_no_training_of_the_reference_alone():
    """A loss that reads nothing but the reference moves nothing."""

    def only(params, model_state, batch, key):
        return Loss(jnp.sum(batch["reference"]), 8.0), Aux({})

    params, state, fixed, _ = set_up()
    step = compile_step(with_reference(make_step(only, optax.sgd(1.0)), features, "reference"))
    state, metrics = step(state, fixed, batch_at(0))
    assert float(metrics["grad_norm"]) == 0.0
    np.testing.assert_array_equal(state.trainable["trunk"], params["trunk"])


def test_accumulation_cuts_the_reference_with_the_rows():
    _, state, fixed, step = set_up()
    whole, _ = run(state, fixed, step)
    _, state, fixed, step = set_up(accumulate=4)
    cut, _ = run(state, fixed, step)
    chex.assert_trees_all_close(whole, cut, atol=1e-6)


def test_eight_devices_equal_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, all_of = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    _, state, fixed, step = set_up()
    one, _ = run(state, fixed, step)
    _, state, fixed, step = set_up()
    state, fixed = jax.device_put((state, fixed), all_of)
    eight, _ = run(state, fixed, step, lambda number: jax.device_put(batch_at(number), rows))
    chex.assert_trees_all_close(one, eight, atol=1e-6)


def test_everything_frozen_but_a_fresh_head_needs_no_anchor():
    params = params_of()
    mask = {"below": False, "trunk": False, "head": True}
    tx = optax.sgd(0.05)
    state, fixed = init(params, mask, tx, jax.random.key(1))
    step = compile_step(with_reference(make_step(objective, tx), features, "reference"))
    _, metrics = step(state, fixed, batch_at(0))
    assert abs(float(metrics["apart"])) < 1e-9


def test_outputs_that_need_a_fresh_leaf_are_explained():
    _, state, fixed, _ = set_up()
    tx = optax.sgd(0.05)
    through_head = with_reference(
        make_step(objective, tx), lambda p, b: features(p, b) @ p["head"], "reference"
    )
    with pytest.raises(ValueError, match="These leaves have none: head"):
        compile_step(through_head)(state, fixed, batch_at(0))


def test_columns_that_do_not_fit():
    _, state, fixed, _ = set_up()
    inner = make_step(objective, optax.sgd(0.1))
    with pytest.raises(ValueError, match="has a column 'valid' already"):
        with_reference(inner, features, "valid")(state, fixed, batch_at(0))
    with pytest.raises(ValueError, match="its first axis must be the rows"):
        with_reference(inner, lambda p, b: jnp.ones(3), "r")(state, fixed, batch_at(0))
    pretrained = params_of()
    with pytest.raises(ValueError, match="12 of 20 rows are in no batch, row 8 first"):
        reference_columns(features, pretrained, [batch_at(0)], ROWS)
    with pytest.raises(ValueError, match="another data set"):
        reference_columns(features, pretrained, [batch_at(1)], 8)
    with pytest.raises(ValueError, match="Only outputs of one shape a row"):
        reference_columns(lambda p, b: b["x"], pretrained, [batch_at(0), batch_at(1)], ROWS)
    with pytest.raises(ValueError, match="has no 'index'"):
        reference_columns(features, pretrained, [{"x": np.ones(2)}], 2)
    with pytest.raises(ValueError, match="another data set"):
        with_columns(batch_at, {"r": np.ones((8, 2))})(1)
    with pytest.raises(ValueError, match="has a column 'x' already"):
        with_columns(batch_at, {"x": np.ones((ROWS, 2))})(0)
