"""One door to every source: a file, a folder of splits, or a data set of TFDS."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from sftjax.data.files import READERS, read_file
from sftjax.data.table import Table

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

SPLIT_FILES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Names (before the ending) under which a folder may hold each split."""


def read(
    source: "str | Path | DatasetBuilder",
    split: str | None = None,
    *,
    data_dir: str | Path | None = None,
) -> Table:
    """Read a table from a file, a folder, or TFDS.

    | source | reads |
    |---|---|
    | `reviews.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.parquet` | the file |
    | `folder/` | `train.*`, `validation.*` (`valid`, `val`, `dev`) or `test.*` in it |
    | `asset:NAME[:split]` | a data set that is fetched by name (`debian-synopses`, ...) |
    | `tfds:NAME[/config][:version][:split]` | a data set of TFDS, through `as_data_source` |
    | a `tfds.core.DatasetBuilder` | the same |

    Args:
      source: what to read, as in the table above.
      split: which split; needed for a folder and for TFDS unless the source names it. TFDS takes
        its own notation as well (`train[:10%]`, `train+test`). With a file it is only a name.
      data_dir: where TFDS keeps its prepared data sets; default TFDS' own.

    Returns:
      The `Table`.

    Raises:
      FileNotFoundError: if the file or folder does not exist.
      ValueError: for a split that the source does not have, and what the readers refuse.
    """
    if not isinstance(source, str | Path):
        from sftjax.data.tfds_source import read_builder

        return read_builder(source, split)
    if str(source).startswith("tfds:"):
        from sftjax.data.tfds_source import read_name

        return read_name(str(source).removeprefix("tfds:"), split, data_dir)
    if str(source).startswith("asset:"):
        from sftjax.data.asset_source import read_asset

        return read_asset(str(source).removeprefix("asset:"), split)
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, split)
    if not path.exists():
        # By stems: that the folder, or the kind of file, is the same says nothing.
        stems = {other.stem: other for other in sorted(path.parent.glob("*"))}
        like = difflib.get_close_matches(path.stem, stems, n=1)
        raise FileNotFoundError(
            f"there is no file or folder {path}. "
            + (f"Did you mean {stems[like[0]]}? " if like else "")
            + "A data set of TFDS is written tfds:NAME."
        )
    return read_file(path, split)


def splits(
    source: "str | Path | DatasetBuilder", *, data_dir: str | Path | None = None
) -> tuple[str, ...]:
    """Return the names of the splits a source has; none for a single file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "train.csv").write_text("text,label\\ngood,1\\n")
    ...     _ = (Path(folder) / "dev.csv").write_text("text,label\\nbad,0\\n")
    ...     splits(folder), read(folder, "validation")["text"]
    (('train', 'validation'), ['bad'])
    """
    if not isinstance(source, str | Path):
        return tuple(source.info.splits)
    if str(source).startswith("tfds:"):
        from sftjax.data.tfds_source import builder_of

        builder, fixed = builder_of(str(source).removeprefix("tfds:"), data_dir)
        return (fixed,) if fixed else tuple(builder.info.splits)
    if str(source).startswith("asset:"):
        from sftjax.data.asset_source import SPLITS, name_and_split

        fixed = name_and_split(str(source).removeprefix("asset:"))[1]
        return (fixed,) if fixed else SPLITS
    path = Path(source).expanduser()
    return tuple(_split_files(path)) if path.is_dir() else ()


def _read_folder(folder: Path, split: str | None) -> Table:
    files = _split_files(folder)
    if not files:
        raise ValueError(
            f"{folder} holds no train, validation or test file ({', '.join(READERS)}). "
            "Name a file instead, or rename them."
        )
    if split is None or split not in files:
        asked = "name the split to read" if split is None else f"there is no split {split!r}"
        raise ValueError(f"{folder}: {asked}; it has {', '.join(files)}")
    return read_file(files[split], split)


def _split_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, names in SPLIT_FILES.items():
        files = [
            path
            for path in sorted(folder.iterdir())
            if path.stem.lower() in names and path.suffix.lower() in READERS
        ]
        if len(files) > 1:
            raise ValueError(
                f"{folder}: {' and '.join(file.name for file in files)} could both be the "
                f"{split} split; leave one"
            )
        if files:
            found[split] = files[0]
    return found
