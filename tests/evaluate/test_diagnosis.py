"""Measures of a diagnosis: equal to scikit-learn's to 1e-6, and oracle O20."""

import pathlib

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from sftjax.evaluate import (
    Interval,
    Undefined,
    accuracy,
    at_threshold,
    auroc,
    auroc_per_class,
    average_precision_one_vs_rest,
    average_precision_per_class,
    bootstrap,
    brier,
    choose_threshold,
    cohen_kappa,
    coverage,
    dice,
    dice_per_class,
    ece,
    ece_equal_mass,
    fit_conformal,
    fit_isotonic,
    fit_temperature,
    fit_vector,
    mean_size,
    nll,
    quadratic_kappa,
    screening_metrics,
    sensitivity_at_specificity,
    softmax,
    specificity_at_sensitivity,
    subgroup_table,
    with_intervals,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(400, 3)) * 1.5
LABELS = np.array([RNG.choice(3, p=row) for row in softmax(LOGITS)])
BINARY = (LABELS == 2).astype(int)
SCORES = np.round(LOGITS[:, 2], 1)  # with ties


def test_areas_are_scikit_learns():
    p = softmax(LOGITS)
    hot = np.eye(3)[LABELS]
    np.testing.assert_allclose(
        auroc_per_class(p, LABELS), sk.roc_auc_score(hot, p, average=None), atol=1e-9
    )
    expected = sk.average_precision_score(hot, p, average=None)
    np.testing.assert_allclose(average_precision_per_class(p, LABELS), expected, atol=1e-9)
    assert average_precision_one_vs_rest(p, LABELS) == pytest.approx(expected.mean(), abs=1e-9)
    few = LABELS < 2
    assert np.isnan(auroc_per_class(p[few], LABELS[few])[2])
    with pytest.raises(Undefined, match="no row is of class 2"):
        average_precision_one_vs_rest(p[few], LABELS[few])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.95, 1.0])
def test_sensitivity_at_specificity_is_read_off_scikit_learns_curve(share):
    fall_out, recall, _ = sk.roc_curve(BINARY, SCORES, drop_intermediate=False)
    spared = 1 - fall_out
    assert sensitivity_at_specificity(SCORES, BINARY, share) == pytest.approx(
        recall[spared >= share - 1e-12].max(), abs=1e-9
    )
    assert specificity_at_sensitivity(SCORES, BINARY, share) == pytest.approx(
        spared[recall >= share - 1e-12].max(), abs=1e-9
    )


def test_a_threshold_is_chosen_on_some_rows_and_measured_on_others():
    chosen = choose_threshold(SCORES[:200], BINARY[:200], "sensitivity", 0.9)
    there = at_threshold(SCORES[:200], BINARY[:200], chosen)
    assert (there.sensitivity, there.specificity) == pytest.approx(chosen[-2:])
    assert chosen.sensitivity >= 0.9
    assert chosen.specificity == pytest.approx(
        specificity_at_sensitivity(SCORES[:200], BINARY[:200], 0.9)
    )
    elsewhere = at_threshold(SCORES[200:], BINARY[200:], chosen)
    marked = SCORES[200:] >= chosen.value
    assert elsewhere.sensitivity == pytest.approx(sk.recall_score(BINARY[200:], marked))
    assert elsewhere.ppv == pytest.approx(sk.precision_score(BINARY[200:], marked))
    assert elsewhere.specificity == pytest.approx(
        sk.recall_score(BINARY[200:], marked, pos_label=0)
    )
    best = choose_threshold(SCORES, BINARY, "f1")
    every = [sk.f1_score(BINARY, cut <= SCORES) for cut in np.unique(SCORES)]
    assert sk.f1_score(BINARY, best.value <= SCORES) == pytest.approx(max(every))
    with pytest.raises(Undefined, match="rows of both kinds"):
        choose_threshold(SCORES[BINARY == 0], BINARY[BINARY == 0])


def test_metrics_of_a_threshold_are_what_it_measures():
    cut = float(np.median(SCORES))
    there = at_threshold(SCORES, BINARY, cut)
    for name, metric in screening_metrics(cut).items():
        assert metric(SCORES, BINARY) == pytest.approx(getattr(there, name), rel=1e-12)
    positive = BINARY == 1
    with pytest.raises(Undefined, match="no row"):
        screening_metrics(cut)["specificity"](SCORES[positive], BINARY[positive])
    with pytest.raises(ValueError, match="2 predictions for 1 labels"):
        screening_metrics(cut)["ppv"]([0.1, 0.2], [1])


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_kappa(weights):
    found = np.clip(LABELS + RNG.integers(-1, 2, 400), 0, 2)
    expected = sk.cohen_kappa_score(LABELS, found, weights=None if weights == "none" else weights)
    assert cohen_kappa(found, LABELS, weights) == pytest.approx(expected, abs=1e-9)
    if weights == "quadratic":
        assert quadratic_kappa(found, LABELS) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(Undefined):
        cohen_kappa([1, 1], [1, 1], weights)


def test_dice_is_f1_of_pixels():
    labels, found = RNG.integers(0, 3, (2, 5, 5)), RNG.integers(0, 3, (2, 5, 5))
    expected = sk.f1_score(labels.ravel(), found.ravel(), average=None)
    np.testing.assert_allclose(dice_per_class(found, labels, 3), expected, atol=1e-9)
    assert dice(found, labels, 3) == pytest.approx(expected[1:].mean())
    labels[0] = -100
    expected = sk.f1_score(labels[1].ravel(), found[1].ravel(), average=None)
    np.testing.assert_allclose(dice_per_class(found, labels, 3), expected, atol=1e-9)


def test_temperature_undoes_a_factor_and_keeps_the_choice():
    calibrated = fit_temperature(LOGITS, LABELS)
    three = fit_temperature(3 * LOGITS, LABELS)
    assert three.temperature == pytest.approx(3 * calibrated.temperature, rel=1e-6)
    # Labels in the very proportions of the probabilities: the optimum is exactly 3.
    p = np.array([[0.8, 0.2], [0.3, 0.7]])
    z = np.log(np.repeat(p, 10, 0))
    labels = np.repeat([0, 1, 0, 1], [8, 2, 3, 7])
    assert fit_temperature(3 * z, labels).temperature == pytest.approx(3.0, abs=1e-6)
    np.testing.assert_array_equal(three.apply(3 * LOGITS).argmax(1), LOGITS.argmax(1))
    hot = np.eye(3)[LABELS]
    assert ece(hot, LABELS) == 0
    assert ece_equal_mass(hot, LABELS) == 0
    with pytest.raises(ValueError, match="no temperature is best"):
        fit_temperature(hot, LABELS)


def test_vector_scaling_undoes_scales_and_shifts():
    from sklearn.linear_model import LogisticRegression

    bent = LOGITS * [2.0, 1.0, 0.5] + [1.0, -1.0, 0.0]
    vector = fit_vector(bent, LABELS, ridge=1e-9)
    assert nll(np.log(vector.apply(bent)), LABELS) < nll(
        np.log(fit_temperature(bent, LABELS).apply(bent)), LABELS
    )
    # A full matrix can do no worse, and hardly better, since the truth is diagonal.
    full = LogisticRegression(C=1e6, max_iter=2000).fit(bent, LABELS)
    gap = nll(np.log(vector.apply(bent)), LABELS) - sk.log_loss(LABELS, full.predict_proba(bent))
    assert -1e-9 <= gap < 0.02


def test_isotonic_and_brier_are_scikit_learns():
    from sklearn.isotonic import IsotonicRegression

    p = softmax(LOGITS)
    each = fit_isotonic(LOGITS, LABELS).apply(LOGITS)
    np.testing.assert_allclose(each.sum(1), 1)
    steps = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    theirs = np.stack([steps.fit_transform(p[:, k], k == LABELS) for k in range(3)], 1)
    np.testing.assert_allclose(each, theirs / theirs.sum(1, keepdims=True), atol=1e-9)
    assert brier(each, LABELS) < brier(p, LABELS)
    assert brier(p, LABELS) == pytest.approx(((p - np.eye(3)[LABELS]) ** 2).sum(1).mean(), abs=1e-9)


def test_equal_mass_bins_by_hand():
    p = np.array([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]])
    labels = np.array([0, 1, 0, 0])
    expected = (abs(1.3 - 1) + abs(1.7 - 2)) / 4
    assert ece_equal_mass(p, labels, 2) == pytest.approx(expected)


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_conformal_sets_cover_what_they_promise(method):
    p = softmax(RNG.normal(size=(6000, 5)) * 1.5)
    labels = np.array([RNG.choice(5, p=row) for row in p])
    conformal = fit_conformal(p[:1000], labels[:1000], 0.1, method)
    sets = conformal.sets(p[1000:])
    # Coverage given the calibration rows is Beta(901, 100); 4 deviations of it and of 5000 draws.
    spread = np.sqrt(0.9 * 0.1 / 1001 + 0.9 * 0.1 / 5000)
    assert abs(coverage(sets, labels[1000:]) - 0.9) < 4 * spread
    assert 1 < mean_size(sets) < 5
    few = fit_conformal(p[:5], labels[:5], 0.1, method)
    assert few.sets(p).all()  # five rows cannot promise 90 %
    if method == "aps":
        assert sets.any(1).all()


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01])
def test_sets_cover_what_they_promise_on_real_predictions(alpha):
    """Of blood cells, by a network that `sftjax diagnose` tuned on the other smears.

    `sftjax diagnose --model asset:efficientnet-lite0 --data BCCD --image-size 64 --train last:3
    --keep-prefix --num-train-epochs 3 --learning-rate 1e-3`; its test pictures, 945 cells of 72
    smears (BCCD data set, MIT), half of the smears to calibrate on and half to measure.
    """
    with np.load(pathlib.Path(__file__).parent / "blood_cells.npz") as kept:
        p, labels, smears = kept["probabilities"], kept["labels"].astype(int), kept["groups"]
    assert 0.99 < np.mean(p.argmax(1) == labels) < 1
    covered = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(np.unique(smears))
        own = np.isin(smears, order[: len(order) // 2])
        conformal = fit_conformal(p[own], labels[own], alpha, "lac")
        sets = conformal.sets(p[~own])
        rows = (~own).sum()
        low, high = np.divide(stats.binom.interval(0.999, rows, 1 - alpha), rows)
        # The calibration pictures are a draw as well: Beta(n + 1 - l, l) with l = (n + 1) alpha.
        miss = (own.sum() + 1) * alpha
        below, above = stats.beta.interval(0.999, own.sum() + 1 - miss, miss)
        assert low + below - (1 - alpha) < coverage(sets, labels[~own]) < high + above - (1 - alpha)
        covered.append(coverage(sets, labels[~own]))
        filled = conformal.sets(p[~own], never_empty=True)
        assert filled.any(1).all()
        assert (filled >= sets).all()
        assert mean_size(filled) < 1.05
    low, high = np.divide(stats.binom.interval(0.99, len(labels), 1 - alpha), len(labels))
    assert low < np.mean(covered) < high


def test_intervals_over_patients_and_subgroups():
    patients = np.arange(400) // 8
    found = with_intervals({"auroc": auroc}, SCORES, BINARY, groups=patients, resamples=200)
    assert found["auroc"] == bootstrap(auroc, SCORES, BINARY, groups=patients, resamples=200)
    assert isinstance(found["auroc"], Interval)
    site = np.where(np.arange(400) < 390, "a", "b")
    rows = subgroup_table(
        {"accuracy": accuracy}, LOGITS.argmax(1), LABELS, {"site": site},
        groups=patients, resamples=50,
    )  # fmt: skip
    assert [(row["subgroup"], row["rows"], row["groups"]) for row in rows] == [
        ("all", 400, 50), ("site=a", 390, 49), ("site=b", 10, 2)]  # fmt: skip
    assert "accuracy" not in rows[2]
    assert rows[1]["accuracy"].value == accuracy(LOGITS.argmax(1)[:390], LABELS[:390])
    one = with_intervals({"auroc": auroc}, SCORES[:9], np.zeros(9, int))
    assert np.isnan(one["auroc"])
