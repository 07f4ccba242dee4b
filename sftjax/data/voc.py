"""Boxes of Pascal VOC annotations as pictures of their own, grouped by the file they are in."""

import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from sftjax.data.decode import IMAGE_ENDINGS, Crop
from sftjax.data.sources import SPLIT_FILES
from sftjax.data.table import Table


def is_voc(folder: Path) -> bool:
    """Tell whether a folder has `Annotations/` and `JPEGImages/`."""
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def voc_splits(folder: Path) -> tuple[str, ...]:
    """Return the splits that `ImageSets/Main` lists, of `train`, `validation` and `test`."""
    return tuple(_lists(folder))


def read_voc(folder: str | Path, split: str | None = None, *, margin: float = 0.0) -> Table:
    """Read the boxes of a folder in the layout of Pascal VOC.

    A box is clipped to its picture. One that holds no pixels then, or whose sides are swapped, is
    left out with a warning that names it.

    Args:
      folder: with `Annotations/*.xml` and `JPEGImages/`.
      split: one of `voc_splits`; None reads every annotation.
      margin: how much of its own size a box is widened by on every side, to show what is around.

    Returns:
      The `Table` of `image` (`Crop`s), `label` (the object's name), `group` (the picture's name)
      and `size` (the longer side of the box, in pixels).

    Raises:
      ValueError: for an annotation that is no XML or lacks a field, a picture that is not there,
        or a split that is not listed.
    """
    folder = Path(folder)
    lists = _lists(folder)
    if split is None:
        stems = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
    elif split in lists:
        stems = lists[split].read_text(encoding="utf-8").split()
    else:
        raise ValueError(f"{folder}: there is no split {split!r}; it has {', '.join(lists)}")
    pictures = {
        path.stem: path
        for path in sorted((folder / "JPEGImages").iterdir())
        if path.suffix.lower() in IMAGE_ENDINGS
    }
    rows: list[tuple[Crop, str, str, int]] = []
    empty: list[str] = []
    for stem in stems:
        annotation = folder / "Annotations" / f"{stem}.xml"
        if stem not in pictures:
            raise ValueError(f"{annotation} has no picture {stem}.* in {folder / 'JPEGImages'}")
        for number, (name, box, (width, height)) in enumerate(_objects(annotation), start=1):
            left, top, right, bottom = box
            across, down = round(margin * (right - left)), round(margin * (bottom - top))
            crop = Crop(
                str(pictures[stem]),
                max(left - across, 0),
                max(top - down, 0),
                min(right + across, width),
                min(bottom + down, height),
            )
            if crop.right <= crop.left or crop.bottom <= crop.top:
                empty.append(f"{annotation.name} object {number} ({name} {box})")
            else:
                size = max(crop.right - crop.left, crop.bottom - crop.top)
                rows.append((crop, name, stem, size))
    if empty:
        warnings.warn(
            f"{folder}: {len(empty)} boxes of {len(empty) + len(rows)} hold no pixels and are left "
            f"out: {', '.join(empty[:10])}",
            stacklevel=2,
        )
    if not rows:
        raise ValueError(f"{folder} has no box" + (f" in the split {split}" if split else ""))
    crops, labels, groups, sizes = zip(*rows, strict=True)
    return Table(
        {"image": list(crops), "label": list(labels), "group": list(groups), "size": list(sizes)},
        str(folder),
        split,
    )


def _lists(folder: Path) -> dict[str, Path]:
    lists = folder / "ImageSets" / "Main"
    files = {
        split: [lists / f"{name}.txt" for name in names] for split, names in SPLIT_FILES.items()
    }
    return {split: path for split, paths in files.items() for path in paths if path.is_file()}


def _objects(path: Path) -> list[tuple[str, tuple[int, int, int, int], tuple[int, int]]]:
    """Return `(name, (left, top, right, bottom), (width, height))` of every object."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(
            f"{path} cannot be read as XML: {error}. Copy it again, or take it out of the set."
        ) from error
    size = (_number(root, "size/width", path), _number(root, "size/height", path))
    return [
        (
            str(_text(node, "name", path)),
            # VOC counts pixels from 1 and includes the last.
            (
                _number(node, "bndbox/xmin", path) - 1,
                _number(node, "bndbox/ymin", path) - 1,
                _number(node, "bndbox/xmax", path),
                _number(node, "bndbox/ymax", path),
            ),
            size,
        )
        for node in root.findall("object")
    ]


def _text(node: Any, name: str, path: Path) -> str:
    found = node.findtext(name)
    if found is None or not found.strip():
        raise ValueError(f"{path} has no {name} in an {node.tag}; it is not of the VOC layout")
    return found.strip()


def _number(node: Any, name: str, path: Path) -> int:
    text = _text(node, name, path)
    try:
        return round(float(text))
    except ValueError as error:
        raise ValueError(f"{path}: {name} is {text!r} and no number") from error
