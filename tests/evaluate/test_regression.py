"""Numbers against numbers: equal to scikit-learn and scipy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from sftjax.evaluate import Undefined, mae, mse, pearson, r2, rmse, spearman

number = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3).map(lambda x: round(x, 3)))


@st.composite
def numbers(draw):
    rows = draw(st.integers(3, 40))
    column = st.lists(number, min_size=rows, max_size=rows).map(np.array)
    predicted, true = draw(column), draw(column)
    assume(np.ptp(predicted) > 0 and np.ptp(true) > 0)
    return predicted, true


@settings(deadline=None, max_examples=60)
@given(numbers())
def test_every_metric_equals_the_reference(pair):
    predicted, true = pair
    assert mse(predicted, true) == pytest.approx(reference.mean_squared_error(true, predicted))
    assert rmse(predicted, true) == pytest.approx(
        reference.root_mean_squared_error(true, predicted)
    )
    assert mae(predicted, true) == pytest.approx(reference.mean_absolute_error(true, predicted))
    assert r2(predicted, true) == pytest.approx(reference.r2_score(true, predicted), abs=1e-9)
    assert pearson(predicted, true) == pytest.approx(
        scipy.stats.pearsonr(predicted, true).statistic, abs=1e-9
    )
    assert spearman(predicted, true) == pytest.approx(
        scipy.stats.spearmanr(predicted, true).statistic, abs=1e-9
    )


@given(numbers(), st.floats(0.1, 10), st.floats(-10, 10))
def test_pearson_ignores_scale_and_offset_and_spearman_any_rising_map(pair, scale, offset):
    predicted, true = pair
    assert pearson(scale * predicted + offset, true) == pytest.approx(
        pearson(predicted, true), abs=1e-9
    )
    assert spearman(np.cbrt(predicted), true) == pytest.approx(spearman(predicted, true))


def test_tiny_spreads_do_not_underflow():
    x = np.array([1.0, 2.0, 3.0]) * 1e-200
    assert pearson(x, -x) == -1.0


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_a_constant_has_no_correlation(metric):
    with pytest.raises(Undefined, match="all 3 predictions are 2"):
        metric([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(Undefined, match="all 3 labels are 2"):
        metric([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])


def test_r2_of_equal_labels_has_no_value():
    with pytest.raises(Undefined, match="all 2 labels are 1"):
        r2([1.0, 2.0], [1.0, 1.0])


def test_a_nan_label_is_named_with_its_row():
    with pytest.raises(ValueError, match="labels: row 1 is nan"):
        mse([1.0, 2.0], [1.0, float("nan")])
