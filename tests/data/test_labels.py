"""Numbers of labels in a stable order, and every bad label named by row before anything runs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftjax.data import Table, classes, multi_label, regression, token_labels


def table(values, **options):
    return Table({"label": values}, name="x.csv", **options)


def tags(values, **options):
    return token_labels(Table({"tags": values}, name="x.csv"), **options)


@given(st.lists(st.sampled_from(["b", "a", "10", "9", "é", "c d"]), min_size=2), st.randoms())
def test_the_names_do_not_depend_on_the_order_of_the_rows(values, random):
    if len(set(values)) < 2 or set(values) == {"9", "10"}:
        return
    first = classes(table(values))
    assert [first.names[i] for i in first.values] == values
    shuffled = random.sample(values, len(values))
    assert classes(table(shuffled)).names == first.names == tuple(sorted(set(values)))


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 2, 1],
        ["0", "1", "2", "1"],
        [" 0", "1 ", "2", "1"],
        [0.0, 1.0, 2.0, 1.0],
        np.array([0, 1, 2, 1], np.int64),
        [b"0", b"1", b"2", b"1"],
    ],
)
def test_integers_count_from_zero_however_they_are_written(values):
    labels = classes(table(values))
    assert labels.values.tolist() == [0, 1, 2, 1]
    assert labels.values.dtype == np.int32
    assert labels.names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_booleans_are_two_classes():
    assert classes(table([True, False, True])).values.tolist() == [1, 0, 1]


def test_given_labels_set_the_order_and_a_name_wins_over_an_integer():
    assert classes(table(["b", "a"]), labels=["b", "a"]).values.tolist() == [0, 1]
    assert classes(table([1, 5]), labels=["1", "2", "3", "4", "5"]).values.tolist() == [0, 4]
    assert classes(table(["1", "0"]), labels=["neg", "pos"]).values.tolist() == [1, 0]


def test_class_names_of_the_source_are_kept_also_when_they_are_digits():
    known = table(np.array([0, 1, 1]), label_names={"label": ("1", "2")})
    for labels in (None, ["1", "2"]):
        assert classes(known, labels=labels).values.tolist() == [0, 1, 1]
        assert classes(known, labels=labels).names == ("1", "2")
    assert classes(known, labels=["2", "1"]).values.tolist() == [1, 0, 0]
    assert classes(known, labels=["neg", "pos"]).names == ("neg", "pos")
    assert classes(known, labels=["neg", "pos"]).values.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["a", None, "b", ""], {}, r"x.csv rows 2, 4: column 'label' is missing \(empty"),
        ([0.0, math.nan, 1.0], {}, r"x.csv row 2: column 'label' is missing"),
        ([0, 1, 7], {"labels": ["a", "b"]}, r"x.csv row 3: label 7 in column 'label' is none of t"),
        ([0, -1], {"labels": ["a", "b"]}, r"x.csv row 2: label -1 .* from 0 to 1"),
        (["a", "x", "x"], {"labels": ["a", "b"]}, r"x.csv rows 2, 3: label 'x' .*classes \(a, b\)"),
        ([1, 2, 3], {}, r"are 1, 2, 3, and classes count from 0 without gaps. Renumber"),
        ([-1, 1], {}, r"are -1, 1, and classes count from 0"),
        ([0.5, 1.0], {}, r"holds 0.5, which names no class. Numbers with a fraction are for a reg"),
        ([["a"], ["b"]], {}, r"holds \['a'\], which names no class"),
        (["a", "a", "a"], {}, r"holds only 'a' in 3 rows, and training needs 2 classes"),
        ([1, 1], {"labels": ["a", "b"]}, r"holds only 'b' in 2 rows"),
        (["a", "b"], {"labels": ["a", "a"]}, r"a name occurs twice"),
    ],
)
def test_a_bad_label_is_named_by_row(values, options, message):
    with pytest.raises(ValueError, match=message) as error:
        classes(table(values), **options)
    assert "\n" not in str(error.value)


def test_to_evaluate_one_class_is_enough():
    assert classes(table(["a"]), labels=["a", "b"], least=1).values.tolist() == [0]


def test_row_numbers_are_those_of_the_source():
    part = table(["a", "b", "", "a"]).take([3, 2])
    with pytest.raises(ValueError, match=r"x.csv row 3: "):
        classes(part)


def test_several_labels_a_row():
    wanted = [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    for values in ([["a", "b"], [], ["c"]], ["a,b", "", "c"], [[0, 1], np.array([]), [2]]):
        labels = multi_label(table(values))
        assert labels.values.tolist() == wanted
        assert labels.values.dtype == np.float32
    columns = Table({"a": [1, 0, 0], "b": ["1", "0", "0"], "c": [0.0, 0.0, 1.0]}, name="x.csv")
    labels = multi_label(columns, ["a", "b", "c"])
    assert labels.values.tolist() == wanted
    assert labels.names == ("a", "b", "c")
    assert multi_label(table(["b"]), labels=["a", "b"]).values.tolist() == [[0, 1]]


def test_bad_labels_of_several_are_named_by_row():
    with pytest.raises(ValueError, match=r"x.csv row 2: column 'label' is missing"):
        multi_label(table([["a"], None]))
    with pytest.raises(ValueError, match=r"x.csv row 2: column 'label' holds a missing label"):
        multi_label(table([["a"], ["b", None]]))
    with pytest.raises(ValueError, match=r"x.csv row 2: label 'z' in column"):
        multi_label(table([["a"], ["b", "z"]]), labels=["a", "b"])
    with pytest.raises(ValueError, match=r"x.csv: no row has a label \(column"):
        multi_label(table(["", ""]))
    with pytest.raises(ValueError, match=r"x row 2: column 'a' is neither 0 nor 1 \(2\)"):
        multi_label(Table({"a": [1, 2]}, name="x"), ["a"])
    with pytest.raises(ValueError, match="no row has the label b"):
        multi_label(Table({"a": [1, 1], "b": [0, 0]}, name="x"), ["a", "b"])


def test_real_numbers():
    assert regression(table(["1e3", "-0.5"])).values.tolist() == [1000, -0.5]
    assert regression(table(np.array([1, 2]))).values.dtype == np.float32
    for bad in ("nan", "many", "inf", None):
        with pytest.raises(ValueError, match=r"x.csv row 2: column 'label' is"):
            regression(table(["1", bad, "2"]))
    with pytest.raises(ValueError, match="is 3 in every row"):
        regression(table([3, 3.0]))
    assert regression(table([3]), least=1).values.tolist() == [3]


def test_one_label_a_word():
    labels = tags([["B-PER", "O"], ["O"], "I-PER  O"])
    assert labels.names == ("B-PER", "I-PER", "O")
    assert [row.tolist() for row in labels.values] == [[0, 2], [2], [1, 2]]
    numbers = tags([[0, -100, 1], np.array([1])])
    assert [row.tolist() for row in numbers.values] == [[0, -100, 1], [1]]
    with pytest.raises(ValueError, match=r"x.csv row 2: label 'X' in column 'tags' is none of"):
        tags([["O"], ["B", "X"], ["O"]], labels=["O", "B"])
    with pytest.raises(ValueError, match="holds only 'O' in 2 rows"):
        tags([["O"], ["O", "O"]])
