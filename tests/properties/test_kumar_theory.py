"""Kumar et al. 2022: what keeps good features, and that bad ones are better not kept."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
SEEDS = 20


@pytest.fixture(scope="module")
def theory():
    """The benchmark; its folder is where it finds its clock."""
    sys.path.insert(0, str(FOLDER))
    try:
        import kumar_theory

        yield kumar_theory
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def found(theory):
    """Method -> its risks."""
    return theory.risks(SEEDS)


@pytest.fixture(scope="module")
def outside(theory, found):
    """Method -> eps -> (seeds,) risks out of domain."""
    return {
        method: dict(zip(theory.ERRORS, risk.outside, strict=True))
        for method, risk in found.items()
    }


def test_with_good_features_probing_first_or_an_anchor_beats_fine_tuning(outside):
    mean = {method: risks[0.1].mean() for method, risks in outside.items()}
    assert mean["LP-FT"] < mean["LP"] < mean["FT"]
    assert mean["FT+L2-SP .05"] < mean["FT"]
    free = outside["FT"][0.1]
    for method in ("LP", "LP-FT", "WiSE .5", "FT+L2-SP .05"):
        assert (outside[method][0.1] < free).all(), method  # in every seed


def test_with_bad_features_the_order_flips(outside):
    mean = {method: risks[1.0].mean() for method, risks in outside.items()}
    assert mean["FT"] < mean["LP"]


def test_probing_gets_worse_with_the_features(outside):
    means = [outside["LP"][error].mean() for error in (0.1, 0.5, 1.0)]
    assert means == sorted(means)
    assert outside["LP"][0.1].mean() == pytest.approx(0.1**2, rel=1)


def test_free_runs_have_learned_the_training_rows(found):
    for method in ("FT", "LP-FT"):
        assert found[method].inside.max() < 1e-4, method
    assert found["LP"].inside.min() > 1e-4


def test_perfect_features_are_left_as_they_are(theory):
    world = theory.draw(jax.random.key(0), 0.0)
    params = jax.jit(theory.methods)(world)
    for method in ("LP", "LP-FT", "WiSE .5"):
        assert theory.risk(params[method], world).outside < 1e-8, method
    features = world.pretrained["features"]
    assert jnp.abs(params["LP-FT"]["features"] - features).max() < 1e-4
    assert theory.risk(params["FT"], world).outside > 1e-3


def test_features_of_directions_without_rows_never_move(theory):
    """Their gradient is zero: only the head's change distorts what they give (Lemma A.3)."""
    world = theory.draw(jax.random.key(1), 0.5)
    outside = np.eye(theory.INPUTS) - world.subspace @ world.subspace.T
    before = outside @ world.pretrained["features"]
    tuned = theory.tune(world.pretrained, world.batch)["features"]
    assert np.abs(outside @ tuned - before).max() < 1e-5
    assert np.abs(tuned - world.pretrained["features"]).max() > 1e-2


def test_a_stronger_hold_moves_the_features_less(theory):
    world = theory.draw(jax.random.key(2), 0.5)
    went = [
        float(jnp.linalg.norm(theory.tune(world.pretrained, world.batch, strength=s)["features"]
                              - world.pretrained["features"]))
        for s in (0.0, 0.05, 0.5)
    ]  # fmt: skip
    assert went[0] > went[1] > went[2] > 0
