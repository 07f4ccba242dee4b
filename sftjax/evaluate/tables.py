"""Results as a table: plain text, Markdown, or on a terminal through rich; same cells in each."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from sftjax.evaluate.bootstrap import Interval

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
"""Column -> cell: an `Interval`, a number, a text, or None for nothing."""


def cell(value: Any, digits: int = 3) -> str:
    """Write one cell.

    >>> cell(Interval(0.8691, 0.8529, 0.8841, 0.95, 1000, 0))
    '0.869 [0.853, 0.884]'
    >>> cell(0.25), cell(22713216), cell("movie"), cell(None), cell(float("nan")), cell(1e-7)
    ('0.250', '22,713,216', 'movie', '', 'undefined', '1.00e-07')
    """
    match value:
        case None:
            return ""
        case Interval():
            low, high = cell(value.low, digits), cell(value.high, digits)
            return f"{cell(value.value, digits)} [{low}, {high}]"
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case Integral():
            return f"{int(value):,}"
        case _:
            return _number(float(value), digits)


def table(rows: Sequence[Row], columns: Sequence[str], digits: int = 3) -> str:
    """Return the rows as plain text, numbers flush right.

    >>> print(table([{"run": "before", "P@1": 0.55}, {"run": "after", "P@1": 0.5}], ["run", "P@1"]))
    run       P@1
    before  0.550
    after   0.500
    """
    cells, right, widths = _layout(rows, columns, digits, smallest=1)
    lines = [_line(line, right, widths, "  ") for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def table_markdown(rows: Sequence[Row], columns: Sequence[str], digits: int = 3) -> str:
    """Return the rows as a Markdown table that is aligned in its source, too.

    Args:
      rows: column -> cell; a missing cell stays empty.
      columns: which columns, in order.
      digits: after the decimal point.

    Raises:
      ValueError: if a row has a column that is not in `columns`.

    >>> print(table_markdown([{"run": "before", "P@1": 0.55}], ["run", "P@1"]))
    | run    |   P@1 |
    |:-------|------:|
    | before | 0.550 |
    """
    cells, right, widths = _layout(rows, columns, digits, smallest=3, escape=True)
    ruler = [
        "-" * (width + 1) + ":" if flush else ":" + "-" * (width + 1)
        for flush, width in zip(right, widths, strict=True)
    ]
    body = [f"| {_line(line, right, widths, ' | ')} |" for line in cells]
    return "\n".join([body[0], f"|{'|'.join(ruler)}|", *body[1:]])


def table_rich(
    rows: Sequence[Row], columns: Sequence[str], digits: int = 3, title: str | None = None
) -> "Table":
    """Return the rows as a `rich.table.Table`, to print on a terminal.

    >>> table_rich([{"run": "before"}], ["run"], title="Retention").row_count
    1
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells, right, _ = _layout(rows, columns, digits, smallest=1)
    drawn = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name, flush in zip(cells[0], right, strict=True):
        drawn.add_column(Text(name), justify="right" if flush else "left")
    for line in cells[1:]:
        drawn.add_row(*map(Text, line))  # Text: brackets of an interval are not markup
    return drawn


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return "undefined"
    if value == 0 or math.isinf(value) or 10**-digits <= abs(value) < 1e6:
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def _layout(
    rows: Sequence[Row],
    columns: Sequence[str],
    digits: int,
    smallest: int,
    escape: bool = False,
) -> tuple[list[list[str]], list[bool], list[int]]:
    """Return the cells (header first), which columns are flush right, and their widths."""
    for number, row in enumerate(rows):
        if unknown := [name for name in row if name not in columns]:
            raise ValueError(
                f"row {number} of the table has {unknown[0]!r}, which is not among the columns "
                f"{', '.join(columns)}; add it there or leave it out of the row"
            )
    body = [[cell(row.get(name), digits) for name in columns] for row in rows]
    cells = [list(columns), *body]
    if escape:
        cells = [[c.replace("|", "\\|").replace("\n", " ") for c in line] for line in cells]
    right = [
        all(not isinstance(row.get(name), str) for row in rows) and bool(rows) for name in columns
    ]
    widths = [max(smallest, *(len(line[k]) for line in cells)) for k in range(len(columns))]
    return cells, right, widths


def _line(line: list[str], right: list[bool], widths: list[int], between: str) -> str:
    padded = zip(line, right, widths, strict=True)
    return between.join(c.rjust(w) if flush else c.ljust(w) for c, flush, w in padded)
