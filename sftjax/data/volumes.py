"""Volumes of NIfTI files and DICOM series (extra `medical`), and their planes as pictures."""

import math
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sftjax.data.decode import Slice, UnreadableImage
from sftjax.data.dicom import Volume, read_series

AXES = {"axial": 0, "coronal": 1, "sagittal": 2}
"""Which axis of a volume each kind of plane is cut across."""


def read_volume(path: str | Path) -> Volume:
    """Read a NIfTI file (`.nii`, `.nii.gz`) or a folder with one DICOM series.

    NIfTI is turned to its nearest axes: Z from feet to head, Y from back to front, X from left to
    right, so that every file has one orientation. DICOM keeps its planes as they were stored.

    Raises:
      UnreadableImage: (a ValueError) naming the file, if it is damaged or not of three axes.
      ImportError: if the reader is not installed.
    """
    return _cached(str(path))


def slices(
    path: str | Path,
    plane: str = "axial",
    *,
    every: int = 1,
    window: tuple[float, float] | None = None,
) -> list[Slice]:
    """Return references to the planes of a volume, for a column of images.

    Args:
      path: as for `read_volume`.
      plane: `axial`, `coronal` or `sagittal`.
      every: take one plane of so many.
      window: `(low, high)`, the values shown as black and white; default the 1st and the 99.5th
        percentile of the whole volume, so that all of its planes share one scale.

    >>> list(AXES)
    ['axial', 'coronal', 'sagittal']
    """
    if plane not in AXES:
        raise ValueError(f"plane {plane!r} is none of {', '.join(AXES)}")
    if every < 1:
        raise ValueError(f"every is {every}; it is a number of planes, 1 or more")
    values = read_volume(path).values
    axis = AXES[plane]
    low, high = np.percentile(values, (1, 99.5)) if window is None else window
    if not low < high:
        raise UnreadableImage(f"{path}: nothing to see between the values {low:g} and {high:g}")
    return [
        Slice(str(path), axis, index, float(low), float(high))
        for index in range(0, values.shape[axis], every)
    ]


@lru_cache(maxsize=4)
def _cached(path: str) -> Volume:
    file = Path(path)
    if file.is_dir():
        return read_series(file)
    if not file.name.lower().endswith((".nii", ".nii.gz")):
        raise UnreadableImage(
            f"{path} is neither NIfTI (.nii, .nii.gz) nor a folder of DICOM files"
        )
    if not file.is_file():
        raise UnreadableImage(f"{path}: there is no such file")
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.orientations import OrientationError
        from nibabel.spatialimages import HeaderDataError
    except ImportError as error:
        raise ImportError(
            f'{path} is NIfTI, which needs nibabel: pip install "sftjax[medical]"'
        ) from error
    # What gzip can make of a byte at most; what is not compressed holds all that it says.
    room = file.stat().st_size * (1032 if file.suffix.lower() == ".gz" else 1)
    try:
        image: Any = nibabel.load(path)
        said = math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
        if said > room:
            raise ValueError(
                f"its header says {said:,} bytes of values, and there is room for {room:,}; copy "
                "the file again"
            )
        image = nibabel.as_closest_canonical(image)
        values = np.asarray(image.dataobj, np.float32)
    except (
        ImageFileError, HeaderDataError, OrientationError, OSError, EOFError, ValueError,
        OverflowError, zlib.error,
    ) as error:  # fmt: skip
        raise UnreadableImage(f"{path} cannot be read as NIfTI: {error}") from error
    if values.ndim != 3:
        raise UnreadableImage(f"{path} has the shape {values.shape}; a volume has three axes")
    x, y, z = (float(size) for size in image.header.get_zooms()[:3])
    return Volume(values.transpose(2, 1, 0), (z, y, x), path)
