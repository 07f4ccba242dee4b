"""Intervals hold the truth as often as they say, shrink with the rows, and repeat by seed."""

import time

import numpy as np
import pytest

from sftjax.evaluate import Undefined, accuracy, auroc, bootstrap, mse, paired_bootstrap, spearman


def coin(rng, rows, share=0.8):
    """Predictions that are right with this chance, and their labels."""
    labels = np.zeros(rows, int)
    return (rng.random(rows) >= share).astype(int), labels


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(method):
    rng = np.random.default_rng(0)
    runs = 200
    inside = 0
    for seed in range(runs):
        interval = bootstrap(accuracy, *coin(rng, 150), resamples=200, method=method, seed=seed)
        inside += interval.low <= 0.8 <= interval.high
    # Three standard errors of 200 draws at 95 % are 4.6 points; the method itself loses about 1.
    assert 0.89 <= inside / runs <= 0.99


def test_width_shrinks_with_the_root_of_the_rows():
    rng = np.random.default_rng(0)
    few, many = (bootstrap(accuracy, *coin(rng, n)) for n in (250, 4000))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.2)


def test_width_is_the_normal_one_for_a_mean():
    predictions, labels = coin(np.random.default_rng(1), 2000)
    interval = bootstrap(accuracy, predictions, labels)
    share = interval.value
    expected = 2 * 1.96 * np.sqrt(share * (1 - share) / 2000)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_a_seed_repeats_and_another_differs():
    rows = coin(np.random.default_rng(0), 500)
    assert bootstrap(accuracy, *rows, seed=3) == bootstrap(accuracy, *rows, seed=3)
    assert bootstrap(accuracy, *rows, seed=3) != bootstrap(accuracy, *rows, seed=4)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_copies_of_rows_in_one_group_are_worth_one_row(method):
    predictions, labels = coin(np.random.default_rng(0), 100)
    copies = np.repeat(np.arange(100), 9)
    alone = bootstrap(accuracy, predictions, labels, method=method)
    copied = bootstrap(accuracy, predictions[copies], labels[copies], groups=copies, method=method)
    assert copied == pytest.approx(alone)
    ignored = bootstrap(accuracy, predictions[copies], labels[copies], method=method)
    assert ignored.high - ignored.low < 0.5 * (copied.high - copied.low)


def test_group_ids_may_be_names_and_rows_may_be_lists():
    predictions, labels = coin(np.random.default_rng(0), 60)
    number = np.arange(60) // 3
    by_number = bootstrap(accuracy, predictions, labels, groups=number)
    by_name = bootstrap(
        accuracy, list(predictions), list(labels), groups=[f"a{n:02}" for n in number]
    )
    assert by_number == by_name


def test_a_model_does_not_differ_from_itself():
    predictions, labels = coin(np.random.default_rng(0), 200)
    interval = paired_bootstrap(accuracy, predictions, predictions, labels)
    assert interval[:3] == (0.0, 0.0, 0.0)


def test_pairing_sees_what_two_intervals_cannot():
    rng = np.random.default_rng(0)
    predictions, labels = coin(rng, 1000, share=0.7)
    better = np.where(rng.random(1000) < 0.05, labels, predictions)
    gain = paired_bootstrap(accuracy, better, predictions, labels)
    assert gain.value == pytest.approx(accuracy(better, labels) - accuracy(predictions, labels))
    assert gain.low > 0
    ours, theirs = (bootstrap(accuracy, p, labels) for p in (better, predictions))
    assert ours.low < theirs.high
    assert gain.high - gain.low < 0.5 * (ours.high - ours.low)


def test_bca_leans_where_the_metric_is_skewed():
    rng = np.random.default_rng(0)
    predictions, labels = rng.exponential(size=60) ** 2, np.zeros(60)
    plain = bootstrap(mse, predictions, labels)
    leaning = bootstrap(mse, predictions, labels, method="bca")
    assert leaning.high > plain.high
    assert leaning.low > plain.low


def test_bca_equals_scipy():
    import scipy.stats

    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    y = x + rng.normal(size=120)
    theirs = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: spearman(a, b),
        paired=True,
        vectorized=False,
        method="BCa",
        n_resamples=2000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = bootstrap(spearman, x, y, method="bca", resamples=2000)
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_resamples_without_a_value_are_counted():
    labels = np.array([1] + [0] * 19)
    interval = bootstrap(auroc, np.linspace(1, 0, 20), labels, resamples=500)
    # The one positive row is absent from (19/20)^20 = 36 % of resamples.
    assert interval.undefined == pytest.approx(0.36 * 500, rel=0.15)
    assert interval.resamples + interval.undefined == 500


def test_a_metric_without_a_value_is_an_error():
    with pytest.raises(Undefined, match="all 3 rows are 0"):
        bootstrap(auroc, np.ones(3), np.zeros(3, int))
    with pytest.raises(ValueError, match="'bca' measures without each group"):
        bootstrap(auroc, np.linspace(1, 0, 20), np.array([1] + [0] * 19), method="bca")
    with pytest.raises(ValueError, match=r"no value on .* of 100 resamples of 2 rows in 1 groups"):
        bootstrap(_only_once(), np.ones(2), np.ones(2), groups=[0, 0], resamples=100)


def _only_once():
    calls = iter([0.5])

    def metric(predictions, labels):
        for value in calls:
            return value
        raise Undefined("no value")

    return metric


@pytest.mark.parametrize("metric", [accuracy, auroc])
def test_a_thousand_resamples_of_two_thousand_rows_take_about_a_second(metric):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=2000)
    predictions = labels if metric is accuracy else labels + rng.normal(size=2000)
    start = time.process_time()
    bootstrap(metric, predictions, labels)
    assert time.process_time() - start < 3  # 0.1 s and 0.3 s on an idle core


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"groups": [1]}, "1 group ids for 4 rows"),
        ({"resamples": 1}, "resamples is 1"),
        ({"level": 95}, "level is 95"),
        ({"method": "student"}, "'student' is unknown"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        bootstrap(accuracy, np.zeros(4, int), np.zeros(4, int), **arguments)
    with pytest.raises(ValueError, match=words):
        paired_bootstrap(accuracy, *[np.zeros(4, int)] * 3, **arguments)
