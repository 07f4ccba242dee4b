"""Intervals of paired differences are Student's, hold the truth as often as they say, and pair."""

import math

import numpy as np
import pytest
import scipy.stats

from sftjax.evaluate.paired import paired_difference, summarize, t_interval, t_quantile
from sftjax.evaluate.tables import table_markdown


def rows_of(gains, seeds=8, noise=0.01, rng=None, **more):
    """Runs whose accuracy is the seed's own, the method's gain, and noise."""
    rng = np.random.default_rng(0) if rng is None else rng
    base = rng.normal(0.7, 0.1, seeds)
    return [
        {"method": method, "seed": seed, "accuracy": base[seed] + gain + noise * rng.normal()}
        | more
        for method, gain in gains.items()
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 31, 100, 1001])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.995, 0.9995, 0.1])
def test_quantiles_are_scipys(probability, freedom):
    theirs = scipy.stats.t.ppf(probability, freedom)
    assert t_quantile(probability, freedom) == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_intervals_are_scipys():
    rng = np.random.default_rng(0)
    for size in (2, 3, 8, 50):
        ours, theirs = rng.normal(size=size), rng.normal(size=size)
        reference = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.9)
        interval = t_interval((ours - theirs).tolist(), 0.9)
        assert interval.value == pytest.approx((ours - theirs).mean(), abs=1e-10)
        assert (interval.low, interval.high) == pytest.approx(tuple(reference), abs=1e-10)


def test_intervals_of_three_values_hold_the_truth_as_often_as_they_say():
    """2000 draws at 95 %: three standard errors are 1.5 points. The normal 1.96 holds 81 %."""
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    intervals = [t_interval(draw.tolist()) for draw in draws]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) == pytest.approx(0.95, abs=0.015)
    normal = 1.96 * draws.std(axis=1, ddof=1) / np.sqrt(3)
    assert np.mean(np.abs(draws.mean(axis=1)) <= normal) < 0.85


def test_pairing_sees_what_two_spreads_cannot():
    rows = rows_of({"none": 0.0, "l2-sp": 0.03})
    (gain,) = paired_difference(rows, {"method": "none"}, "method", metrics="accuracy")
    none, anchored = summarize(rows, "method", "accuracy")
    assert gain["n"] == 8
    assert gain["accuracy"].low > 0
    assert gain["accuracy"].value == pytest.approx(anchored["accuracy"] - none["accuracy"])
    assert anchored["accuracy"] - none["accuracy"] < none["accuracy_sd"]


def test_a_method_does_not_differ_from_its_copy_and_the_order_of_rows_is_nothing():
    rows = rows_of({"none": 0.0})
    copy = [{**row, "method": "same"} for row in rows]
    both = paired_difference(rows + copy[::-1], {"method": "none"}, "method", metrics="accuracy")
    assert both[0]["accuracy"][:3] == (0.0, 0.0, 0.0)


def test_summaries_are_numpys():
    rows = rows_of({"none": 0.0, "ewc": 0.1}, seeds=5)
    for entry in summarize(rows, by=["method"], metrics=["accuracy"]):
        values = [r["accuracy"] for r in rows if r["method"] == entry["method"]]
        assert entry["n"] == 5
        assert entry["accuracy"] == pytest.approx(np.mean(values))
        assert entry["accuracy_sd"] == pytest.approx(np.std(values, ddof=1))


def test_columns_the_baseline_leaves_out_are_matched():
    rows = [
        {"method": m, "rate": rate, "seed": s, "loss": rate + (m == "ewc") * gap + 0.001 * s}
        for rate, gap in [(1.0, 0.5), (5.0, -0.25)]
        for m in ("none", "ewc")
        for s in range(3)
    ]
    found = paired_difference(rows, {"method": "none"}, ("method", "rate"), metrics="loss")
    assert [(row["method"], row["rate"]) for row in found] == [("ewc", 1.0), ("ewc", 5.0)]
    assert [row["loss"].value for row in found] == pytest.approx([0.5, -0.25])
    whole = paired_difference(
        rows, {"method": "none"}, "method", pair=("seed", "rate"), metrics=("loss",)
    )
    assert whole[0]["n"] == 6
    assert whole[0]["loss"].value == pytest.approx(0.125)


def test_one_pair_says_nothing_and_a_failed_run_is_not_hidden():
    rows = rows_of({"none": 0.0, "ewc": 0.1}, seeds=1)
    (single,) = paired_difference(rows, {"method": "none"}, "method", metrics="accuracy")
    assert (single["accuracy"].low, single["accuracy"].high) == (-math.inf, math.inf)
    assert math.isnan(summarize(rows, "method", "accuracy")[0]["accuracy_sd"])
    for bad in (math.nan, math.inf):
        rows = rows_of({"none": 0.0, "ewc": 0.1}, seeds=3)
        rows[-1]["accuracy"] = bad
        (failed,) = paired_difference(rows, {"method": "none"}, "method", metrics="accuracy")
        assert all(math.isnan(value) for value in failed["accuracy"][:3])
        none, ewc = summarize(rows, "method", "accuracy")
        assert math.isnan(ewc["accuracy"])
        assert math.isfinite(none["accuracy"])


def test_results_go_into_a_table():
    rows = rows_of({"none": 0.0, "ewc": 0.1})
    found = paired_difference(rows, {"method": "none"}, "method", metrics="accuracy")
    assert "| ewc    | 8 | 0.1" in table_markdown(found, ["method", "n", "accuracy"]).replace(
        "|   8 |", "| 8 |"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-1], "method=ewc and its baseline .* seed=2 is only in method=none"),
        (lambda rows: rows[1:], "seed=0 is only in method=ewc"),
        (lambda rows: [*rows, rows[-1]], "method=ewc has 2 rows with seed=2"),
        (lambda rows: rows[3:], "there are no rows of method=none. Settings with rows: method=ewc"),
        (lambda rows: [], "there are no rows"),
        (lambda rows: [*rows, {"method": "ewc", "seed": 3}], "row 6 has no column 'accuracy'"),
        (
            lambda rows: [*rows, {"method": "ewc", "seed": 3, "accuracy": "high"}],
            "row 6: accuracy is 'high', not a number",
        ),
    ],
)
def test_rows_that_do_not_pair_are_named(change, words):
    rows = change(rows_of({"none": 0.0, "ewc": 0.1}, seeds=3))
    with pytest.raises(ValueError, match=words):
        paired_difference(rows, {"method": "none"}, "method", metrics="accuracy")


def test_bad_arguments_are_named():
    rows = rows_of({"none": 0.0, "ewc": 0.1})
    with pytest.raises(ValueError, match="level is 95"):
        paired_difference(rows, {"method": "none"}, "method", metrics="accuracy", level=95)
    with pytest.raises(ValueError, match=r"must name its values of .* \(method\)"):
        paired_difference(rows, {"dose": 0}, "method", metrics="accuracy")
    with pytest.raises(ValueError, match="name at least one column"):
        summarize(rows, [], "accuracy")
    with pytest.raises(ValueError, match="there are no values"):
        t_interval([])
    with pytest.raises(ValueError, match=r"got 0\.975 and 0"):
        t_quantile(0.975, 0)
