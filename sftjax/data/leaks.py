"""The same patient, the same file or nearly the same picture in two splits: found and shown."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from sftjax.data.decode import Crop, Pixels, Reference, Slice, cut, name_of
from sftjax.data.images import Images
from sftjax.data.processor import resized
from sftjax.data.table import Table

_HASH = 16
"""Rows and columns of the difference hash: 256 bits."""


class Leak(NamedTuple):
    """Two rows of two splits that must not both be there."""

    kind: Literal["group", "identical", "near-duplicate"]
    first: str
    """`split row N: image` of the one."""
    second: str
    alike: float
    """Correlation of their thumbnails; 1 unless they are near-duplicates."""


class Prints(NamedTuple):
    """What pictures are compared by; N rows."""

    digest: tuple[str, ...]
    """Sha256 of the pixels."""
    bits: np.ndarray
    """(N, 256) float32 of -1 and 1: the difference hash."""
    thumbnail: np.ndarray
    """(N, 256) float32 in [0, 1]: 16 x 16 greys."""


def fingerprints(pictures: Sequence[Pixels] | np.ndarray) -> Prints:
    """Return the digest, difference hash and thumbnail of every picture.

    The difference hash (Krawetz 2013) says of each of 16 x 16 places whether the picture gets
    lighter to the right; light, contrast, scale and compression hardly change it.

    Args:
      pictures: N arrays (H, W, C) of uint8 or uint16; sizes may differ.

    >>> fingerprints([np.zeros((9, 9, 3), np.uint8)]).bits.shape
    (1, 256)
    """
    digests, bits, thumbnails = [], [], []
    for picture in pictures:
        picture = np.ascontiguousarray(picture)
        shape = f"{picture.dtype.str}{picture.shape}".encode()
        digests.append(hashlib.sha256(shape + picture.tobytes()).hexdigest())
        grey = cut(picture, picture, channels=1)
        # In 16 bits: a small picture enlarged must not have its differences rounded away.
        wide = resized(_sixteen(grey), (_HASH, _HASH + 1)).astype(np.int64)[..., 0]
        bits.append(np.where(wide[:, 1:] > wide[:, :-1], 1, -1).ravel())
        thumbnails.append(resized(_sixteen(grey), (_HASH, _HASH)).ravel() / 65535)
    return Prints(
        tuple(digests),
        np.array(bits, np.float32).reshape(-1, _HASH**2),
        np.array(thumbnails, np.float32).reshape(-1, _HASH**2),
    )


def leaks(
    parts: Mapping[str, Images | Table],
    *,
    group: str | None = None,
    bits: int = 26,
    alike: float = 0.985,
) -> list[Leak]:
    """Return every pair of rows that two splits must not share.

    A group is shared where its value is; identical are files of the same bytes (boxes of a file:
    the same box) and pictures of the same pixels; nearly the same are pictures of which at most
    `bits` of the 256 bits of the difference hash differ and whose 16 x 16 thumbnails correlate by
    at least `alike`. Of each value and of each row of the first split one pair is returned, the
    nearest. (Measured on blood cells: copies that were made smaller, paler and saved as JPEG differ
    in 13 to 26 bits and correlate by 0.998 or more; different cells never by more than 0.97.)

    Args:
      parts: split -> `Images`, or a `Table` where only groups and files are to be compared.
      group: the column of the groups (patients).
      bits: see above; a tenth by default.
      alike: see above.

    Raises:
      ValueError: if a table lacks the group's column.
    """
    found: list[Leak] = []
    tables = {n: part.table if isinstance(part, Images) else part for n, part in parts.items()}
    prints = {
        name: fingerprints(part.pixels) for name, part in parts.items() if isinstance(part, Images)
    }
    keys = {name: _file_keys(table) for name, table in tables.items()}
    for one, two in combinations(parts, 2):
        if group is not None:
            pairs = _shared(list(tables[one][group]), list(tables[two][group]))
            found += [_leak("group", tables, (one, two), pair, group=group) for pair in pairs]
        same = _shared(keys[one], keys[two])
        if one in prints and two in prints:
            same = sorted({*same, *_shared(prints[one].digest, prints[two].digest)})
        taken, once = set(), []
        for pair in same:
            once += [] if pair[0] in taken else [pair]
            taken.add(pair[0])
        found += [_leak("identical", tables, (one, two), pair) for pair in once]
        if one in prints and two in prints:
            for row, other, same in _near(prints[one], prints[two], bits, alike):
                if row not in taken:
                    found.append(_leak("near-duplicate", tables, (one, two), (row, other), same))
    return found


def refuse_leaks(
    parts: Mapping[str, Images | Table],
    *,
    group: str | None = None,
    bits: int = 26,
    alike: float = 0.985,
) -> None:
    """Refuse splits that share a group, a file or nearly the same picture; arguments as `leaks`.

    Raises:
      ValueError: showing the pairs (the first 20 of each kind) and what to do.

    >>> one = Table({"image": ["a.png"], "patient": ["p1"]}, name="toy")
    >>> two = Table({"image": ["b.png"], "patient": ["p1"]}, name="toy")
    >>> refuse_leaks({"train": one, "test": two}, group="patient")
    Traceback (most recent call last):
    ValueError: the splits share 1 group: what is measured ...
      train row 1: a.png (patient p1) | test row 1: b.png (patient p1)
    """
    found = leaks(parts, group=group, bits=bits, alike=alike)
    if not found:
        return
    words = {"group": "group", "identical": "identical image", "near-duplicate": "near-duplicate"}
    counts, lines = [], []
    for kind, word in words.items():
        of_kind = [leak for leak in found if leak.kind == kind]
        if of_kind:
            counts.append(f"{len(of_kind)} {word}{'s' if len(of_kind) > 1 else ''}")
        for leak in of_kind[:20]:
            apart = f" (alike by {leak.alike:.3f})" if leak.kind == "near-duplicate" else ""
            lines.append(f"  {leak.first} | {leak.second}{apart}")
        if len(of_kind) > 20:
            lines.append(f"  and {len(of_kind) - 20} more")
    raise ValueError(
        f"the splits share {', '.join(counts)}: what is measured on one was seen in the other, so "
        "the score would be too good. Split again by a column whose values must not cross, such as "
        "the patient (--group; split_table(..., group=...)), or remove one of each pair:\n"
        + "\n".join(lines)
    )


def _sixteen(grey: Pixels) -> Pixels:
    return grey if grey.dtype == np.uint16 else grey.astype(np.uint16) * 257


def _file_keys(table: Table) -> list[str]:
    """Return what tells files apart: the sha256 of each file's bytes, and of its box or plane."""
    if "image" not in table.columns:
        return []
    digests: dict[str, str] = {}
    keys = []
    for row, reference in enumerate(table["image"]):
        path = reference.path if isinstance(reference, Crop | Slice) else reference
        if isinstance(path, str | Path) and Path(path).is_file():
            if str(path) not in digests:
                with Path(path).open("rb") as file:
                    digests[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
            inside = tuple(reference)[1:] if isinstance(reference, Crop | Slice) else ()
            keys.append(f"{digests[str(path)]}{inside}")
        else:
            keys.append(f"no file: {table.name} {id(table)} {row}")
    return keys


def _shared(one: Sequence[object], two: Sequence[object]) -> list[tuple[int, int]]:
    """Return one pair of rows for every value that both have."""
    first, second = ({}, {})
    for found, values in ((first, one), (second, two)):
        for row, value in enumerate(values):
            found.setdefault(str(value), row)
    return [(row, second[value]) for value, row in first.items() if value in second]


def _near(
    one: Prints, two: Prints, bits: int, alike: float, block: int = 2048
) -> list[tuple[int, int, float]]:
    """Return `(row, nearest row of the other, correlation)` of the rows that are near one."""
    found = []
    size = one.bits.shape[1]
    centred = [p.thumbnail - p.thumbnail.mean(1, keepdims=True) for p in (one, two)]
    # A picture of one shade correlates with nothing.
    unit = [c / np.maximum(np.linalg.norm(c, axis=1, keepdims=True), 1e-6) for c in centred]
    for start in range(0, len(one.bits), block):
        # Bits as -1 and 1: the number that differ is (size - dot product) / 2, a matrix product.
        apart = (size - one.bits[start : start + block] @ two.bits.T) / 2
        best: dict[int, tuple[float, int]] = {}
        for row, other in np.argwhere(apart <= bits):
            same = float(unit[0][start + row] @ unit[1][other])
            if same >= alike:
                best[row] = max(best.get(row, (-1.0, -1)), (same, int(other)))
        found += [(start + int(row), other, same) for row, (same, other) in best.items()]
    return found


def _leak(
    kind: Literal["group", "identical", "near-duplicate"],
    tables: Mapping[str, Table],
    names: tuple[str, str],
    rows: tuple[int, int],
    alike: float = 1.0,
    *,
    group: str | None = None,
) -> Leak:
    said = []
    for name, row in zip(names, rows, strict=True):
        table = tables[name]
        number = table.rows[row] if len(table.rows) else row + 1
        references: Sequence[Reference] = table.columns.get("image", ())  # type: ignore[assignment]
        shown = f": {name_of(references[row])}" if len(references) else ""
        extra = f" ({group} {table[group][row]})" if group else ""
        said.append(f"{name} row {number}{shown}{extra}")
    return Leak(kind, said[0], said[1], alike)
