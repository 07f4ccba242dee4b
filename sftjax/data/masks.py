"""Pictures with a class in every pixel: where their masks are, and how a mask is read.

A mask holds whole numbers and never goes through what changes pixels: it is read as it is, and
resized by taking the nearest pixel.
"""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sftjax.data.decode import (
    IMAGE_ENDINGS,
    Reference,
    Slice,
    UnreadableImage,
    decode,
    name_of,
)
from sftjax.data.image_sources import picture_set, read_images
from sftjax.data.labels import IGNORED
from sftjax.data.table import Table, is_missing
from sftjax.data.volumes import read_volume, slices

VOLUMES = (".nii", ".nii.gz")
MOST = 64
"""A mask of more different values than this is taken for a picture."""


def read_masked(
    source: str,
    split: str | None = None,
    *,
    image: str | None = None,
    mask: str = "mask",
    split_column: str = "split",
    plane: str = "axial",
    every: int = 1,
) -> Table:
    """Read a table with the columns `image` and `mask`; nothing is decoded yet.

    | source | rows |
    |---|---|
    | a folder with `images/` and `masks/` | a picture a row, its mask of the same name |
    | a manifest with a column of masks | a picture a row, or every plane of a volume (NIfTI) |
    | `asset:NAME` | a manifest that is fetched |

    Args:
      source: as above.
      split: of a manifest; None takes every row of a source without splits.
      image: the manifest's column of pictures; default as in `read_images`.
      mask: its column of masks.
      split_column: its column of splits.
      plane: how volumes are cut: `axial`, `coronal` or `sagittal`.
      every: take one plane of so many.

    Raises:
      FileNotFoundError: if the source or a mask does not exist.
      ValueError: naming the rows whose mask is missing.
    """
    home = picture_set(source)
    if (home / "images").is_dir() and (home / "masks").is_dir():
        return _paired(home)
    table = read_images(source, split, image=image, split_column=split_column)
    cells = table[mask]
    missing = [row for row, value in enumerate(cells) if is_missing(value)]
    if missing:
        raise ValueError(
            f"{table.locate(missing)}: no mask is named there (column {mask!r} is empty); name the "
            "mask's file, or remove the row"
        )
    # Paths are relative to the manifest, as those of pictures are.
    folder = Path(table.name).parent
    paths = [str(folder / str(cell).strip()) for cell in cells]
    absent = [row for row, path in enumerate(paths) if not Path(path).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{table.locate(absent)}: there is no mask {paths[absent[0]]}. Paths are relative to "
            "the manifest's folder."
        )
    table = Table({**table.columns, "mask": paths}, table.name, table.split, table.rows)
    return _planes(table, plane, every)


def class_names(source: str) -> tuple[str, ...]:
    """Return the names in the `classes.txt` of a source, a line each; none if it has none."""
    home = picture_set(source)
    path = (home if home.is_dir() else home.parent) / "classes.txt"
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in path.read_text("utf8").splitlines() if line.strip())


def read_mask(reference: Reference) -> np.ndarray:
    """Return a mask as it was saved: (H, W) whole numbers.

    Raises:
      UnreadableImage: (a ValueError) naming a mask that is no image, JPEG (which changes values),
        of colours, or not of whole numbers.

    >>> read_mask(np.array([[0, 255]], np.uint8)).tolist()
    [[0, 255]]
    """
    name = name_of(reference)
    if isinstance(reference, Slice):
        plane = np.take(read_volume(reference.path).values, reference.place, axis=reference.axis)
        if not np.array_equal(plane, np.round(plane)):
            raise UnreadableImage(f"{name} holds values that are no whole numbers; it is no mask")
        return plane.astype(np.int32)
    values = reference if isinstance(reference, np.ndarray) else _saved(Path(str(reference)))
    if values.ndim == 3 and values.shape[2] == 3 and np.ptp(values, axis=2).max() == 0:
        values = values[..., 0]  # grey, saved as RGB
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise UnreadableImage(
            f"{name} is {values.dtype} {values.shape}; a mask is (H, W) of class numbers, not of "
            "colours: save it as grey or palette PNG, or as NIfTI"
        )
    return values.astype(np.int32)


class Masks(NamedTuple):
    """The masks of every row, resized to one size."""

    values: np.ndarray
    """(N, H, W) int32 class numbers; -100 where a pixel does not count."""
    names: tuple[str, ...]
    seen: tuple[int, ...]
    """The value in the files of each class number."""


def load_masks(
    table: Table,
    size: tuple[int, int],
    names: Sequence[str] = (),
    *,
    seen: Sequence[int] = (),
    ignore: int | None = None,
) -> Masks:
    """Read the masks of a table and number their classes.

    With names, values count from 0 to the last; or there are as many different values as names (0
    and 255), numbered in order. Without names the values that occur, in order, are the classes, and
    the first is called background.

    Args:
      table: with the columns `image` and `mask`.
      size: (H, W) to resize to, by the nearest pixel.
      names: of the classes.
      seen: the values of the classes, where another part of the data has settled them.
      ignore: the value of pixels that do not count.

    Raises:
      ValueError: naming masks that cannot be read, are of another size than their picture, or hold
        a value beyond the classes.
    """
    wrong: list[str] = []
    found: list[np.ndarray] = []
    kinds: list[np.ndarray] = []
    for image, mask in zip(table["image"], table["mask"], strict=True):
        try:
            values, expected = read_mask(mask), size_of(image)
        except UnreadableImage as error:
            wrong.append(str(error))
            continue
        if values.shape != expected:
            wrong.append(
                f"{name_of(mask)} is {values.shape[0]} x {values.shape[1]}, and its picture "
                f"{name_of(image)} is {expected[0]} x {expected[1]}"
            )
        found.append(nearest_resized(values, size))
        kinds.append(np.unique(values))
    if wrong:
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        listed = "\n  ".join(wrong[:20])
        raise ValueError(
            f"{table.name}: {len(wrong)} of {len(table)} masks cannot be used. Replace them, or "
            f"remove their rows:\n  {listed}{more}"
        )
    present = [int(v) for v in np.unique(np.concatenate(kinds)) if v != ignore]
    values = tuple(seen) or _values(table, present, names)
    beyond = [value for value in present if value not in values]
    if beyond:
        row = next(row for row, kind in enumerate(kinds) if beyond[0] in kind)
        raise ValueError(
            f"{name_of(table['mask'][row])} holds the value {beyond[0]}, and the {len(values)} "
            f"classes have the values {', '.join(map(str, values))}; name every class (--labels), "
            "or the value that does not count (--ignore)"
        )
    stacked = np.stack(found)
    numbers = np.full(stacked.shape, IGNORED, np.int32)
    for number, value in enumerate(values):
        numbers[stacked == value] = number
    called = tuple(names) or ("background", *(f"value {value}" for value in values[1:]))
    return Masks(numbers, called, values)


def size_of(reference: Reference) -> tuple[int, int]:
    """Return height and width of a picture as it is shown, decoding no more than needed."""
    if isinstance(reference, Slice):
        shape = list(read_volume(reference.path).values.shape)
        del shape[reference.axis]
        return shape[0], shape[1]
    if isinstance(reference, str | Path) and Path(reference).suffix.lower() != ".dcm":
        from PIL import Image

        try:
            with Image.open(reference) as opened:
                width, height = opened.size
                turned = opened.getexif().get(0x0112, 1) >= 5  # EXIF: lies on its side
                return (width, height) if turned else (height, width)
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImage(f"{reference} cannot be decoded: {error}") from error
    return decode(reference, channels=None).shape[:2]


def nearest_resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) whole numbers by taking the nearest pixel.

    >>> nearest_resized(np.array([[1, 2]]), (2, 4)).tolist()
    [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    places = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for old, new in zip(values.shape, size, strict=True)
    ]
    return values[np.ix_(*places)]


def _values(table: Table, present: list[int], names: Sequence[str]) -> tuple[int, ...]:
    if names:
        counted = all(0 <= value < len(names) for value in present)
        return tuple(range(len(names))) if counted or len(present) != len(names) else tuple(present)
    if not 2 <= len(present) <= MOST:
        raise ValueError(
            f"{table.name}: the masks hold {len(present)} different values; a mask has 2 to {MOST} "
            "classes. Is it a picture, or was it saved with loss?"
        )
    return tuple(present)


def _saved(path: Path) -> np.ndarray:
    from PIL import Image

    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise UnreadableImage(
            f"{path} is JPEG, which changes the numbers of a mask; save it as PNG"
        )
    if not path.is_file() or not path.stat().st_size:
        raise UnreadableImage(f"{path} is empty (0 bytes) or not there")
    try:
        with Image.open(path) as opened:
            opened.load()
            return np.asarray(opened)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise UnreadableImage(f"{path} cannot be decoded: {error}") from error


def _paired(home: Path) -> Table:
    files: dict[str, dict[str, Path]] = {}
    for kind in ("images", "masks"):
        files[kind] = {
            path.stem: path
            for path in sorted((home / kind).iterdir())
            if path.suffix.lower() in IMAGE_ENDINGS and path.name[0] != "."
        }
    alone = sorted(set(files["images"]) ^ set(files["masks"]))
    if not files["images"] and not alone:
        raise ValueError(
            f"{home}: its folders images/ and masks/ hold no pictures (files that end in "
            f"{', '.join(IMAGE_ENDINGS)}); put each picture into images/ and its mask, under the "
            "same name, into masks/"
        )
    if alone:
        raise ValueError(
            f"{home}: {len(alone)} of the pictures and masks have no partner of the same name, "
            f"such as {', '.join(alone[:5])}; give each picture of images/ its mask in masks/"
        )
    stems = list(files["images"])
    columns: dict[str, Any] = {
        "image": [str(files["images"][stem]) for stem in stems],
        "mask": [str(files["masks"][stem]) for stem in stems],
    }
    return Table(columns, str(home))


def _planes(table: Table, plane: str, every: int) -> Table:
    """Give every plane of a volume a row of its own; the volume is its group."""
    references: list[Any] = list(table["image"])
    deep = [str(reference).lower().endswith(VOLUMES) for reference in references]
    if not any(deep):
        return table
    numbers = list(table.rows) or list(range(1, len(table) + 1))
    columns: dict[str, list[Any]] = {name: [] for name in table.columns}
    columns.setdefault("group", [])
    rows: list[int] = []
    for row, (reference, is_deep) in enumerate(zip(references, deep, strict=True)):
        own = {name: values[row] for name, values in table.columns.items()}
        own.setdefault("group", str(reference))
        pairs = [(reference, own["mask"])]
        if is_deep:
            has, expected = (read_volume(r).values.shape for r in (own["mask"], reference))
            if has != expected:
                raise ValueError(
                    f"{table.locate([row])}: {own['mask']} is of another size than {reference}, "
                    f"{has} and not {expected}; resample the mask onto the volume's grid"
                )
            cut = slices(reference, plane, every=every)
            pairs = [(each, each._replace(path=str(own["mask"]))) for each in cut]
        for image, mask in pairs:
            for name, value in {**own, "image": image, "mask": mask}.items():
                columns[name].append(value)
            rows.append(int(numbers[row]))
    return Table(columns, table.name, table.split, rows)
