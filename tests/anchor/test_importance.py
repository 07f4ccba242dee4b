"""Importance weights: a mean of 1, a cap that holds, a file that says where it comes from."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sftjax.anchor.decay import add_decayed_difference, l2_sp_penalty
from sftjax.anchor.importance import (
    Facts,
    check_importance,
    load_importance,
    normalized,
    save_importance,
)
from sftjax.core import flatten

FACTS = Facts("e3b0c442", 200, "expected")


def heavy(seed=0, scale=1.0):
    """A tree whose values span ten orders of magnitude, as a Fisher's do."""
    rng = np.random.default_rng(seed)
    return {
        "layer": {"kernel": jnp.asarray(scale * np.exp(rng.normal(0, 4, (40, 30))), jnp.float32)},
        "bias": jnp.asarray(scale * np.exp(rng.normal(0, 4, 30)), jnp.float32),
        "head": None,
    }


def together(tree):
    return np.concatenate([np.ravel(leaf) for leaf in flatten(tree).values()]).astype(np.float64)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_the_mean_is_one_whatever_the_scale(scale):
    plain, scaled = normalized(heavy()), normalized(heavy(scale=scale))
    assert together(scaled).mean() == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(together(scaled), together(plain), rtol=1e-5)
    assert scaled["head"] is None


@pytest.mark.parametrize("cap", [1.5, 20.0, 1e6])
def test_a_cap_keeps_the_mean_and_the_order(cap):
    capped = together(normalized(heavy(), cap=cap))
    assert capped.mean() == pytest.approx(1.0, rel=1e-5)
    assert capped.max() <= cap * (1 + 1e-6)
    free = capped < cap * (1 - 1e-6)
    ratio = capped[free] / together(heavy())[free]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)  # below the cap only the scale changed


@pytest.mark.parametrize(
    ("importance", "cap", "message"),
    [
        ({"w": jnp.zeros(3)}, None, "largest importance is 0.0"),
        ({"w": jnp.array([1.0, jnp.nan])}, None, "largest importance is nan"),
        ({"w": None}, None, "nothing to scale"),
        ({"w": jnp.ones(3)}, 0.5, "cap is 0.5"),
        ({"w": jnp.array([1.0] + 9 * [0.0])}, 5.0, "only 1 of 10 scalars"),
    ],
)
def test_what_has_no_mean_of_one(importance, cap, message):
    with pytest.raises(ValueError, match=message):
        normalized(importance, cap=cap)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ({"a": {"w": jnp.ones(2)}, "b": None}, "the anchor holds b and the importance does not"),
        ({"a": {"w": jnp.ones(3)}, "b": jnp.ones(())}, r"importance of a/w has shape \(3,\)"),
        ({"a": {"w": jnp.ones(2)}, "b": jnp.ones(()), "c": jnp.ones(1)}, "c, which is not anch"),
        ({"a": {"w": jnp.array([1.0, jnp.nan])}, "b": jnp.ones(())}, "a/w is not finite"),
        ({"a": {"w": jnp.array([1.0, jnp.inf])}, "b": jnp.ones(())}, "a/w is not finite"),
        ({"a": {"w": jnp.ones(2)}, "b": jnp.array(-0.5)}, "b is as low as -0.5"),
        ({"a": {"w": jnp.array([1.0, 60.0])}, "b": jnp.ones(())}, "a/w is as high as 60"),
    ],
)
def test_an_importance_that_does_not_fit_its_anchor(importance, message):
    anchor = {"a": {"w": jnp.zeros(2)}, "b": jnp.zeros(()), "c": None}
    with pytest.raises(ValueError, match=message):
        check_importance(importance, anchor, cap=50.0)
    check_importance({"a": {"w": jnp.full(2, 50.0)}, "b": jnp.zeros(())}, anchor, cap=50.0)


def test_the_pull_and_the_penalty_refuse_another_shape():
    """A kernel's importance of shape (3, 1) would broadcast, and a hole would count as 1."""
    w, anchor = {"w": jnp.ones((3, 2))}, {"w": jnp.zeros((3, 2))}
    tx = add_decayed_difference(0.1)
    for wrong in ({"w": jnp.ones((3, 1))}, {"w": None}):
        with pytest.raises(ValueError, match="importance"):
            tx.update(w, tx.init(w), w, anchor=anchor, importance=wrong)
        with pytest.raises(ValueError, match="importance"):
            l2_sp_penalty(w, anchor, wrong)


def test_a_saved_importance_comes_back_bit_for_bit(tmp_path):
    importance = heavy()
    save_importance(tmp_path / "fisher.safetensors", importance, FACTS)
    loaded, facts = load_importance(
        tmp_path / "fisher.safetensors", importance, weights=FACTS.weights
    )
    assert facts == FACTS
    assert loaded["head"] is None
    assert {path: np.asarray(leaf).tobytes() for path, leaf in flatten(loaded).items()} == {
        path: np.asarray(leaf).tobytes() for path, leaf in flatten(importance).items()
    }
    fewer, _ = load_importance(
        tmp_path / "fisher.safetensors", {"layer": {"kernel": None}, "bias": importance["bias"]}
    )
    assert list(flatten(fewer)) == ["bias"]
    assert [path.name for path in tmp_path.iterdir()] == ["fisher.safetensors"]


def test_a_file_that_cannot_be_this_runs(tmp_path):
    path, like = tmp_path / "fisher.safetensors", {"w": jnp.ones(3)}
    with pytest.raises(FileNotFoundError, match="is not there"):
        load_importance(path, like)
    save_importance(path, like, FACTS)
    with pytest.raises(ValueError, match="found at e3b0c442 and this run starts at 77"):
        load_importance(path, like, weights="77")
    with pytest.raises(ValueError, match=r"has \(3,\) for w, and the anchor has shape \(2,\)"):
        load_importance(path, {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="has nothing for v"):
        load_importance(path, {"v": jnp.ones(3)})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_importance(path, like)
    save_file({"w": np.ones(3, np.float32)}, path)
    with pytest.raises(ValueError, match="does not say where it comes from"):
        load_importance(path, like)
    with pytest.raises(ValueError, match="nothing to save"):
        save_importance(path, {"w": None}, FACTS)
