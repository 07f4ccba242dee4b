"""What a run leaves on disk: metrics.json, report.md, plots; written whole or not at all."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from sftjax.evaluate import Interval


def write_json(path: pathlib.Path, facts: Any) -> None:
    """Write JSON with sorted keys; an undefined number becomes null, an interval its parts.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.json"
    >>> write_json(path, {"auroc": float("nan"), "accuracy": 0.5})
    >>> json.loads(path.read_text())
    {'accuracy': 0.5, 'auroc': None}
    """
    write_text(path, json.dumps(_plain(facts), indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file atomically.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "report.md"
    >>> write_text(path, "# done")
    >>> path.read_text()
    '# done'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, "utf8")
    partial.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return {"value": value.value, "low": value.low, "high": value.high, "level": value.level}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        return {name: _plain(item) for name, item in zip(names, value, strict=True)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def named(source: str) -> str:
    """Return a data set's name for a card: a path of this machine means nothing elsewhere.

    >>> named("/data/blood"), named("tfds:fashion_mnist")
    ('blood', 'tfds:fashion_mnist')
    """
    path = pathlib.Path(source)
    return path.name if path.is_absolute() else source
