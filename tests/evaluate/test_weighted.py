"""What is measured on many resamples at once is what is measured on each of them."""

import importlib

import numpy as np
import pytest

from sftjax import evaluate
from sftjax.evaluate import (
    OfSums,
    Prepared,
    Undefined,
    bootstrap,
    paired_bootstrap,
    softmax,
    standard,
)
from sftjax.evaluate.weighted import _FORMS, weighted_form

ROWS, CLASSES = 40, 3


def classes(rng):
    return rng.integers(CLASSES, size=ROWS), rng.integers(CLASSES, size=ROWS)


def binary(rng):
    return rng.normal(size=ROWS).round(1), rng.integers(2, size=ROWS)  # rounded: with ties


def logits(rng):
    return rng.normal(size=(ROWS, CLASSES)), rng.integers(CLASSES, size=ROWS)


def probabilities(rng):
    z, labels = logits(rng)
    return softmax(z.round(1)), labels


def mirrored(rng):
    margin = rng.normal(size=ROWS).round(1)
    return np.stack([-margin, margin], axis=1), rng.integers(2, size=ROWS)


def yes_and_no(rng):
    return rng.integers(2, size=(ROWS, CLASSES)), rng.integers(2, size=(ROWS, CLASSES))


def label_scores(rng):
    return rng.normal(size=(ROWS, CLASSES)).round(1), rng.integers(2, size=(ROWS, CLASSES))


def numbers(rng):
    return rng.normal(size=ROWS), rng.normal(size=ROWS)


def counted(rng):
    values, labels = numbers(rng)
    return np.where(rng.random(ROWS) < 0.5, values, np.nan), labels


def sets(rng):
    return rng.random((ROWS, CLASSES)) < 0.7, rng.integers(CLASSES, size=ROWS)


OF = {
    "row_mean": [numbers],
    "counted_mean": [counted],
    "accuracy": [classes],
    "balanced_accuracy": [classes],
    "macro_f1": [classes],
    "weighted_f1": [classes],
    "mcc": [classes],
    "auroc": [binary],
    "auroc_one_vs_rest": [probabilities, mirrored],
    "auroc_per_label": [label_scores],
    "average_precision": [binary],
    "average_precision_one_vs_rest": [probabilities],
    "nll": [logits],
    "brier": [probabilities],
    "ece": [probabilities],
    "coverage": [sets],
    "subset_accuracy": [yes_and_no],
    "multilabel_micro_f1": [yes_and_no],
    "multilabel_macro_f1": [yes_and_no],
    "mse": [numbers],
    "rmse": [numbers],
    "mae": [numbers],
}
CASES = [(name, make) for name, makes in OF.items() for make in makes]


def test_every_form_is_tested():
    assert {metric.__name__ for metric in _FORMS} == set(OF)


@pytest.mark.parametrize(("name", "make"), CASES)
def test_weights_count_a_row_as_often_as_it_is_repeated(name, make):
    metric = getattr(evaluate, name)
    rng = np.random.default_rng(0)
    predictions, labels = make(rng)
    draws = rng.integers(0, 4, size=(ROWS, 50)) * (rng.random((ROWS, 50)) < 0.15)  # few are there
    draws[0] = np.maximum(draws[0], 1)
    found = weighted_form(metric)(predictions, labels, draws.astype(float))
    undefined = 0
    for times, value in zip(draws.T, found, strict=True):
        rows = np.repeat(np.arange(ROWS), times)
        try:
            assert value == pytest.approx(metric(predictions[rows], labels[rows]), rel=1e-12)
        except Undefined:
            undefined += 1
            assert np.isnan(value)
    if name == "auroc_per_label":
        assert 0 < undefined < 50, "both kinds are among the draws"


@pytest.mark.parametrize(("name", "make"), CASES)
@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_an_interval_is_that_of_a_metric_without_a_form(name, make, method):
    metric = getattr(evaluate, name)
    predictions, labels = make(np.random.default_rng(1))
    options = {"groups": np.arange(ROWS) // 2, "resamples": 60, "method": method}
    plain = bootstrap(lambda p, y: metric(p, y), predictions, labels, **options)
    assert bootstrap(metric, predictions, labels, **options) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("name", ["accuracy", "mcc"])
def test_a_paired_interval_is_that_of_a_metric_without_a_form(name):
    metric = getattr(evaluate, name)
    rng = np.random.default_rng(2)
    ours, labels = classes(rng)
    theirs, _ = classes(rng)
    of_shifted = Prepared(lambda p, y: (p - 1, y - 1), metric)
    plain = paired_bootstrap(lambda p, y: metric(p, y), ours, theirs, labels, resamples=60)
    for given, by in ((metric, 0), (of_shifted, 1)):
        found = paired_bootstrap(given, ours + by, theirs + by, labels + by, resamples=60)
        assert found == pytest.approx(plain, rel=1e-9)


def test_a_metric_of_sums_has_a_form():
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 2, size=(ROWS, 2, 2))

    def score(sums):
        if sums[0, 0] < 3:
            raise Undefined("few")
        return float(sums[0, 0] / sums.sum())

    plain = bootstrap(lambda rows, _: score(rows.sum(axis=0)), counts[:9], counts[:9])
    assert plain.undefined > 0
    found = bootstrap(OfSums(score), counts[:9], counts[:9])
    assert found == pytest.approx(plain, rel=1e-12)


def test_entities_are_read_once_and_counted_for_each_resample():
    rng = np.random.default_rng(6)
    logits = [rng.normal(size=(size, 3)) for size in rng.integers(3, 9, size=ROWS)]
    labels = [rng.integers(3, size=len(row)) for row in logits]
    labels[0][:] = -100
    usual = standard("token_classification", ["O", "B-X", "I-X"])
    names = ["O", "B-X", "I-X"]

    def f1(rows, truth):
        ids = [row.argmax(1) for row in rows]
        return evaluate.entity_f1(*evaluate.tags_of_ids(ids, truth, names))

    def accuracy(rows, truth):
        return evaluate.token_accuracy([row.argmax(1) for row in rows], truth)

    for name, plain in (("f1", f1), ("accuracy", accuracy)):
        expected = bootstrap(plain, logits, labels, resamples=60)
        found = bootstrap(usual[name], logits, labels, resamples=60)
        assert found == pytest.approx(expected, rel=1e-12)


def test_portions_of_resamples_are_the_resamples(monkeypatch):
    predictions, labels = binary(np.random.default_rng(3))
    whole = bootstrap(evaluate.auroc, predictions, labels, resamples=60, method="bca")
    module = importlib.import_module("sftjax.evaluate.bootstrap")  # a function has its name
    monkeypatch.setattr(module, "_AT_ONCE", 7 * ROWS + 1)
    cut = bootstrap(evaluate.auroc, predictions, labels, resamples=60, method="bca")
    assert cut == pytest.approx(whole, rel=1e-12)


def test_rows_are_prepared_once():
    seen = []

    def rows(predictions, labels):
        seen.append(len(labels))
        return predictions > 0, labels

    predictions, labels = binary(np.random.default_rng(4))
    bootstrap(Prepared(rows, lambda p, y: float((p == y).mean())), predictions, labels)
    assert seen == [ROWS]


def test_the_usual_metrics_of_classes_have_forms():
    for kind in ("single_label_classification", "multi_label_classification"):
        for name, metric in standard(kind).items():
            bare = metric.metric if isinstance(metric, Prepared) else metric
            assert weighted_form(bare) is not None, name
