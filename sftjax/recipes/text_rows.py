"""From a source of labelled text to tokenised rows and labels, for training and for evaluation."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sftjax.data import (
    Batches,
    Encoded,
    Labels,
    Table,
    classes,
    encode,
    encode_words,
    hold_out,
    multi_label,
    read,
    regression,
    splits,
    token_labels,
)
from sftjax.hub import Tokenizer

Task = Literal["single-label", "multi-label", "regression", "token"]

PROBLEM_TYPES = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
    "token": "single_label_classification",
}
"""The task -> what the Hub's config calls it."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns hold what, and what to do with them."""

    text: str = "text"
    """Column of text; for `--task token` of words (a list, or text split at spaces)."""
    pair: str | None = None
    """Column of second texts."""
    label: str = "label"
    """Column of labels."""
    task: Task = "single-label"
    """One class a row, any number of them, a number, or one class a word."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their numbers; found in the data when left out."""
    max_length: int = 128
    """Most tokens a row may have, special tokens included."""
    on_long: Literal["truncate", "error"] = "truncate"
    """What to do with longer rows: cut and count them, or refuse."""


class Rows(NamedTuple):
    """One split, ready to be batched."""

    table: Table
    encoded: Encoded
    labels: Labels | None

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.encoded)

    @property
    def mask(self) -> str:
        """The entry of a batch that marks tokens."""
        return "attention_mask"

    @property
    def identity(self) -> dict[str, Any]:
        """What the tokens are, beside the tokenizer."""
        return {
            "rows": self.table.fingerprint,
            "tokens": int(self.encoded.offsets[-1]),
            "max_length": self.encoded.max_length,
        }

    def batches(self, size: int, *, seed: int = 0, shuffle: bool = False) -> Batches:
        """Cut the rows into batches."""
        values = None
        if self.labels is not None and self.encoded.token_labels is None:
            values = self.labels.values
        return Batches(self.encoded, values, size, seed=seed, shuffle=shuffle)


def read_splits(
    data: str, eval_data: str | None, columns: Columns, *, fraction: float, seed: int
) -> tuple[Table, Table]:
    """Return the training and the evaluation table.

    The evaluation table is, the first that applies: `eval_data`; the source's own `validation` or
    `test` split; a share held out of the training rows, stratified by class.
    """
    found = splits(data)
    train = read(data, "train" if "train" in found else None)
    if eval_data is not None:
        kinds = splits(eval_data)
        return train, read(eval_data, next((s for s in ("validation", "test") if s in kinds), None))
    for split in ("validation", "test"):
        if split in found:
            return train, read(data, split)
    stratify = columns.label if columns.task == "single-label" else None
    return hold_out(train, fraction, seed, stratify=stratify)


def labels_of(table: Table, columns: Columns, names: tuple[str, ...], *, least: int) -> Labels:
    """Return the labels of a table, whose names are `names` if there are any.

    Raises:
      ValueError: naming the rows of a label that cannot be one.
    """
    known = list(names) or None
    if columns.task == "single-label":
        return classes(table, columns.label, known, least=least)
    if columns.task == "multi-label":
        return multi_label(table, columns.label, known)
    if columns.task == "regression":
        return regression(table, columns.label, least=least)
    return token_labels(table, columns.label, known, least=least)


def encode_rows(
    table: Table,
    columns: Columns,
    tokenizer: Tokenizer,
    labels: Labels | None,
    *,
    cache: Path | None = None,
) -> Rows:
    """Tokenise the rows of a table; in token classification each token gets its word's label."""
    if columns.task == "token":
        encoded = encode_words(
            table,
            tokenizer,
            words=columns.text,
            labels=labels,
            max_length=columns.max_length,
            on_long=columns.on_long,
            cache=cache,
        )
    else:
        encoded = encode(
            table,
            tokenizer,
            text=columns.text,
            pair=columns.pair,
            max_length=columns.max_length,
            on_long=columns.on_long,
            cache=cache,
        )
    return Rows(table, encoded, labels)
