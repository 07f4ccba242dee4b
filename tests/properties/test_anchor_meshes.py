"""The anchor is that of pretraining after a resume, on whatever devices the run goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.anchor import adamw, anchor_of
from sftjax.core import flatten, nbytes, partition
from sftjax.objectives import classification
from sftjax.train import compile_step, init, make_step, open_checkpoints
from sftjax.train.checkpoint import Saved

PARAMS = {
    "trunk": {"kernel": jax.random.normal(jax.random.key(0), (16, 16)) / 4},
    "top": {"kernel": jax.random.normal(jax.random.key(1), (16, 16)) / 4},
    "head": {"kernel": jax.random.normal(jax.random.key(2), (16, 2)) / 4},
}
MOVES = {"trunk": {"kernel": False}, "top": {"kernel": True}, "head": {"kernel": True}}
NEW = ("head/kernel",)
STEPS = 6


def apply(params, batch, key=None):
    x = jnp.tanh(batch["x"] @ params["trunk"]["kernel"])
    return jnp.tanh(x @ params["top"]["kernel"]) @ params["head"]["kernel"]


def batch_at(number):
    draw = np.random.default_rng(number)
    return {"x": draw.normal(size=(16, 16)).astype(np.float32), "labels": draw.integers(0, 2, 16)}


def start(importance):
    anchor = anchor_of(PARAMS, MOVES, new=NEW)
    weights = jax.tree.map(lambda leaf: 1.0 + jnp.abs(leaf), anchor) if importance else None
    tx = adamw(0.05, dose=2.0, num_steps=2 * STEPS)
    state, fixed = init(PARAMS, MOVES, tx, jax.random.key(3), anchor=anchor, importance=weights)
    return state, fixed, compile_step(make_step(classification(apply), tx))


def placed(tree, devices, split=False):
    """Put a tree on so many devices; with `split`, its arrays by their first axis."""
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )

    def put(leaf):
        spec = ("data",) if split and leaf.ndim and leaf.shape[0] % devices == 0 else ()
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(put, tree)


def steps(step, state, fixed, numbers, devices):
    for number in numbers:
        state, _ = step(state, fixed, placed(batch_at(number), devices, split=True))
    return state


@pytest.mark.parametrize("importance", [False, True], ids=["l2-sp", "ewc"])
@pytest.mark.parametrize(("devices", "split"), [(1, False), (4, True)])
def test_a_run_goes_on_on_another_mesh_held_to_the_same_anchor(
    importance, devices, split, tmp_path
):
    state, fixed, step = start(importance)
    whole = steps(step, state, fixed, range(2 * STEPS), 1).trainable

    state, fixed, step = start(importance)
    half = steps(step, placed(state, 8), placed(fixed, 8), range(STEPS), 8)
    with open_checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(Saved(half, None, {}))
    moved = half.trainable["top"]["kernel"] - PARAMS["top"]["kernel"]
    assert float(jnp.abs(moved).max()) > 1e-2, "what a resume must not take for the anchor"

    like, fixed, step = start(importance)
    like, fixed = placed(like, devices, split), placed(fixed, devices, split)
    with open_checkpoints(tmp_path / "run") as checkpoints:
        saved = checkpoints.latest(like)
    assert saved is not None
    found = steps(step, saved.state, fixed, range(STEPS, 2 * STEPS), devices).trainable
    for path, leaf in flatten(whole).items():
        np.testing.assert_allclose(np.asarray(flatten(found)[path]), leaf, rtol=0, atol=1e-6)


def test_no_anchor_is_stored_for_frozen_or_new_leaves():
    _, fixed, _ = start(importance=True)
    held = partition(PARAMS, {**MOVES, "head": {"kernel": False}})[0]
    assert nbytes(fixed.anchor) == nbytes(held) == nbytes(fixed.importance)
    assert list(flatten(fixed.anchor)) == ["top/kernel"]
