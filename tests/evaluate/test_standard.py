"""The usual metrics by task: the same numbers as the functions, under names that users know."""

import math

import numpy as np
import pytest

from sftjax.evaluate import (
    accuracy,
    auroc,
    auroc_one_vs_rest,
    bootstrap,
    macro_f1,
    metrics,
    nll,
    softmax,
    spearman,
    standard,
)

rng = np.random.default_rng(0)


def test_classes():
    logits, labels = rng.normal(size=(40, 3)), np.arange(40) % 3
    found = metrics("single_label_classification", logits, labels, prefix="eval_")
    assert found["eval_accuracy"] == accuracy(logits.argmax(1), labels)
    assert found["eval_macro_f1"] == macro_f1(logits.argmax(1), labels)
    assert found["eval_nll"] == nll(logits, labels)
    assert found["eval_auroc"] == auroc_one_vs_rest(softmax(logits), labels)
    assert all(type(value) is float for value in found.values())


def test_two_classes_rank_by_the_margin_even_where_probabilities_are_equal():
    logits = np.array([[0.0, 100.0], [0.0, 90.0], [0.0, 80.0]])
    assert len(set(softmax(logits)[:, 1])) == 1
    assert metrics("single_label_classification", logits, [1, 0, 0])["auroc"] == 1.0


def test_labels_of_more_rows():
    logits, labels = rng.normal(size=(40, 2)), (np.arange(80) % 3 == 0).reshape(40, 2)
    found = metrics("multi_label_classification", logits.astype(np.float32), labels.astype(float))
    expected = np.mean([auroc(np.float32(logits)[:, k], labels[:, k]) for k in range(2)])
    assert found["auroc"] == pytest.approx(expected)
    assert found["subset_accuracy"] == np.mean(((logits > 0) == labels).all(1))


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_numbers(shape):
    predictions, labels = rng.normal(size=20), rng.normal(size=20)
    found = metrics("regression", predictions.reshape(shape), labels)
    assert found["spearman"] == spearman(predictions, labels)


def test_tokens():
    names = ["O", "B-X", "I-X"]
    labels = [[1, 2, 0, -100], [0, 1]]
    logits = [np.eye(3)[np.maximum(row, 0)] for row in labels]
    found = metrics("token_classification", logits, labels, names=names)
    assert found == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    padded = np.eye(3)[[[1, 2, 0, 0], [0, 0, 0, 0]]]
    found = metrics("token_classification", padded, np.array([[1, 2, 0, -100], [0, 1, -100, -100]]))
    assert found == {"accuracy": 0.8}


def test_what_has_no_value_is_nan_beside_what_has():
    found = metrics("single_label_classification", [[0.0, 2.0], [2.0, 0.0]], [1, 1])
    assert math.isnan(found["auroc"])
    assert found["accuracy"] == 0.5
    assert math.isnan(metrics("regression", [1.0, 1.0], [1.0, 2.0])["pearson"])


def test_each_can_have_an_interval():
    logits, labels = rng.normal(size=(60, 2)), np.arange(60) % 2
    for name, metric in standard("single_label_classification").items():
        interval = bootstrap(metric, logits, labels, resamples=50)
        assert interval.low <= interval.high, name


@pytest.mark.parametrize(
    ("problem_type", "predictions", "labels", "words"),
    [
        ("classify", [[0.0, 1.0]], [0], "'classify' is unknown; use one of single_label"),
        ("single_label_classification", [[0.0]], [0], "one column"),
        ("single_label_classification", [[0.0, 1.0]], [2], "row 0 is class 2"),
        ("single_label_classification", [[0.0, np.nan]], [1], "row 0 is nan"),
        ("multi_label_classification", [[0.0, 1.0]], [[0, 2]], "expected only 0 and 1"),
        ("regression", [[0.0, 1.0]], [1.0], r"expected shape \(rows,\)"),
        ("regression", [0.0, 1.0], [1.0], "2 predictions for 1 labels"),
    ],
)
def test_bad_input_is_named(problem_type, predictions, labels, words):
    with pytest.raises(ValueError, match=words):
        metrics(problem_type, predictions, labels)
