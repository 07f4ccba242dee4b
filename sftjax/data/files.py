"""Read CSV, TSV, JSON lines and Parquet; whatever is wrong is named by file and line."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sftjax.data.table import Column, Table

READERS: dict[str, str] = {
    ".csv": "comma-separated, quoted as RFC 4180",
    ".tsv": "tab-separated, never quoted",
    ".jsonl": "one JSON object a line",
    ".ndjson": "one JSON object a line",
    ".parquet": "Apache Parquet",
}
"""The file name endings that `read_file` knows."""


def read_file(path: Path, split: str | None = None) -> Table:
    """Read one file into a table; the ending of its name says what it is (see `READERS`).

    The values of CSV and TSV stay text; `sftjax.data.classes` and its kin make numbers of labels.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for an unknown ending, an empty file, bytes that are not UTF-8, a row with more or
        fewer fields than the header, a line that is no JSON object, or a damaged Parquet file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    ending = path.suffix.lower()
    if ending not in READERS:
        raise ValueError(
            f"{path}: the ending {ending!r} is of no format that is read here "
            f"({', '.join(READERS)}); convert the file to one of these, or rename it if it is one"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); was it written to the end?")
    if ending == ".parquet":
        columns, label_names = _parquet(path)
        return Table(columns, str(path), split, label_names=label_names)
    readers: dict[str, Callable[[Path], dict[str, list[Any]]]] = {".csv": _csv, ".tsv": _tsv}
    return Table(readers.get(ending, _json_lines)(path), str(path), split)


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8. "
            f"Convert the file, e.g. `iconv -f WINDOWS-1252 -t UTF-8 {path.name}`."
        ) from error


def _csv(path: Path) -> dict[str, list[Any]]:
    return _delimited(path, delimiter=",", strict=True)


def _tsv(path: Path) -> dict[str, list[Any]]:
    # text/tab-separated-values has no quotes: in such files a " is a character like any other.
    return _delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _delimited(path: Path, **dialect: Any) -> dict[str, list[Any]]:
    text = _text(path)
    # The module's own limit of 131072 characters a field is a global; documents can be longer.
    limit = csv.field_size_limit(max(len(text), 1))
    reader = csv.reader(io.StringIO(text, newline=""), **dialect)
    try:
        header = next((row for row in reader if row), [])
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where the header has "
                    f"{len(header)} ({', '.join(header)}). Quote a field that holds the delimiter."
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}. Is a quote opened before it and never "
            "closed?"
        ) from error
    finally:
        csv.field_size_limit(limit)
    if len(set(header)) < len(header):
        raise ValueError(
            f"{path}: two columns have the same name in {', '.join(header)}; rename one"
        )
    if not rows:
        raise ValueError(f"{path} holds a header ({', '.join(header)}) and no rows")
    return {
        name: list(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)
    }


def _json_lines(path: Path) -> dict[str, list[Any]]:
    records = []
    # Not splitlines(): JSON text may hold U+2028 and other line ends of Unicode.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            at = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
            said = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(
                f"{path}, line {number}: not JSON{at} ({said}). Every line must be one whole JSON "
                "object."
            ) from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{path}, line {number}: a JSON {type(record).__name__} and not an object; "
                'write {"column": value, ...}'
            )
        records.append(record)
    if not records:
        raise ValueError(f"{path} holds only blank lines")
    names = dict.fromkeys(name for record in records for name in record)
    # A key that a line lacks is a missing value: refused by row once that column is used.
    return {name: [record.get(name) for record in records] for name in names}


def _parquet(path: Path) -> tuple[dict[str, Column], dict[str, tuple[str, ...]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        # One file, not a data set: a folder named key=value is not a column.
        content = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file: {error}") from error
    if not content.num_rows:
        raise ValueError(f"{path} holds the columns {content.column_names} and no rows")
    columns: dict[str, Column] = {}
    for name, values in zip(content.column_names, content.columns, strict=True):
        plain = pyarrow.types.is_integer(values.type) or pyarrow.types.is_floating(values.type)
        columns[name] = values.to_numpy() if plain and not values.null_count else values.to_pylist()
    return columns, _names_in_schema((content.schema.metadata or {}).get(b"huggingface"))


def _names_in_schema(metadata: bytes | None) -> dict[str, tuple[str, ...]]:
    """Read the class names that `datasets` writes into the schema of its Parquet files."""
    if metadata is None:
        return {}
    features = json.loads(metadata).get("info", {}).get("features", {})
    return {
        name: tuple(feature["names"])
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
