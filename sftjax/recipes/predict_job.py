"""What is to be predicted, with which model."""

import dataclasses
import pathlib
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Predict:
    """Predict with what `classify`, `images`, `diagnose`, `segment`, `anomaly` or others saved."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model's folder, a name on the Hub, or asset:NAME; or an adapter's folder; or what
    `sftjax anomaly` saved."""
    text: tuple[str, ...] = ()
    """One or more texts to predict, after one --text."""
    data: str | None = None
    """Or a file of them (.csv, .tsv, .jsonl, .parquet); or a picture, a folder or a manifest of
    pictures."""
    column: str = "text"
    """The file's column of text."""
    pair: str | None = None
    """The file's column of second texts."""
    output: pathlib.Path | None = None
    """Write to this .csv or .jsonl file instead of the screen; with a model that `segment`
    saved, the folder for its masks (PNG)."""
    base: str | None = None
    """Where the adapter's base is, if it is not where it was."""
    batch_size: int = 64
    """Rows at a time."""
