"""Several labels a row: equal to scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from sftjax.evaluate import (
    multilabel_macro_f1,
    multilabel_micro_f1,
    per_label,
    subset_accuracy,
)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(2, 5), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.data())
def test_every_metric_equals_scikit_learn(rows, columns, share, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    predicted = (rng.random((rows, columns)) < 0.4).astype(int)
    true = (rng.random((rows, columns)) < share).astype(float)
    cut = {"zero_division": 0.0}
    assert subset_accuracy(predicted, true) == reference.accuracy_score(true, predicted)
    assert multilabel_micro_f1(predicted, true) == pytest.approx(
        reference.f1_score(true, predicted, average="micro", **cut)
    )
    assert multilabel_macro_f1(predicted, true) == pytest.approx(
        reference.f1_score(true, predicted, average="macro", **cut)
    )
    expected = reference.precision_recall_fscore_support(true, predicted, **cut)
    for ours, theirs in zip(per_label(predicted, true), expected, strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"labels: row 1 is \[0.  0.5\]"):
        subset_accuracy([[0, 1], [0, 1]], [[0, 1], [0, 0.5]])
    with pytest.raises(ValueError, match=r"predictions are \(1, 2\), labels \(1, 3\)"):
        subset_accuracy([[0, 1]], [[0, 1, 1]])
