"""NumPy's archives of arrays, read with every declared size checked before memory is taken."""

import io
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

from sftjax.core.zip_members import zip_members

_MOST_TIMES = 200
"""Arrays that unpack to more than so many times the file are refused; real ones stay far below."""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def npz_names(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of the arrays in an archive.

    Raises:
      ValueError: if it is no whole archive.
    """
    return list(_members(pathlib.Path(path)))


def read_npz(
    path: str | os.PathLike[str], *, only: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of a `.npz` by name; nothing of it is ever run.

    `numpy.load` takes the memory that an array's header asks for before it looks at the data. Here
    the header must agree with the size of its member, and the members with the file.

    Args:
      path: the file.
      only: read these alone.

    Raises:
      KeyError: for a name in `only` that it does not have.
      ValueError: if the archive is damaged or holds objects, which are pickles.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npz"
    >>> np.savez(path, x=np.arange(3))
    >>> read_npz(path)
    {'x': array([0, 1, 2])}
    """
    path = pathlib.Path(path)
    members = _members(path)
    wanted = members if only is None else {name: members[name] for name in only}
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array(name, archive.read(info)) for name, info in wanted.items()}
    except _DAMAGE as error:
        raise _broken(path, error) from error


_DAMAGE = (
    ValueError, OSError, EOFError, RuntimeError, SyntaxError, TypeError, OverflowError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What zipfile and numpy's reader of headers raise for bytes that nobody wrote so."""


def _members(path: pathlib.Path) -> dict[str, zipfile.ZipInfo]:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            infos = zip_members(archive, size)
    except _DAMAGE as error:
        raise _broken(path, error) from error
    if strange := [i.filename for i in infos if i.compress_type not in _COMPRESSIONS]:
        raise _broken(path, f"{strange[0]!r} is compressed in a way that numpy does not write")
    total = sum(info.file_size for info in infos)
    if total > _MOST_TIMES * size:
        raise _broken(path, f"it would unpack to {total:,} bytes from {size:,}; refused")
    return {info.filename.removesuffix(".npy"): info for info in infos}


def _array(name: str, data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"the array {name!r} is of version {version}")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError(
            f"{name!r} holds Python objects, which are pickles and never opened here; save it "
            "again as numbers"
        )
    place = file.tell()
    if math.prod(shape) * dtype.itemsize != len(data) - place or min(shape, default=0) < 0:
        raise ValueError(
            f"{name!r}, {dtype} of shape {shape}, does not fit its {len(data) - place} bytes"
        )
    flat: Any = np.frombuffer(data, dtype, offset=place) if math.prod(shape) else np.zeros(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def _broken(path: pathlib.Path, reason: object) -> ValueError:
    return ValueError(
        f"{path} is not a whole archive of plain arrays ({reason}). If it was cut short or "
        "damaged, download or copy it again, and compare its size and sha256 with the source's"
    )
