"""The difference parameterisation is the anchored one, and loses nothing on the way."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor.decay import add_decayed_difference, add_decayed_unanchored, anchor_of
from sftjax.anchor.difference import (
    add_base,
    anchored,
    load_difference,
    materialize,
    save_difference,
    to_difference,
    tree_sha256,
)
from sftjax.core import combine
from sftjax.objectives.text import classification
from sftjax.train.checkpoint import Saved, open_checkpoints
from sftjax.train.step import compile_step, init, make_step

STRENGTH, RATE = 3.0, 1e-2


def params_of(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "below": {"kernel": jax.random.normal(keys[0], (8, 8)).astype(dtype)},
        "trunk": {
            "kernel": jax.random.normal(keys[1], (8, 8)).astype(dtype),
            "bias": jnp.full(8, 0.3, dtype),
        },
        "head": {"kernel": jax.random.normal(keys[2], (8, 3))},
    }


MASK = {
    "below": {"kernel": False},
    "trunk": {"kernel": True, "bias": True},
    "head": {"kernel": True},
}


def mlp(params, batch, key):
    del key
    x = jnp.tanh(batch["x"] @ params["below"]["kernel"])
    x = jnp.tanh(x @ params["trunk"]["kernel"] + params["trunk"]["bias"])
    return x @ params["head"]["kernel"]


def batch_at(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    return {"x": x, "labels": rng.integers(0, 3, 16).astype(np.int32)}


def chain(kind, anchor, scale=None):
    pull = {
        "weights": add_decayed_difference(STRENGTH),
        "difference": optax.add_decayed_weights(STRENGTH, mask=anchored(anchor)),
    }[kind]
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam() if scale is None else scale,
        pull,
        add_decayed_unanchored(0.1),
        optax.scale_by_learning_rate(RATE),
    )


def set_up(kind, scale=None, dtype=jnp.float32, exclude=()):
    params = params_of(dtype)
    anchor = anchor_of(params, MASK, new=["head/kernel"], exclude=exclude)
    tx = chain(kind, anchor, scale)
    start, view = (
        (to_difference(params, anchor), add_base) if kind == "difference" else (params, None)
    )
    state, fixed = init(start, MASK, tx, jax.random.key(1), anchor=anchor)
    return params, state, fixed, compile_step(make_step(classification(mlp), tx, view=view))


def test_round_trip_and_zeros_at_the_start():
    params = params_of(jnp.bfloat16)
    anchor = anchor_of(params, MASK, new=["head/kernel"])
    delta = to_difference(params, anchor)
    assert delta["trunk"]["kernel"].dtype == jnp.float32
    assert not np.any(np.asarray(delta["trunk"]["kernel"]))
    assert delta["head"]["kernel"] is params["head"]["kernel"]
    assert delta["below"]["kernel"] is params["below"]["kernel"]
    chex.assert_trees_all_equal(
        materialize(delta, anchor), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        | {"below": params["below"]},
    )  # fmt: skip


def test_decay_of_the_difference_is_the_anchor_step_by_step_in_float64():
    """The same optimizer on a quadratic, once over w with the pull, once over w - w0 with decay."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        root = rng.normal(size=(6, 6))
        hessian, goal = jnp.asarray(root @ root.T / 6), jnp.asarray(rng.normal(size=6))
        w = {"w": jnp.asarray(rng.normal(size=6)), "head": jnp.ones((2, 2))}
        anchor = {"w": w["w"], "head": None}
        grads_of = jax.jit(lambda w: {"w": hessian @ (w["w"] - goal), "head": w["head"] - 2.0})
        by_weights, by_difference = chain("weights", anchor), chain("difference", anchor)
        delta = to_difference(w, anchor)
        assert delta["w"].dtype == jnp.float64
        one, two = by_weights.init(w), by_difference.init(delta)
        for _ in range(200):
            updates, one = by_weights.update(grads_of(w), one, w, anchor=anchor)
            w = optax.apply_updates(w, updates)
            grads = grads_of(materialize(delta, anchor))
            updates, two = by_difference.update(grads, two, delta, anchor=anchor)
            delta = optax.apply_updates(delta, updates)
            chex.assert_trees_all_close(materialize(delta, anchor), w, atol=1e-6)
        assert float(jnp.abs(delta["w"]).max()) > 0.1


def test_the_compiled_step_gives_the_same_weights_either_way():
    ends = []
    for kind in ("weights", "difference"):
        _, state, fixed, step = set_up(kind, optax.trace(0.9))
        for number in range(20):
            state, _ = step(state, fixed, batch_at(number))
        ends.append(add_base(state.trainable, fixed) if kind == "difference" else state.trainable)
    chex.assert_trees_all_close(*ends, atol=1e-6)


def test_adamw_alone_is_the_anchor_when_every_leaf_has_one():
    params = {"trunk": params_of()["trunk"]}
    mask = {"trunk": MASK["trunk"]}
    anchor = anchor_of(params, mask)

    def apply(params, batch, key):
        return batch["x"] @ params["trunk"]["kernel"] + params["trunk"]["bias"]

    ends = []
    for start, tx, view in (
        (to_difference(params, anchor), optax.adamw(RATE, weight_decay=STRENGTH), add_base),
        (
            params,
            optax.chain(
                optax.scale_by_adam(),
                add_decayed_difference(STRENGTH),
                optax.scale_by_learning_rate(RATE),
            ),
            None,
        ),
    ):
        state, fixed = init(start, mask, tx, jax.random.key(0), anchor=anchor)
        step = compile_step(make_step(classification(apply), tx, view=view))
        for number in range(10):
            state, _ = step(state, fixed, batch_at(number))
        ends.append(view(state.trainable, fixed) if view else state.trainable)
    chex.assert_trees_all_close(*ends, atol=1e-5)  # Adam magnifies rounding of tiny gradients


def test_a_bfloat16_base_loses_no_update():
    """A pull of 2e-6 at w = 1.0 is nothing to a bfloat16 weight and everything to a difference."""
    origin = {"w": jnp.ones((2, 2), jnp.bfloat16)}
    pull, zero = RATE * 0.02, {"w": jnp.zeros((2, 2))}
    by_weights = optax.chain(add_decayed_difference(0.02), optax.scale(-RATE))
    w = {"w": origin["w"] + jnp.bfloat16(0.0078125)}
    updates, _ = by_weights.update(
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), zero), by_weights.init(w), w,
        anchor=origin,
    )  # fmt: skip
    moved = optax.apply_updates(w, updates)
    assert float(updates["w"][0, 0]) != 0.0
    chex.assert_trees_all_equal(moved, w)  # rounded away
    tx = optax.chain(optax.add_decayed_weights(0.02), optax.scale(-RATE))
    delta = to_difference(w, origin)
    first = np.asarray(delta["w"])
    assert np.all(first == 0.0078125)
    for _ in range(100):
        updates, _ = tx.update(zero, tx.init(delta), delta)
        delta = optax.apply_updates(delta, updates)
    np.testing.assert_allclose(delta["w"], first * (1 - pull) ** 100, rtol=1e-6)
    assert materialize(delta, origin)["w"].dtype == jnp.float32


def test_frozen_leaves_and_the_base_keep_their_bytes():
    params, state, fixed, step = set_up("difference", dtype=jnp.bfloat16)
    before = {k: tree_sha256(params[k]) for k in ("below", "trunk")}
    for number in range(5):
        state, _ = step(state, fixed, batch_at(number))
    assert tree_sha256(fixed.frozen) == tree_sha256({"below": params["below"]})
    assert {k: tree_sha256(params[k]) for k in before} == before
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype(jnp.float32)}
    assert fixed.anchor["trunk"]["kernel"].dtype == jnp.bfloat16


def test_a_resumed_run_stands_on_the_base_it_is_given(tmp_path):
    """Train 4 equals train 2, save, restore, train 2, to the bit; the base is not in the file."""
    _, state, fixed, step = set_up("difference")
    with open_checkpoints(tmp_path / "c") as checkpoints:
        for number in range(4):
            state, _ = step(state, fixed, batch_at(number))
            if number == 1:
                checkpoints.save(Saved(jax.tree.map(jnp.copy, state), None, {}))
    _, fresh, fixed, step = set_up("difference")
    with open_checkpoints(tmp_path / "c") as checkpoints:
        saved = checkpoints.latest(fresh)
        assert saved is not None
        again = saved.state
    assert np.any(np.asarray(again.trainable["trunk"]["kernel"]))  # not at the base when restored
    for number in range(2, 4):
        again, _ = step(again, fixed, batch_at(number))
    chex.assert_trees_all_equal(again.trainable, state.trainable)


def test_a_file_holds_the_difference_and_the_hash_of_its_base(tmp_path):
    """An excluded leaf and a fresh head are kept whole; all else is added to the base."""
    _, state, fixed, step = set_up("difference", exclude=["**/bias"])
    for number in range(3):
        state, _ = step(state, fixed, batch_at(number))
    path = tmp_path / "difference.safetensors"
    base = combine(fixed.anchor, fixed.frozen)
    save_difference(path, state.trainable, base)
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves(state.trainable))
    assert trained < path.stat().st_size < trained + 1024
    assert not list(tmp_path.glob("*.partial"))
    # A new process loads the checkpoint with another random head.
    loaded = params_of()
    loaded["head"] = {"kernel": jnp.full((8, 3), 9.0)}
    delta, found = load_difference(path, loaded)
    assert found["head"]["kernel"] is None
    assert found["trunk"]["bias"] is None
    chex.assert_trees_all_equal(
        materialize(delta, found), combine(add_base(state.trainable, fixed), fixed.frozen)
    )
    save_difference(path, state.trainable, base, base_sha256=tree_sha256(base))
    load_difference(path, loaded)


def test_files_that_do_not_fit(tmp_path):
    params = params_of()
    base = {**params, "head": {"kernel": None}}
    delta = jax.tree.map(lambda leaf: leaf * 0.1, params)
    path = tmp_path / "d.safetensors"
    save_difference(path, delta, base)
    other = params | {"below": {"kernel": params["below"]["kernel"].at[0, 0].add(1e-6)}}
    with pytest.raises(ValueError, match="stands on weights with sha256"):
        load_difference(path, other)
    with pytest.raises(ValueError, match="have none there; nearest"):
        load_difference(path, {k: v for k, v in params.items() if k != "head"})
    with pytest.raises(ValueError, match=r"head/kernel has shape \(8, 3\)"):
        load_difference(path, params | {"head": {"kernel": jnp.ones((8, 2))}})
    with pytest.raises(ValueError, match="no trained leaf"):
        save_difference(path, jax.tree.map(lambda _: None, params), base)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_difference(path, params)
    from safetensors.numpy import save_file

    save_file({"a": np.ones(1)}, path)
    with pytest.raises(ValueError, match="holds no difference"):
        load_difference(path, params)


def test_the_hash_sees_path_dtype_shape_and_bytes():
    tree = {"a": jnp.zeros((2, 3)), "b": jnp.ones((), jnp.bfloat16)}
    others = [
        {"c": tree["a"], "b": tree["b"]},
        {**tree, "a": tree["a"].astype(jnp.float16)},
        {**tree, "a": tree["a"].reshape(3, 2)},
        {**tree, "a": tree["a"].at[1, 1].set(1e-30)},
        {**tree, "b": None},
    ]
    assert len({tree_sha256(one) for one in [tree, *others]}) == 6
    assert tree_sha256(dict(reversed(tree.items()))) == tree_sha256(tree)


@pytest.mark.parametrize("anchor", [None, {"w": None}])
def test_a_difference_needs_a_base(anchor):
    from sftjax.core import Fixed

    with pytest.raises(ValueError, match="needs the weights it is the difference to"):
        to_difference({"w": jnp.ones(2)}, anchor)
    with pytest.raises(ValueError, match="needs the weights it is the difference to"):
        add_base({"w": jnp.ones(2)}, Fixed({"w": None}, {}, anchor))
