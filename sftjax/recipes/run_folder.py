"""What a run leaves on disk: metrics.json, report.md, plots; written whole or not at all."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from sftjax.core import redact
from sftjax.evaluate import Interval


def write_json(path: pathlib.Path, facts: Any) -> None:
    """Write JSON with sorted keys; an undefined number becomes null, an interval its parts.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.json"
    >>> write_json(path, {"auroc": float("nan"), "accuracy": 0.5})
    >>> json.loads(path.read_text())
    {'accuracy': 0.5, 'auroc': None}
    """
    write_text(path, json.dumps(plain(facts), indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file atomically, without secrets (`core.redact`).

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "report.md"
    >>> write_text(path, "# done")
    >>> path.read_text()
    '# done'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(redact(text), "utf8")
    partial.replace(path)


def plain(value: Any) -> Any:
    """Return what JSON can hold: plain containers and numbers, null for what is not finite."""
    if isinstance(value, Interval):
        return {"value": value.value, "low": value.low, "high": value.high, "level": value.level}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        return {name: plain(item) for name, item in zip(names, value, strict=True)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
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
