"""A file of predictions says what the arrays say, whole or not at all."""

import csv
import json

import numpy as np
import pytest

from sftjax.evaluate import softmax, write_predictions

LOGITS = np.array([[0.0, 1.0], [2.0, -1.0]])


def read(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_file_reads_back(tmp_path, suffix):
    text = ['He said "no",\nthen left', "Zürich ≠ 東京"]
    path = write_predictions(
        tmp_path / f"new/p{suffix}", [3, 4], LOGITS, [1, 1], ["neg", "pos"], text=text
    )
    rows = read(path)
    assert [row["text"] for row in rows] == text
    assert [int(row["row"]) for row in rows] == [3, 4]
    assert [row["prediction"] for row in rows] == ["pos", "neg"]
    assert [row["label"] for row in rows] == ["pos", "pos"]
    found = [[float(row["probability_neg"]), float(row["probability_pos"])] for row in rows]
    np.testing.assert_allclose(found, softmax(LOGITS), rtol=1e-5)


def test_without_names_or_labels_there_are_ids(tmp_path):
    rows = read(write_predictions(tmp_path / "p.jsonl", [0, 1], LOGITS))
    assert list(rows[0]) == ["row", "prediction", "probability_0", "probability_1"]


def test_numbers_and_several_labels(tmp_path):
    rows = read(
        write_predictions(
            tmp_path / "p.jsonl", [0, 1], LOGITS[:, :1], [0.5, 2.5], problem_type="regression"
        )
    )
    assert rows == [
        {"row": 0, "label": 0.5, "prediction": 0.0},
        {"row": 1, "label": 2.5, "prediction": 2.0},
    ]
    rows = read(
        write_predictions(
            tmp_path / "p.jsonl",
            [0, 1],
            LOGITS,
            [[0, 1], [1, 1]],
            ["a", "b"],
            problem_type="multi_label_classification",
        )
    )
    assert rows[1] == {
        "row": 1,
        "label_a": 1, "prediction_a": 1, "probability_a": 0.880797,
        "label_b": 1, "prediction_b": 0, "probability_b": 0.268941,
    }  # fmt: skip


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = write_predictions(tmp_path / "p.csv", [0, 1], LOGITS)
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_predictions(path, [0, 1], LOGITS, text=["fine", "\ud800"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("p.xlsx", {}, "not to 'p.xlsx'"),
        ("p.csv", {"names": ["a"]}, "1 class names for 2 columns"),
        ("p.csv", {"labels": [0, 2]}, "row 1 is class 2"),
        ("p.csv", {"text": ["only one"]}, "1 values of 'text' for 2 row numbers"),
        ("p.csv", {"labels": [0]}, "1 values of 'label' for 2 row numbers"),
        ("p.csv", {"problem_type": "token_classification"}, "'token_classification' has no table"),
    ],
)
def test_bad_input_is_named(tmp_path, name, arguments, words):
    with pytest.raises(ValueError, match=words):
        write_predictions(tmp_path / name, [0, 1], LOGITS, **arguments)
    assert list(tmp_path.iterdir()) == []
