"""Paths and partitions: inverses of each other, and matching by whole segments."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftjax.core import Aux, Loss, combine, flatten, matches, nearest, partition, unflatten

SEGMENT = st.text("ab01_", min_size=1, max_size=3)
TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(SEGMENT, inner, min_size=1, max_size=3)
).filter(lambda tree: isinstance(tree, dict))


@given(TREES)
def test_unflatten_inverts_flatten(tree):
    assert unflatten(flatten(tree)) == tree


@given(TREES, st.data())
def test_combine_inverts_partition(tree, data):
    mask = jax.tree.map(lambda _: data.draw(st.booleans()), tree)
    selected, rest = partition(tree, mask)
    assert combine(selected, rest) == tree
    assert combine(rest, selected) == tree
    assert len(jax.tree.leaves(selected)) == sum(jax.tree.leaves(mask))


@given(TREES)
def test_every_path_and_every_prefix_matches_its_leaf(tree):
    for path in flatten(tree):
        segments = path.split("/")
        for depth in range(1, len(segments) + 1):
            assert matches("/".join(segments[:depth]), path)
        assert matches("/".join("*" for _ in segments), path)
        assert matches("**", path)
        assert matches(f"**/{segments[-1]}", path)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("lora", "lora2/kernel", False),
        ("layer/1", "layer/11/kernel", False),
        ("layer/*", "layer/11/kernel", True),
        ("*/kernel", "layer/11/kernel", False),
        ("layer_*", "layer_3/kernel", True),
        ("layer_?", "layer_13/kernel", False),
        ("enc/**/bias", "enc/bias", True),
        ("enc/**/bias", "enc/a/b/bias", True),
        ("enc/**/bias", "dec/a/bias", False),
        ("a.b", "axb", False),
        ("/enc/", "enc/bias", True),
    ],
)
def test_matching(pattern, path, expected):
    assert matches(pattern, path) is expected


def test_nearest_names_what_was_meant():
    paths = ["encoder/layer/0/attention/kernel", "classifier/kernel"]
    assert nearest("clasifier", paths)[0] == "classifier"


def test_combine_refuses_two_leaves_at_one_path():
    with pytest.raises(ValueError, match="head/w"):
        combine({"head": {"w": 1}}, {"head": {"w": 2}})


def test_unflatten_refuses_a_path_through_a_leaf():
    with pytest.raises(ValueError, match="a"):
        unflatten({"a": 1, "a/b": 2})


def test_losses_add_like_one_batch():
    values = jnp.arange(7.0)
    parts = Loss(values[:3].sum(), 3.0) + Loss(values[3:].sum(), 4.0)
    assert float(parts.mean) == 3.0
    assert float(Loss(0.0, 0.0).mean) == 0.0
    assert Aux({}).model_state is None
