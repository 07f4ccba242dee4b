"""Class ids against class ids: equal to scikit-learn on everything hypothesis can think of."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from sftjax.evaluate import (
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    macro_f1,
    mcc,
    per_class,
    weighted_f1,
)


@st.composite
def ids(draw):
    """Predictions and labels of up to four classes: constant, missing and unseen ones included."""
    rows = draw(st.integers(1, 40))
    column = st.lists(st.integers(0, draw(st.integers(0, 3))), min_size=rows, max_size=rows)
    return np.array(draw(column)), np.array(draw(column))


@settings(deadline=None, max_examples=60)
@given(ids())
def test_every_metric_equals_scikit_learn(pair):
    predicted, true = pair
    cut = {"zero_division": 0.0}
    assert accuracy(predicted, true) == pytest.approx(reference.accuracy_score(true, predicted))
    assert macro_f1(predicted, true) == pytest.approx(
        reference.f1_score(true, predicted, average="macro", **cut)
    )
    assert weighted_f1(predicted, true) == pytest.approx(
        reference.f1_score(true, predicted, average="weighted", **cut)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a single class, and of classes no label has
        balanced = reference.balanced_accuracy_score(true, predicted)
        correlation = reference.matthews_corrcoef(true, predicted)
    assert balanced_accuracy(predicted, true) == pytest.approx(balanced)
    assert mcc(predicted, true) == pytest.approx(correlation, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(ids())
def test_counts_and_scores_of_each_class_equal_scikit_learn(pair):
    predicted, true = pair
    classes = list(range(5))
    assert (
        confusion_matrix(predicted, true, 5)
        == reference.confusion_matrix(true, predicted, labels=classes)
    ).all()
    expected = reference.precision_recall_fscore_support(
        true, predicted, labels=classes, zero_division=0.0
    )
    for ours, theirs in zip(per_class(predicted, true, 5), expected, strict=True):
        np.testing.assert_allclose(ours, theirs)


@given(ids(), st.permutations(range(4)))
def test_renaming_the_classes_changes_no_score(pair, names):
    predicted, true = pair
    names = np.array(names)
    for metric in (accuracy, balanced_accuracy, macro_f1, weighted_f1, mcc):
        assert metric(names[predicted], names[true]) == pytest.approx(metric(predicted, true))


def test_a_million_rows_do_not_overflow_mcc():
    true = np.arange(2_000_000, dtype=np.int32) % 2
    assert mcc(true, true) == 1.0
    assert mcc(1 - true, true) == -1.0


@pytest.mark.parametrize(
    ("predictions", "labels", "words"),
    [
        ([0, 1], [0], "2 predictions for 1 labels"),
        ([], [], "no rows"),
        ([[0, 1]], [0], "predictions: expected shape"),
        ([0.0, 1.0], [0, 1], "argmax"),
        ([0, 1], [0, -100], "row 1 is -100"),
        (["a"], [0], "map names to ids"),
    ],
)
def test_bad_input_is_named(predictions, labels, words):
    with pytest.raises(ValueError, match=words):
        accuracy(predictions, labels)


def test_a_class_beyond_the_model_is_named_with_its_row():
    with pytest.raises(ValueError, match="row 1 is class 3, but there are 3 classes"):
        confusion_matrix([0, 0], [0, 3], num_classes=3)
