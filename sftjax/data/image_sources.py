"""One door to every source of pictures: folders, manifests, boxes, arrays, TFDS."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftjax.core import npz_names
from sftjax.data.assets import fetch
from sftjax.data.decode import IMAGE_ENDINGS
from sftjax.data.files import READERS
from sftjax.data.image_arrays import IDX_FILES, read_idx_folder, read_medmnist
from sftjax.data.sources import SPLIT_FILES, read, splits
from sftjax.data.table import Table, is_missing
from sftjax.data.voc import is_voc, read_voc, voc_splits

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

PATH_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath")
"""Columns of a manifest that are taken for the images, the first that there is."""

PICTURE_SETS = ("mni152-slices", "mni152-patches", "chest-xrays-16", "brain-mris-17")
"""Assets that are pictures with a manifest."""

_IGNORED = ("thumbs.db", "desktop.ini")


def read_images(
    source: "str | Path | DatasetBuilder",
    split: str | None = None,
    *,
    image: str | None = None,
    split_column: str = "split",
    data_dir: str | Path | None = None,
) -> Table:
    """Read a table with a column `image` and, as a rule, `label`; nothing is decoded yet.

    | source | rows |
    |---|---|
    | `root/label/*.png`, `root/split/label/*.png` | a folder a class, in one a split if any |
    | `manifest.csv` (`.tsv`, `.jsonl`, `.parquet`) | a column of paths, relative to the manifest |
    | `set.npz` | a MedMNIST file |
    | a folder with `Annotations/` and `JPEGImages/` | a box a row (VOC), with its file as `group` |
    | a folder with IDX files (`train-images-idx3-ubyte.gz`) | MNIST and its kin |
    | `asset:NAME` | a manifest that is fetched (`PICTURE_SETS`) |
    | `tfds:NAME[/config][:version][:split]`, a builder | a data set of TFDS |

    In folders of classes hidden files, `Thumbs.db` and `desktop.ini` are no images; any other file
    that is no image is an error.

    Args:
      source: as above.
      split: which split; None takes every row of a source without splits.
      image: the column of images of a manifest or TFDS; default the first of `PATH_COLUMNS`.
      split_column: the column of a manifest that holds the split, if there is one.
      data_dir: where TFDS keeps its prepared data sets.

    Returns:
      The `Table`; folders give the columns `image` and `label` (the folder's name), the other
      sources keep their own columns beside `image`.

    Raises:
      FileNotFoundError: if the source, or a file that a manifest names, does not exist.
      ValueError: for a split that the source does not have, an empty class, or a stray file.
    """
    path = _path(source)
    if path is None:
        return _renamed(read(source, split, data_dir=data_dir), image)
    if path.suffix.lower() in READERS and path.is_file():
        return _manifest(path, split, image, split_column)
    if path.suffix.lower() == ".npz":
        return read_medmnist(path, _named_split(path, split, image_splits(path)))
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder of images, manifest ({', '.join(READERS)}) or .npz file {path}. "
            "A data set of TFDS is written tfds:NAME."
        )
    if is_voc(path):
        return read_voc(path, split)
    if any((path / name).exists() for names in IDX_FILES.values() for name in names):
        return read_idx_folder(path, _named_split(path, split, tuple(IDX_FILES)))
    return _folder(path, split)


def image_splits(
    source: "str | Path | DatasetBuilder",
    *,
    split_column: str = "split",
    data_dir: str | Path | None = None,
) -> tuple[str, ...]:
    """Return the names of the splits that a source of images has; none if it has no splits.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "m.csv").write_text("path,split\\na.png,train\\nb.png,test\\n")
    ...     image_splits(folder + "/m.csv")
    ('train', 'test')
    """
    path = _path(source)
    if path is None:
        return splits(source, data_dir=data_dir)
    if path.suffix.lower() == ".npz":
        return tuple(name for name in ("train", "val", "test") if name in _npz_splits(path))
    if path.is_file():
        table = read(path)
        if split_column not in table.columns:
            return ()
        return tuple(dict.fromkeys(str(value) for value in table[split_column]))
    if not path.is_dir():
        return ()  # `read_images` says that there is nothing
    if is_voc(path):
        return voc_splits(path)
    if any((path / name).exists() for names in IDX_FILES.values() for name in names):
        return tuple(IDX_FILES)
    return tuple(_split_folders(path))


def _path(source: Any) -> Path | None:
    if not isinstance(source, str | Path) or str(source).startswith("tfds:"):
        return None
    if str(source).startswith("asset:"):
        return picture_set(str(source))
    return Path(source).expanduser()


def picture_set(source: str) -> Path:
    """Return the manifest of fetched pictures, `asset:NAME`; other sources as they are.

    Raises:
      ValueError: if no pictures have this name.
    """
    if not source.startswith("asset:"):
        return Path(source).expanduser()
    name = source.removeprefix("asset:")
    if name not in PICTURE_SETS:
        raise ValueError(
            f"there are no pictures {source}; those known are "
            f"{', '.join(f'asset:{known}' for known in PICTURE_SETS)}"
        )
    return fetch(name) / "manifest.csv"


def _npz_splits(path: Path) -> set[str]:
    return {name.removesuffix("_images") for name in npz_names(path)}


def _named_split(path: Path, split: str | None, known: Sequence[str]) -> str:
    same = next((names for names in SPLIT_FILES.values() if split in names), (split,))
    for name in known:
        if name in same:
            return name
    asked = "name the split to read" if split is None else f"there is no split {split!r}"
    raise ValueError(f"{path}: {asked}; it has {', '.join(known)}")


def _renamed(table: Table, image: str | None) -> Table:
    column = image or next((name for name in PATH_COLUMNS if name in table.columns), None)
    if column is None:
        raise ValueError(
            f"{table.name}: none of the columns {', '.join(table.columns)} is one of "
            f"{', '.join(PATH_COLUMNS)}; name the column of images (--image)"
        )
    columns = {"image": table[column]}
    columns |= {name: values for name, values in table.columns.items() if name != column}
    return Table(columns, table.name, table.split, table.rows, table.label_names)


def _manifest(path: Path, split: str | None, image: str | None, split_column: str) -> Table:
    table = _renamed(read(path), image)
    references = table["image"]
    if all(isinstance(value, dict) and set(value) >= {"bytes"} for value in references):
        cells: list[Any] = [value["bytes"] for value in references]  # as `datasets` writes images
    else:
        missing = [row for row, value in enumerate(references) if is_missing(value)]
        if missing:
            raise ValueError(
                f"{table.locate(missing)}: no image is named there; name its file, or remove the "
                "row"
            )
        cells = [str(path.parent / str(value).strip()) for value in references]
        absent = [row for row, cell in enumerate(cells) if not Path(cell).is_file()]
        if absent:
            raise FileNotFoundError(
                f"{table.locate(absent)}: there is no file {cells[absent[0]]}. Paths are relative "
                "to the manifest's folder."
            )
    table = Table({**table.columns, "image": cells}, table.name, None, table.rows)
    if split is None:
        return table
    if split_column not in table.columns:
        raise ValueError(
            f"{path} has no column {split_column!r}, so it has no split {split!r}; its columns are "
            f"{', '.join(table.columns)}. Add the column, or read the whole file and hold rows out"
        )
    values = [str(value) for value in table[split_column]]
    chosen = _named_split(path, split, tuple(dict.fromkeys(values)))
    return table.take([row for row, value in enumerate(values) if value == chosen], chosen)


def _split_folders(root: Path) -> dict[str, Path]:
    """Return `{split: folder}` where every folder of `root` is named like a split."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."]
    found = {
        split: path
        for split, names in SPLIT_FILES.items()
        for path in folders
        if path.name.lower() in names
    }
    return found if found and len(found) == len(folders) else {}


def _folder(root: Path, split: str | None) -> Table:
    folders = _split_folders(root)
    if folders:
        split = _named_split(root, split, tuple(folders))
        names = tuple(sorted({name for folder in folders.values() for name in _classes(folder)}))
        root = folders[split]
    else:
        names = _classes(root)
        if split is not None:
            raise ValueError(
                f"{root} has no split {split!r}: its folders are classes ({', '.join(names[:8])}). "
                "Read it whole and hold rows out, or sort the classes into a folder for each split "
                "(train/cat/*.png, test/cat/*.png)."
            )
    if len(names) < 1:
        raise ValueError(
            f"{root} holds no folder of images; put the images of each class into a folder of its "
            "own (root/label/*.png), or write a manifest"
        )
    images, labels, stray = [], [], []
    for name in _classes(root):
        inside = [
            path
            for path in sorted((root / name).rglob("*"))
            if path.is_file() and path.name[0] != "." and path.name.lower() not in _IGNORED
        ]
        good = [path for path in inside if path.suffix.lower() in IMAGE_ENDINGS]
        stray += [path for path in inside if path.suffix.lower() not in IMAGE_ENDINGS]
        if not good:
            raise ValueError(f"{root / name} holds no image; remove the folder or fill it")
        images += [str(path) for path in good]
        labels += [name] * len(good)
    if stray:
        raise ValueError(
            f"{len(stray)} files below {root} are no images: {', '.join(map(str, stray[:5]))}. "
            f"Move them elsewhere; images end in {', '.join(IMAGE_ENDINGS)}."
        )
    return Table({"image": images, "label": labels}, str(root), split, label_names={"label": names})


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))
