"""A folder of compiled programs that heals: what was not written whole is compiled again."""

import importlib
import os
import pathlib
import time
import zlib

_MARK = ".whole"
"""Its time says up to when the programs of a folder were looked through."""

_ZLIB, _ZSTD = b"\x78", b"\x28\xb5\x2f\xfd"


def remove_torn(folder: pathlib.Path) -> list[str]:
    """Remove compiled programs that were not written whole, and return their names.

    A full disk or a kill leaves one; jax would warn of it at every start, compile the program, and
    leave the file as it is, for ever. Only what was written since the last look is read.

    Args:
      folder: jax's compilation cache; one that is not there, not on a local disk or not to be
        written in is left.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> whole, torn = zlib.compress(b"program"), zlib.compress(b"program")[:-3]
    >>> _ = (folder / "jit_a-cache").write_bytes(whole), (folder / "jit_b-cache").write_bytes(torn)
    >>> remove_torn(folder), remove_torn(folder)
    (['jit_b-cache'], [])
    """
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return []
    mark, began = folder / _MARK, time.time() - 2  # some disks count in whole seconds
    since = mark.stat().st_mtime if mark.exists() else 0.0
    torn = []
    for path in sorted(folder.glob("*-cache")):
        try:
            if path.stat().st_mtime < since or _whole(path.read_bytes()):
                continue
            path.unlink()
        except FileNotFoundError:  # another process was first
            continue
        torn.append(path.name)
    mark.touch()
    os.utime(mark, (began, began))  # what is being written meanwhile is looked at next time
    return torn


def _whole(data: bytes) -> bool:
    """Whether a program can be unpacked; one whose form nothing here reads, whether it is there."""
    if data[:4] == _ZSTD:
        return _whole_zstd(data)
    if data[:1] != _ZLIB:
        return bool(data)
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(data)
    except zlib.error:
        return False
    return unpacking.eof


def _whole_zstd(data: bytes) -> bool:
    """Whether what jax compresses by is there (Python 3.14, or a package) and unpacks the data."""
    for name in ("compression.zstd", "zstandard"):
        try:
            zstd = importlib.import_module(name)
        except ImportError:
            continue
        try:
            zstd.decompress(data)
        except zstd.ZstdError:
            return False
    return True
