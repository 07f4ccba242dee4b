"""The members of a zip archive, none of which claims more than the archive has."""

import zipfile


def zip_members(archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """Return what an archive holds, each entry of its list.

    Python's reader takes the memory that a member claims before it looks how much there is.

    Args:
      archive: open for reading.
      size: bytes of the whole archive.

    Raises:
      zipfile.BadZipFile: if a member claims more bytes than that.

    >>> import io
    >>> file = io.BytesIO()
    >>> with zipfile.ZipFile(file, "w") as made:
    ...     made.writestr("a", b"four")
    >>> [info.file_size for info in zip_members(zipfile.ZipFile(file), 200)]
    [4]
    """
    members = archive.infolist()
    for info in members:
        if info.compress_size > size:
            raise zipfile.BadZipFile(
                f"{info.filename!r} claims {info.compress_size:,} bytes of an archive of {size:,}"
            )
    return members
