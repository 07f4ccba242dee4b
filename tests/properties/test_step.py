"""Laws of the step: frozen bytes, moments, cost, accumulation, devices, traces."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor import adamw, anchor_of, selective_projection_decay, sgd
from sftjax.core import combine, flatten
from sftjax.objectives import classification
from sftjax.select import select
from sftjax.train import compile_step, init, make_step

WIDTH, BLOCKS, ROWS = 64, 4, 24


def mlp_params(key=0, blocks=BLOCKS):
    keys = jax.random.split(jax.random.key(key), blocks + 1)
    layer = {
        str(i): {"kernel": jax.random.normal(keys[i], (WIDTH, WIDTH)) / 8, "bias": jnp.zeros(WIDTH)}
        for i in range(blocks)
    }
    return {"layer": layer, "head": {"kernel": jax.random.normal(keys[-1], (WIDTH, 3)) / 8}}


def mlp(params, batch, key):
    x = batch["x"]
    for name in sorted(params["layer"], key=int):
        x = x + jnp.tanh(x @ params["layer"][name]["kernel"] + params["layer"][name]["bias"])
        if key is not None and "noisy" in batch:
            x = x * jax.random.bernoulli(jax.random.fold_in(key, int(name)), 0.9, x.shape)
    return x @ params["head"]["kernel"]


def batch_of(seed=0, rows=ROWS, **more):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    return {"x": x, "labels": rng.integers(0, 3, rows).astype(np.int32), **more}


def set_up(rules, tx=None, accumulate=1, anchored=True, **options):
    params = mlp_params()
    chosen = select(params, rules, new=["head/kernel"])
    anchor = None
    if anchored:
        anchor = anchor_of(params, chosen.trainable, new=["head/kernel"])
    tx = adamw(1e-2, strength=0.1, weight_decay=0.1) if tx is None else tx
    state, fixed = init(params, chosen.trainable, tx, jax.random.key(1), anchor=anchor, **options)
    return (
        params,
        state,
        fixed,
        make_step(classification(mlp, dropout=True), tx, accumulate=accumulate),
    )


def test_the_norm_of_the_gradient_can_be_left_out_and_nothing_else_changes():
    _, state, fixed, step = set_up("all")
    bare = make_step(
        classification(mlp, dropout=True),
        adamw(1e-2, strength=0.1, weight_decay=0.1),
        grad_norm=False,
    )
    whole, metrics = jax.jit(step)(state, fixed, batch_of())
    other, fewer = jax.jit(bare)(state, fixed, batch_of())
    assert set(metrics) - set(fewer) == {"grad_norm"}
    chex.assert_trees_all_close(other.trainable, whole.trainable, rtol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        adamw(1e-2, strength=0.5, weight_decay=0.1, max_grad_norm=0.1),
        optax.chain(
            optax.clip_by_global_norm(0.1),
            optax.add_decayed_weights(0.1),
            optax.sgd(0.1, momentum=0.9, nesterov=True),
        ),
    ],
    ids=["adamw-anchored", "sgd-momentum-decay"],
)
def test_frozen_leaves_keep_their_bytes(tx):
    params, state, fixed, step = set_up(["layer/3", ("layer/1/bias", 0.5), "head/kernel"], tx)
    before = {path: np.asarray(leaf).tobytes() for path, leaf in flatten(params).items()}
    step = compile_step(step)
    for number in range(20):
        state, _ = step(state, fixed, batch_of(number))
    after = flatten(combine(state.trainable, fixed.frozen))
    moved = {path for path, leaf in after.items() if np.asarray(leaf).tobytes() != before[path]}
    assert moved == {"layer/3/kernel", "layer/3/bias", "layer/1/bias", "head/kernel"}
    # The caller's own params (and so the anchor) survive twenty donated steps.
    assert all(np.asarray(leaf).tobytes() == before[path] for path, leaf in flatten(params).items())


def test_moments_exist_for_trainable_leaves_only():
    _, state, fixed, _ = set_up("last:1")
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 0]
    moving = jax.tree.leaves(state.trainable)
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in moving)
    assert set(flatten(fixed.anchor)) == {"layer/3/kernel", "layer/3/bias"}


@pytest.mark.parametrize(("rules", "moving_blocks"), [("head", 0), ("last:1", 1), ("last:2", 2)])
def test_matmul_cost_is_the_closed_form(rules, moving_blocks):
    """2 B D^2 a block forward; the same again for the weights, and for the inputs above the lowest.

    Counted by the compiler, with clipping and the norm metric on: what reads gradients must not
    bring the frozen ones back.
    """
    params = mlp_params()
    chosen = select(params, rules)
    tx = adamw(1e-2, max_grad_norm=1.0)
    state, fixed = init(params, chosen.trainable, tx, jax.random.key(0))
    rows = 2048  # enough that elementwise work is below the tolerance
    batch = batch_of(rows=rows)
    step = compile_step(make_step(classification(_linear), tx))
    flops = step.lower(state, fixed, batch).compile().cost_analysis()["flops"]
    block, head = 2 * rows * WIDTH * WIDTH, 2 * rows * WIDTH * 3
    backward = max(2 * moving_blocks - 1, 0) * block  # no input gradient below the lowest
    expected = BLOCKS * block + 2 * head + backward + (head if moving_blocks else 0)
    assert flops == pytest.approx(expected, rel=0.05)


def _linear(params, batch, key):
    x = batch["x"]
    for name in sorted(params["layer"], key=int):
        x = x @ params["layer"][name]["kernel"]
    return x @ params["head"]["kernel"]


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_accumulation_over_ragged_micro_batches_equals_the_big_batch(accumulate):
    valid = np.zeros(ROWS, np.float32)
    valid[[0, 1, 2, 3, 5, 8, 13, 21, 22]] = 1.0  # micro-batches with unequal counts
    batch = batch_of(valid=valid)
    tx = optax.sgd(0.5)
    results = []
    for pieces in (1, accumulate):
        _, state, fixed, step = set_up("all", tx, pieces)
        results.append(compile_step(step)(state, fixed, batch))
    (whole, a), (cut, b) = results
    chex.assert_trees_all_close(whole.trainable, cut.trainable, atol=1e-6)
    assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-6)
    assert float(a["weight"]) == float(b["weight"]) == 9.0
    assert float(a["accuracy"]) == pytest.approx(float(b["accuracy"]))


def test_means_of_means_would_not_pass():
    """The negative control of the law above: averaging micro-batch means gives another update."""
    valid = np.ones(ROWS, np.float32)
    valid[::2] = 0.0
    valid[0] = 1.0
    batch = batch_of(valid=valid)
    _, state, fixed, step = set_up("all", optax.sgd(0.5))
    whole = compile_step(step)(state, fixed, batch)[0].trainable
    halves = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        _, state, fixed, step = set_up("all", optax.sgd(0.5))
        piece = {name: leaf[part] for name, leaf in batch.items()}
        halves.append(compile_step(step)(state, fixed, piece)[0].trainable)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    gap = max(
        float(jnp.abs(a - b).max())
        for a, b in zip(*map(jax.tree.leaves, (mean, whole)), strict=True)
    )
    assert gap > 1e-3


def away(state, by=0.3):
    """Put the weights off the anchor, so that it pulls from the first update on."""
    shifted = jax.tree.map(lambda leaf: leaf + by * jnp.cos(leaf * 50.0), state.trainable)
    return state._replace(trainable=shifted)


@pytest.mark.parametrize("tx", [
    adamw(1e-2, strength=5.0, weight_decay=0.1),
    adamw(1e-2, strength=0.5, weight_decay=0.1, coupled=True),
    sgd(0.1, strength=0.5, weight_decay=0.1),
    optax.chain(sgd(0.1, strength=0.5), selective_projection_decay()),
], ids=["adamw", "adamw-coupled", "sgd-coupled", "sgd-spd"])  # fmt: skip
def test_accumulation_with_an_anchor_equals_the_big_batch(tx):
    """A pull for each micro-batch would be four times as strong."""
    batch = batch_of(valid=(np.arange(ROWS) % 5 > 0).astype(np.float32))
    results = []
    for pieces in (1, 4):
        _, state, fixed, step = set_up("last:2", tx, pieces)
        state, step = away(state), compile_step(step)
        for _ in range(3):
            state, _ = step(state, fixed, batch)
        results.append(state.trainable)
    chex.assert_trees_all_close(*results, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("coupled", [False, True])
def test_the_anchor_pulls_once_an_update(accumulate, coupled):
    """Where the data asks for nothing, an update leaves exactly 1 - eta lambda of the way."""
    tx = sgd(0.1, strength=0.5, weight_decay=0.0, momentum=0.0, coupled=coupled)
    _, state, fixed, step = set_up("last:1", tx, accumulate)
    state = away(state)
    before = jax.tree.map(np.asarray, state.trainable)
    after, _ = compile_step(step)(state, fixed, batch_of(valid=np.zeros(ROWS, np.float32)))
    for path, origin in flatten(fixed.anchor).items():
        way, left = (flatten(tree)[path] - origin for tree in (before, after.trainable))
        assert np.abs(way).max() > 0.2
        np.testing.assert_allclose(left, (1 - 0.1 * 0.5) * way, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        after.trainable["head"]["kernel"], before["head"]["kernel"], "a fresh head is not held"
    )


def test_eight_devices_equal_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    batch = batch_of(valid=(np.arange(ROWS) % 5 > 0).astype(np.float32))
    results = []
    for shard in (False, True):
        _, state, fixed, step = set_up("last:2", accumulate=3)
        step, now = compile_step(step), dict(batch)
        if shard:
            now = jax.device_put(now, rows)
            state, fixed = jax.device_put((state, fixed), whole)
        for _ in range(3):
            state, metrics = step(state, fixed, now)
        results.append((state.trainable, metrics))
    chex.assert_trees_all_close(*results, atol=1e-5)


def test_one_trace_a_shape():
    _, state, fixed, step = set_up("last:1")
    chex.clear_trace_counter()
    step = compile_step(chex.assert_max_traces(step, n=2))
    for number in range(6):
        state, _ = step(state, fixed, batch_of(number, rows=8 if number % 2 else 16))


def test_keys_follow_the_step_and_nothing_else():
    batch = batch_of(noisy=np.zeros(ROWS))
    _, state, fixed, step = set_up("all", optax.sgd(0.1))
    step = jax.jit(step)
    first, _ = step(state, fixed, batch)
    again, _ = step(state, fixed, batch)
    other, _ = step(state._replace(step=jnp.int32(1)), fixed, batch)
    chex.assert_trees_all_equal(first.trainable, again.trainable)
    assert (
        float(
            jnp.abs(
                first.trainable["layer"]["0"]["kernel"] - other.trainable["layer"]["0"]["kernel"]
            ).max()
        )
        > 0
    )


def test_a_batch_with_nothing_that_counts_moves_nothing_but_decay():
    batch = batch_of(valid=np.zeros(ROWS, np.float32))
    _, state, fixed, step = set_up("all", optax.sgd(0.5))
    before = jax.tree.map(np.asarray, state.trainable)
    state, metrics = compile_step(step)(state, fixed, batch)
    chex.assert_trees_all_equal(before, jax.tree.map(np.asarray, state.trainable))
    assert float(metrics["weight"]) == 0.0
    assert float(metrics["loss"]) == 0.0


def test_frozen_leaves_in_bfloat16_and_trainable_ones_in_float32():
    _, state, fixed, step = set_up("last:1", frozen_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(fixed.frozen)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype(jnp.float32)}
    state, metrics = compile_step(step)(state, fixed, batch_of())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype(jnp.float32)}
    assert np.isfinite(float(metrics["loss"]))


def test_integer_leaves_cannot_be_trained():
    params = {"table": jnp.arange(3), "w": jnp.ones(3)}
    with pytest.raises(ValueError, match="table has dtype int32"):
        init(params, {"table": True, "w": True}, optax.sgd(0.1), jax.random.key(0))


def test_accumulation_must_divide_the_rows():
    _, state, fixed, step = set_up("all", accumulate=5)
    with pytest.raises(ValueError, match="24 rows cannot be cut into 5"):
        step(state, fixed, batch_of())


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_step_lowers_for_accelerators(platform):
    _, state, fixed, step = set_up("last:1", accumulate=2)
    shapes = jax.eval_shape(lambda *args: args, state, fixed, batch_of())
    exported = jax.export.export(compile_step(step), platforms=[platform])(*shapes)
    assert exported.platforms == (platform,)


@pytest.mark.parametrize(("importance", "message"), [
    ({"a": jnp.ones(2), "b": jnp.ones(1)}, "an importance of b, which is not anchored"),
    ({"a": None, "b": None}, "the anchor holds a and the importance does not"),
    ({"a": jnp.ones(3), "b": None}, r"the importance of a has shape \(3,\)"),
    ({"a": jnp.array([1.0, jnp.nan]), "b": None}, "the importance of a is not finite"),
])  # fmt: skip
def test_an_importance_that_does_not_fit_is_refused_before_compilation(importance, message):
    params = {"a": jnp.ones(2), "b": jnp.ones(1)}
    moves = {"a": True, "b": True}
    anchor = {"a": params["a"], "b": None}
    with pytest.raises(ValueError, match=message):
        init(params, moves, optax.sgd(0.1), jax.random.key(0), anchor=anchor, importance=importance)
