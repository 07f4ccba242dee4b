"""Every rule prints in `describe`, also those that move a part of the leaves at a time."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import count, flatten
from sftjax.select import (
    bernoulli_gradients,
    block_ids,
    describe,
    fisher_mask,
    lisa,
    only_elements,
    select,
)
from sftjax.select.part import Part, parts_of

KEY = jax.random.key(0)
LAYER = {str(i): {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)} for i in range(4)}
PARAMS = {"embeddings": jnp.ones((10, 4)), "layer": LAYER, "head": {"kernel": jnp.ones((4, 2))}}


def described(tx, rules="all"):
    return describe(PARAMS, select(PARAMS, rules), tx=tx)


def grads_like(params, number=0):
    return jax.tree.map(lambda leaf: jnp.cos(leaf + number), params)


def test_lisa_prints_its_blocks_and_its_period():
    blocks = block_ids(PARAMS)
    report = described(lisa(optax.adam(1e-3), blocks, active=1, every=20, key=KEY))
    (row,) = report.rows
    always = count(PARAMS["embeddings"]) + count(PARAMS["head"])
    assert row.share == pytest.approx((always + count(LAYER) / 4) / count(PARAMS))
    assert report.parts == (
        "LISA: 1 of 4 blocks (layer/0 ... layer/3), drawn anew every 20 updates; "
        "embeddings, head: at every update",
    )
    lines = str(report).splitlines()
    assert lines[0].split()[-1] == "part"
    assert lines[1].split()[-1] == f"{100 * row.share:.1f}%"
    assert lines[-1] == report.parts[0]


def test_a_rule_outside_the_blocks_moves_whole():
    top = {**PARAMS, "layer": {name: LAYER[name] for name in ("2", "3")}}
    numbers = flatten(block_ids(top))
    blocks = jax.tree_util.tree_map_with_path(
        lambda keys, _: numbers.get(jax.tree_util.keystr(keys, simple=True, separator="/"), -1),
        PARAMS,
    )
    tx = lisa(optax.sgd(0.1), blocks, active=1, every=5, key=KEY)
    report = described(tx, ["head", "layer/2", "layer/3"])
    shares = {row.rule: row.share for row in report.rows if row.rate}
    assert shares == {"head": 1.0, "layer/2": 0.5, "layer/3": 0.5}
    assert "(layer/2, layer/3)" in report.parts[0]


def test_what_is_drawn_in_the_mean_is_the_printed_share():
    """The law behind the number, for each of the three: counted over many updates."""
    importance = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).random(leaf.shape)), PARAMS
    )
    mask = {**fisher_mask(importance, 0.4), "head": {"kernel": None}}
    for tx in (
        bernoulli_gradients(0.3, KEY),
        only_elements(optax.identity(), mask),
        lisa(optax.identity(), block_ids(PARAMS), active=2, every=1, key=KEY),
    ):
        row = described(tx).rows[0]

        def counted(state, number, tx=tx):
            updates, state = tx.update(grads_like(PARAMS, number), state, PARAMS)
            moved = sum(jnp.sum(leaf != 0) for leaf in jax.tree.leaves(updates))
            return state, moved

        moved = jax.jit(lambda state, run=counted: jax.lax.scan(run, state, jnp.arange(200.0))[1])
        found = np.asarray(moved(tx.init(PARAMS))).mean() / count(PARAMS)
        assert found == pytest.approx(row.share, abs=0.02)


def test_a_mask_prints_what_it_lets_move_leaf_by_leaf():
    mask = {
        "embeddings": np.zeros((10, 4), bool),
        "layer": {"0": {"kernel": np.eye(4, dtype=bool), "bias": np.ones(4, bool)}},
        "head": {"kernel": np.array([[True, False]] * 4)},
    }
    report = described(only_elements(optax.adam(1e-3), mask), ["head", "layer/0", "all"])
    shares = {row.rule: row.share for row in report.rows}
    rest = 3 * count(LAYER["0"])
    assert shares == {"head": 0.5, "layer/0": 8 / 20, "all": rest / (rest + 40)}
    assert report.parts == (
        "Child-Tuning D: 12 of 68 elements (embeddings, head, layer/0), chosen once; "
        "layer/1, layer/2, layer/3: all elements",
    )


def test_parts_are_found_in_any_chain_and_their_shares_multiply():
    inner = lisa(optax.adam(1e-3), block_ids(PARAMS), active=1, every=2, key=KEY)
    tx = optax.chain(optax.clip_by_global_norm(1.0), bernoulli_gradients(0.5, KEY), inner)
    report = described(tx, ["layer", ("all", 0.0)])
    assert [part.split(":")[0] for part in report.parts] == ["Child-Tuning F", "LISA"]
    assert [row.share for row in report.rows] == [0.5 * 0.25, 1.0]
    assert "at every update;" not in report.parts[1], "nothing lies outside the blocks here"


def test_without_parts_there_is_no_column_of_them():
    report = described(optax.adam(1e-3))
    assert report.parts == ()
    assert "part" not in str(report).splitlines()[0].split()
    assert {row.share for row in report.rows} == {1.0}


def test_a_remark_makes_no_other_structure():
    """States stack and share one trace whatever they say; and a remark holds no array."""
    ones, eye = np.ones((4, 4), bool), np.eye(4, dtype=bool)
    params = {"w": jnp.ones((4, 4))}
    traces = []

    @jax.jit
    def step(state):
        traces.append(1)
        tx = only_elements(optax.sgd(0.1), {"w": ones})
        return tx.update(params, state, params)[0]

    states = [only_elements(optax.sgd(0.1), {"w": mask}).init(params) for mask in (ones, eye)]
    assert [parts_of(state)[0].shares["w"] for state in states] == [1.0, 0.25]
    moved = [step(state)["w"] for state in states]
    assert len(traces) == 1
    assert int((moved[1] != 0).sum()) == 4
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    assert stacked.mask["w"].shape == (2, 4, 4)
    assert jax.tree.leaves(Part("half", {"w": 0.5})) == []


def test_a_mask_that_is_traced_says_nothing_of_its_count():
    params = {"w": jnp.ones(4)}

    def moved(mask):
        tx = only_elements(optax.sgd(1.0), {"w": mask})
        return tx.update(params, tx.init(params), params)[0]["w"]

    masks = jnp.array([[True, False, True, False], [False, False, False, True]])
    chex.assert_trees_all_equal(jax.vmap(moved)(masks), -masks.astype(jnp.float32))
