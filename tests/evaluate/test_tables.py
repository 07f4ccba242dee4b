"""Three renderings of the same cells."""

import io

import numpy as np
import pytest
from rich.console import Console

from sftjax.evaluate import Interval, cell, table, table_markdown, table_rich

ROWS = [
    {"run": "before", "accuracy": None, "rows": 1200},
    {"run": "after|anchor", "accuracy": Interval(0.8691, 0.853, 0.8839, 0.95, 1000, 0), "rows": 7},
]
COLUMNS = ["run", "accuracy", "rows"]


def test_markdown_is_a_table_of_equal_lines():
    lines = table_markdown(ROWS, COLUMNS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].strip("|").replace("-", "") == ":|:|:"
    assert r"after\|anchor" in lines[3]
    assert "0.869 [0.853, 0.884]" in lines[3]


def test_every_rendering_has_the_same_cells():
    out = io.StringIO()
    Console(file=out, width=100).print(table_rich(ROWS, COLUMNS, title="Runs"))
    for text in (table(ROWS, COLUMNS), out.getvalue()):
        for word in ("after|anchor", "0.869 [0.853, 0.884]", "1,200"):
            assert word in text


def test_an_empty_table_is_its_header():
    assert table([], COLUMNS) == "run  accuracy  rows"
    assert len(table_markdown([], COLUMNS).splitlines()) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.5), "0.500"),
        (np.int64(1234), "1,234"),
        (np.array(0.25), "0.250"),
        (True, "yes"),
        (0.0, "0.000"),
        (-0.0004, "-4.00e-04"),
        (float("inf"), "inf"),
        (12345.678, "12345.678"),
    ],
)
def test_cells(value, text):
    assert cell(value) == text


def test_a_column_nobody_asked_for_is_named():
    with pytest.raises(ValueError, match="row 1 of the table has 'f1'"):
        table([{"run": "a"}, {"run": "b", "f1": 1.0}], ["run"])
