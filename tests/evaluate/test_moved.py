"""The distance that each block moved, and the names that blocks get."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftjax.core import count, flatten, map_with_path, partition
from sftjax.evaluate.moved import block_names, largest_singular_value, moved, whole

SHAPES = {
    "bert": {
        "embeddings": {"word": (5, 2)},
        "encoder": {"layer": {"0": {"kernel": (2, 2)}, "1": {"kernel": (2, 2), "bias": (2,)}}},
        "pooler": {"kernel": (2, 2)},
    },
    "classifier": {"kernel": (2, 3)},
}


def tree(rng, shapes=SHAPES):
    return {
        name: tree(rng, shape) if isinstance(shape, dict) else rng.normal(size=shape)
        for name, shape in shapes.items()
    }


@given(st.integers(0, 2**32 - 1))
def test_squares_of_the_blocks_add_up_to_the_whole(seed):
    rng = np.random.default_rng(seed)
    before, after = tree(rng), tree(rng)
    rows = moved(before, after)
    assert [row.block for row in rows] == [
        "embeddings", "layer 0", "layer 1", "pooler", "classifier",
    ]  # fmt: skip
    flat = [np.concatenate([x.ravel() for x in flatten(t).values()]) for t in (before, after)]
    whole = np.linalg.norm(flat[1] - flat[0])
    assert np.sqrt(sum(row.distance**2 for row in rows)) == pytest.approx(whole)
    start = np.sqrt(sum((row.distance / row.relative) ** 2 for row in rows))
    assert start == pytest.approx(np.linalg.norm(flat[0]))
    assert sum(row.scalars for row in rows) == count(before)


def test_what_has_no_pretrained_value_counts_as_new():
    rng = np.random.default_rng(0)
    before, after = tree(rng), tree(rng)
    anchor, _ = partition(before, map_with_path(lambda path, _: path.startswith("bert"), before))
    head = moved(anchor, after)[-1]
    assert head == ("classifier", 0.0, 0.0, 0, 6, 0.0)
    del before["classifier"]
    assert moved(before, after)[-1] == head


def test_bfloat16_and_device_arrays_are_measured_in_float64():
    before = {"w": jnp.full((3,), 256.0, jnp.bfloat16)}
    after = {"w": jnp.array([256.0, 258.0, 256.0], jnp.bfloat16)}
    assert moved(before, after)[0].distance == 2.0


def test_a_block_of_zeros_has_no_relative_scale():
    still, went = {"w": np.zeros(2)}, {"w": np.ones(2)}
    assert moved(still, still)[0].relative == 0.0
    assert moved(still, went)[0].relative == np.inf


def test_blocks_can_be_named_by_the_caller():
    rng = np.random.default_rng(0)
    rows = moved(tree(rng), tree(rng), block=lambda path: path.split("/")[0])
    assert [row.block for row in rows] == ["bert", "classifier"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (  # DistilBERT: what lies above keeps its own name
            ["classifier/bias", "distilbert/transformer/layer/0/ffn/bias",
             "distilbert/transformer/layer/1/ffn/bias", "distilbert/embeddings/word/embedding",
             "pre_classifier/kernel"],
            ["classifier", "layer 0", "layer 1", "embeddings", "pre_classifier"],
        ),
        (  # an encoder and a decoder: two stacks of the same name
            ["encoder/block/0/w", "encoder/block/1/w", "decoder/block/0/w", "decoder/block/1/w",
             "shared/embedding"],
            ["encoder block 0", "encoder block 1", "decoder block 0", "decoder block 1", "shared"],
        ),
        (["block_0/w", "block_1/w", "head/w"], ["block 0", "block 1", "head"]),
        (["0/w", "1/w"], ["0", "1"]),
        (["body/w", "head/w"], ["body", "head"]),
        (["w"], ["w"]),
        (  # two stacks under one segment: whole paths
            ["net/a/layer/0/w", "net/a/layer/1/w", "net/b/layer/0/w", "net/b/layer/1/w"],
            ["net/a/layer/0", "net/a/layer/1", "net/b/layer/0", "net/b/layer/1"],
        ),
    ],
)  # fmt: skip
def test_blocks_are_named_from_their_paths(paths, names):
    assert list(block_names(paths).values()) == names


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="holds 1 leaves that the params lack, 'a/w' first"):
        moved({"a": {"w": np.ones(2)}}, {"b": {"w": np.ones(2)}})
    with pytest.raises(ValueError, match=r"'w' has shape \(2,\) in the anchor and \(3,\)"):
        moved({"w": np.ones(2)}, {"w": np.ones(3)})


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_the_spectral_distance_is_the_largest_singular_value(seed, rows, columns, low_rank):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-20, 20)
    if low_rank:
        matrix = np.outer(matrix[:, 0], matrix[0])
    assert largest_singular_value(matrix) == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-6)


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-5, 1e-3, 0.5])
def test_singular_values_that_lie_close_do_not_mislead(gap):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(120, 120)))[0] for _ in range(2))
    values = np.concatenate([[1.0, 1 - gap], np.linspace(0, 1 - gap, 118)])
    assert largest_singular_value(left * values @ right) == pytest.approx(1.0, rel=1e-6)


def test_a_repeated_singular_value_and_other_ranks_are_measured():
    assert largest_singular_value(np.eye(50)) == pytest.approx(1)
    assert largest_singular_value(np.zeros((9, 9))) == 0.0
    assert largest_singular_value(np.zeros((3, 0))) == 0.0
    assert largest_singular_value(np.array([3.0, 4.0])) == pytest.approx(5)
    assert largest_singular_value(np.array(-2.0)) == pytest.approx(2)
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5))
    flat = np.linalg.norm(kernel.reshape(36, 5), 2)
    assert largest_singular_value(kernel) == pytest.approx(flat)


@given(st.integers(0, 2**32 - 1))
def test_spectral_is_at_most_the_distance_and_turns_with_the_weights(seed):
    rng = np.random.default_rng(seed)
    before, after = ({"w": rng.normal(size=(6, 4)), "b": rng.normal(size=4)} for _ in range(2))
    (row,) = moved(before, after, block=lambda _: "one")
    leaves = [np.linalg.norm(after["w"] - before["w"], 2), np.linalg.norm(after["b"] - before["b"])]
    assert row.spectral == pytest.approx(max(leaves))
    assert row.spectral <= row.distance * (1 + 1e-12)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    turned = [{**tree, "w": turn @ tree["w"]} for tree in (before, after)]
    assert moved(*turned, block=lambda _: "one")[0].spectral == pytest.approx(row.spectral)


def test_weights_that_are_not_finite_are_not_hidden():
    params = {"a": np.array([np.nan, 1.0]), "b": np.ones(2)}
    (row,) = moved({"a": np.ones(2), "b": np.zeros(2)}, params, block=lambda _: "one")
    assert np.isnan(row.spectral)
    assert np.isnan(row.distance)
    assert np.isnan(whole([row], {"a": np.ones(2)}).spectral)


@given(st.integers(0, 2**32 - 1))
def test_the_whole_is_one_block_of_everything(seed):
    rng = np.random.default_rng(seed)
    before, after = tree(rng), tree(rng)
    del before["classifier"]
    (expected,) = moved(before, after, block=lambda _: "whole")
    found = whole(moved(before, after), before)
    assert found[:1] + found[3:5] == expected[:1] + expected[3:5]
    assert found[1:3] + found[5:] == pytest.approx(expected[1:3] + expected[5:])
