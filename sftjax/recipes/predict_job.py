"""What is to be predicted, with which model."""

import dataclasses
import pathlib

import tyro


@dataclasses.dataclass(frozen=True)
class Predict:
    """Predict with a folder that `classify`, `images`, `diagnose` or anyone saved."""

    model: tyro.conf.Positional[str]
    """The model's folder, or a name on the Hub; or an adapter's folder."""
    text: tuple[str, ...] = ()
    """Texts to predict."""
    data: str | None = None
    """Or a file of them; or a picture, a folder or a manifest of pictures."""
    column: str = "text"
    """The file's column of text."""
    pair: str | None = None
    """The file's column of second texts."""
    output: pathlib.Path | None = None
    """Write to this .csv or .jsonl file instead of the screen; of a model of masks, the folder of
    their PNG files (masks)."""
    base: str | None = None
    """Where the adapter's base is, if it is not where it was."""
    batch_size: int = 64
    """Rows at a time."""
