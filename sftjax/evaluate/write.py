"""Write predictions to a file that a spreadsheet or a script can open."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import ArrayLike

from sftjax.evaluate.calibration import sigmoid, softmax
from sftjax.evaluate.checks import class_ids, indicators, labels_fit, scores


def write_predictions(
    path: str | os.PathLike[str],
    rows: ArrayLike,
    logits: ArrayLike,
    labels: ArrayLike | None = None,
    names: Sequence[str] = (),
    *,
    text: Sequence[str] | None = None,
    problem_type: str = "single_label_classification",
    given: ArrayLike | None = None,
) -> Path:
    """Write one line a row, all of the file or nothing of it.

    Columns: `row`; `text` and `label` if given; `prediction`; and for classes
    `probability_<name>` each. A multi-label task has `label_<name>`, `prediction_<name>` and
    `probability_<name>`. Probabilities carry six significant digits.

    Args:
      path: ends in `.csv` or `.jsonl`.
      rows: (N,) row numbers.
      logits: (N, C) logits, or (N,) or (N, 1) numbers of a regression.
      labels: (N,) class ids, (N, L) of 0 and 1, or (N,) numbers.
      names: class names in id order; their ids when left out.
      text: N texts.
      problem_type: as in `metrics`, tokens excepted.
      given: (N, L) of 0 and 1, the labels that thresholds give, of a multi-label task; those of a
        probability above 1/2 when left out.

    Returns:
      The path.

    Raises:
      ValueError: if the suffix or problem type is unknown, or rows, names and columns differ in
        number.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_predictions(folder + "/p.csv", [7], [[0.0, 0.0]], [1], ["bad", "good"])
    ...     print(path.read_text().strip())
    row,label,prediction,probability_bad,probability_good
    7,good,bad,0.5,0.5
    """
    path = Path(path)
    writers = {".csv": _csv, ".jsonl": _jsonl}
    if path.suffix not in writers:
        raise ValueError(f"predictions go to a .csv or .jsonl file, not to {path.name!r}")
    columns: dict[str, Sequence[Any]] = {"row": np.asarray(rows).tolist()}
    if text is not None:
        columns["text"] = list(text)
    columns |= _columns(problem_type, logits, labels, tuple(names), given)
    for name, column in columns.items():
        if len(column) != len(columns["row"]):
            raise ValueError(
                f"{path.name}: {len(column)} values of {name!r} for {len(columns['row'])} row "
                "numbers; pass one a row, in the same order"
            )
    lines = (dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True))
    _atomically(path, lambda file: writers[path.suffix](file, list(columns), lines))
    return path


def _columns(
    problem_type: str,
    logits: ArrayLike,
    labels: ArrayLike | None,
    names: tuple[str, ...],
    given: ArrayLike | None,
) -> dict[str, Sequence[Any]]:
    if problem_type == "regression":
        return _regression(np.asarray(logits), labels)
    z = scores("logits", logits, ndim=2)
    names = names or tuple(map(str, range(z.shape[1])))
    if len(names) != z.shape[1]:
        raise ValueError(f"{len(names)} class names for {z.shape[1]} columns of logits")
    if problem_type == "multi_label_classification":
        return _per_label(z, labels, names, given)
    if problem_type != "single_label_classification":
        raise ValueError(
            f"problem type {problem_type!r} has no table of predictions; use "
            "'single_label_classification', 'multi_label_classification' or 'regression'"
        )
    found: dict[str, Sequence[Any]] = {}
    if labels is not None:
        true = class_ids("labels", labels)
        labels_fit(true, len(names))
        found["label"] = [names[i] for i in true]
    found["prediction"] = [names[i] for i in z.argmax(axis=1)]
    p = softmax(z)
    return found | {f"probability_{name}": _short(p[:, k]) for k, name in enumerate(names)}


def _per_label(
    z: np.ndarray, labels: ArrayLike | None, names: tuple[str, ...], given: ArrayLike | None
) -> dict[str, Sequence[Any]]:
    found: dict[str, Sequence[Any]] = {}
    p = sigmoid(z)
    chosen = z > 0 if given is None else indicators("given", given)
    if chosen.shape != z.shape:
        raise ValueError(f"given labels are {chosen.shape} for logits {z.shape}; pass one a label")
    true = None if labels is None else indicators("labels", labels)
    if true is not None and true.shape != z.shape:
        raise ValueError(f"labels are {true.shape} for logits {z.shape}; pass one a label")
    for k, name in enumerate(names):
        if true is not None:
            found[f"label_{name}"] = true[:, k].astype(int).tolist()
        found[f"prediction_{name}"] = chosen[:, k].astype(int).tolist()
        found[f"probability_{name}"] = _short(p[:, k])
    return found


def _regression(numbers: np.ndarray, labels: ArrayLike | None) -> dict[str, Sequence[Any]]:
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    found: dict[str, Sequence[Any]] = {}
    if labels is not None:
        found["label"] = _short(scores("labels", labels, ndim=1))
    return found | {"prediction": _short(scores("logits", numbers, ndim=1))}


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _csv(file: TextIO, columns: list[str], lines: Iterable[dict[str, Any]]) -> None:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


def _jsonl(file: TextIO, columns: list[str], lines: Iterable[dict[str, Any]]) -> None:
    for line in lines:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _atomically(path: Path, write: Callable[[TextIO], None]) -> None:
    """Write beside the file and move it into place, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
