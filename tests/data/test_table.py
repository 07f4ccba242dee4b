"""A table knows where each row came from."""

import math

import numpy as np
import pytest

from sftjax.data import Table, hold_out, texts


def test_the_fingerprint_is_of_the_content_alone():
    one = Table({"text": ["a", "b"], "label": np.array([0, 1])}, name="x.csv", split="train")
    same = Table({"label": np.array([0, 1]), "text": ["a", "b"]}, name="y.csv", rows=[7, 9])
    assert one.fingerprint == same.fingerprint
    others = [
        {"text": ["a", "b"], "label": np.array([1, 0])},
        {"text": ["ab", ""], "label": np.array([0, 1])},
        {"text": ["a", "b"], "label": np.array([0.0, 1.0])},
        {"texts": ["a", "b"], "label": np.array([0, 1])},
        {"text": [b"a", "b"], "label": np.array([0, 1])},
        {"text": ["a", "b"]},
    ]
    prints = {Table(columns, name="x.csv").fingerprint for columns in others}
    assert len(prints | {one.fingerprint}) == len(others) + 1


def test_rows_keep_their_numbers_through_every_cut():
    table = Table({"text": list("abcdef"), "n": np.arange(6)}, name="x.csv")
    part = table.take([5, 1, 3]).take([0, 2])
    assert part["text"] == ["f", "d"]
    assert part["n"].tolist() == [5, 3]
    assert part.locate([0, 1]) == "x.csv rows 6, 4"
    assert table.locate(range(6)) == "x.csv rows 1, 2, 3, 4, 5 and 1 more"


def test_a_missing_column_lists_those_there_are():
    table = Table({"sentence": ["a"], "label": [1]}, name="x.csv")
    with pytest.raises(ValueError, match=r"x.csv has no column 'sentense'; its columns are 'sent"):
        table["sentense"]


def test_ragged_and_empty_tables_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        Table({"a": [1], "b": [1, 2]}, name="x")
    for columns in ({}, {"a": []}):
        with pytest.raises(ValueError, match="holds no rows"):
            Table(columns, name="x")


@pytest.mark.parametrize("missing", [None, math.nan, np.float32("nan"), "", " \t", b""])
def test_missing_text_is_named_by_row(missing):
    table = Table({"text": ["a", missing, "b", missing]}, name="x.csv")
    with pytest.raises(ValueError, match=r"x.csv rows 2, 4: column 'text' holds no text"):
        texts(table, "text")


def test_what_is_no_text_is_named_by_row():
    with pytest.raises(ValueError, match=r"x row 2: column 'text' holds 3, a int and not text"):
        texts(Table({"text": ["a", 3]}, name="x"), "text")
    with pytest.raises(ValueError, match="x row 1: column 'text' is not valid UTF-8"):
        texts(Table({"text": [b"\xff"]}, name="x"), "text")
    assert texts(Table({"text": ["é".encode(), "é"]}, name="x"), "text") == ["é", "é"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_holding_out_splits_every_row_once_and_every_class_in_proportion(seed, fraction):
    label = np.random.default_rng(seed).choice(4, 203, p=[0.6, 0.3, 0.08, 0.02])
    table = Table({"label": label}, name="x")
    kept, held = hold_out(table, fraction, seed, stratify="label")
    assert sorted([*kept.rows, *held.rows]) == list(range(1, 204))
    for value, count in enumerate(np.bincount(label)):
        assert abs((held["label"] == value).sum() - fraction * count) <= 1
        assert (held["label"] == value).any() == (count > 1)
    assert list(held.rows) == sorted(held.rows)


def test_the_same_seed_holds_out_the_same_rows_and_another_seed_others():
    table = Table({"label": [0, 1] * 50}, name="x")
    first, second, other = (hold_out(table, 0.2, seed)[1].rows for seed in (1, 1, 2))
    assert list(first) == list(second)
    assert list(first) != list(other)


def test_groups_never_cross_and_the_classes_stay_near_their_share():
    rng = np.random.default_rng(0)
    group = rng.integers(60, size=600)
    label = (rng.random(600) < 0.2 + 0.6 * (group % 2)).astype(int)
    table = Table({"patient": group, "label": label}, name="x")
    kept, held = hold_out(table, 0.25, 3, stratify="label", group="patient")
    assert not set(kept["patient"]) & set(held["patient"])
    assert abs(len(held) / 600 - 0.25) < 0.03
    assert abs(np.mean(held["label"]) - np.mean(label)) < 0.03


def test_a_split_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out(Table({"a": [1, 2]}, name="x"), 1.0, 0)
    with pytest.raises(ValueError, match="one part without"):
        hold_out(Table({"a": [1]}, name="x"), 0.5, 0)
    with pytest.raises(ValueError, match="groups of 'a'"):
        hold_out(Table({"a": [1] * 9}, name="x"), 0.3, 0, group="a")
