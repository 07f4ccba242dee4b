"""Probabilities: equal to scikit-learn, scipy, and the definition of calibration itself."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from sftjax.evaluate import brier, calibration_bins, ece, log_softmax, nll, sigmoid, softmax

seeds = st.integers(0, 2**32 - 1)


def rows(seed, classes=3, size=50, scale=3.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(size, classes)), rng.integers(classes, size=size)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(2, 5))
def test_nll_and_brier_equal_scikit_learn(seed, classes):
    logits, labels = rows(seed, classes)
    p = softmax(logits)
    every = list(range(classes))
    assert nll(logits, labels) == pytest.approx(reference.log_loss(labels, p, labels=every))
    assert nll(np.log(p), labels) == pytest.approx(nll(logits, labels))
    expected = np.mean(np.sum((p - np.eye(classes)[labels]) ** 2, axis=1))
    assert brier(p, labels) == pytest.approx(expected)
    if classes == 2:
        one_column = reference.brier_score_loss(labels, p[:, 1])
        assert brier(p, labels) == pytest.approx(2 * one_column)


@given(seeds)
def test_softmax_equals_scipy(seed):
    logits, _ = rows(seed)
    np.testing.assert_allclose(log_softmax(logits), scipy.special.log_softmax(logits, axis=1))
    np.testing.assert_allclose(sigmoid(logits), scipy.special.expit(logits))


def test_nll_is_finite_where_a_probability_rounds_to_zero():
    assert nll([[0.0, 2000.0]], [0]) == 2000.0


@given(seeds, st.integers(1, 20))
def test_ece_is_its_definition(seed, num_bins):
    logits, labels = rows(seed)
    p = softmax(logits)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    total = 0.0
    for m in range(num_bins):
        inside = (confidence > m / num_bins) & (confidence <= (m + 1) / num_bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert ece(p, labels, num_bins) == pytest.approx(total)
    assert calibration_bins(p, labels, num_bins).rows.sum() == len(labels)


def test_ece_of_calibrated_rows_vanishes_and_of_overconfident_ones_does_not():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(40_000, 2))
    labels = (rng.random(len(logits)) < softmax(logits)[:, 1]).astype(int)
    assert ece(softmax(logits), labels) < 0.01
    assert ece(softmax(3 * logits), labels) > 0.1


def test_certain_and_right_is_perfect():
    assert brier(np.eye(3), [0, 1, 2]) == 0
    assert ece(np.eye(3), [0, 1, 2]) == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="row 1 sums to 5"):
        brier([[0.5, 0.5], [2.0, 3.0]], [0, 1])
    with pytest.raises(ValueError, match=r"smallest value -0\.5"):
        ece([[1.5, -0.5]], [0])
    with pytest.raises(ValueError, match="row 0 is class 2"):
        nll([[0.0, 1.0]], [2])
    with pytest.raises(ValueError, match="these are probabilities"):
        nll([[0.2, 0.8], [0.5, 0.5]], [0, 1])
    with pytest.raises(ValueError, match="num_bins is 0"):
        ece([[0.5, 0.5]], [0], num_bins=0)
