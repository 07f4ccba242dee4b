"""Scores that order rows: equal to scikit-learn and scipy, ties and all."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from sftjax.evaluate import (
    Undefined,
    auroc,
    auroc_one_vs_rest,
    auroc_per_label,
    average_precision,
    average_ranks,
    softmax,
)

coarse = st.integers(-3, 3).map(float)  # few values, many ties
fine = st.floats(-1e6, 1e6)


@st.composite
def binary(draw):
    rows = draw(st.integers(2, 40))
    values = draw(st.lists(st.one_of(coarse, fine), min_size=rows, max_size=rows))
    labels = draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    labels[:2] = [0, 1]
    return np.array(values), np.array(labels)


@given(st.lists(st.one_of(coarse, fine), min_size=1, max_size=40))
def test_ranks_equal_scipy(values):
    np.testing.assert_array_equal(average_ranks(values), scipy.stats.rankdata(values))


@settings(deadline=None, max_examples=60)
@given(binary())
def test_binary_scores_equal_scikit_learn(pair):
    values, labels = pair
    assert auroc(values, labels) == pytest.approx(reference.roc_auc_score(labels, values))
    assert average_precision(values, labels) == pytest.approx(
        reference.average_precision_score(labels, values)
    )


@given(binary())
def test_auroc_is_the_share_of_ordered_pairs(pair):
    values, labels = pair
    difference = values[labels == 1][:, None] - values[labels == 0][None]
    pairs = np.mean((difference > 0) + 0.5 * (difference == 0))
    assert auroc(values, labels) == pytest.approx(pairs, abs=1e-12)


@given(binary())
def test_auroc_turns_around_with_the_scores_and_ignores_their_scale(pair):
    values, labels = pair
    assert auroc(-values, labels) == pytest.approx(1 - auroc(values, labels), abs=1e-12)
    assert auroc(average_ranks(values) ** 3, labels) == auroc(values, labels)


def test_constant_scores_are_chance():
    assert auroc(np.ones(5), [0, 1, 1, 0, 1]) == 0.5
    assert average_precision(np.ones(5), [0, 1, 1, 0, 1]) == pytest.approx(0.6)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_multiclass_and_multilabel_equal_scikit_learn(classes, seed, tied):
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(classes), rng.integers(classes, size=20))
    logits = rng.normal(size=(len(labels), classes))
    p = softmax(np.round(logits) if tied else logits)
    assert auroc_one_vs_rest(p, labels) == pytest.approx(
        reference.roc_auc_score(labels, p, multi_class="ovr", average="macro")
    )
    yes = np.eye(classes, dtype=int)[labels]
    assert auroc_per_label(p, yes) == pytest.approx(reference.roc_auc_score(yes, p))


def test_what_has_no_value_says_which_class_is_missing():
    with pytest.raises(Undefined, match="all 2 rows are 1 in labels"):
        auroc([0.1, 0.2], [1, 1])
    with pytest.raises(Undefined, match="class 2"):
        auroc_one_vs_rest(np.eye(3)[:2], [0, 1])
    with pytest.raises(Undefined, match="label column 1"):
        auroc_per_label([[0.1, 0.2], [0.3, 0.4]], [[0, 1], [1, 1]])
    with pytest.raises(Undefined, match="class 1"):
        average_precision([0.1, 0.2], [0, 0])


@pytest.mark.parametrize(
    ("values", "labels", "words"),
    [
        ([0.1, float("nan")], [0, 1], "row 1 is nan"),
        ([0.1, float("-inf")], [0, 1], "row 1 is -inf"),
        ([0.1, 0.2], [0, 2], "row 1 is 2; expected only 0 and 1"),
        ([0.1, 0.2, 0.3], [0, 1], "3 predictions for 2 labels"),
    ],
)
def test_bad_input_is_named(values, labels, words):
    with pytest.raises(ValueError, match=words):
        auroc(values, labels)
