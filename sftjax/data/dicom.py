"""DICOM pictures and series (extra `medical`): rescaled, windowed, right way round, in order."""

import io
import math
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sftjax.data.decode import UnreadableImage

Window = tuple[float, float]
"""`(centre, width)` in the file's own units after rescaling (Hounsfield units in CT)."""

_READ = (
    "PhotometricInterpretation", "NumberOfFrames", "Modality", "SeriesInstanceUID", "BitsStored",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept",
    "InstanceNumber", "SliceThickness", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient",
)  # fmt: skip
"""The fields that are looked at beside the pixels."""


class Volume(NamedTuple):
    """Values on a grid of planes."""

    values: np.ndarray
    """(Z, Y, X) float32, in the file's own units."""
    spacing: tuple[float, float, float]
    """Millimetres between neighbours along each axis."""
    name: str
    """The file or folder."""


def read_dicom(path: str | Path, window: Window | None = None) -> np.ndarray:
    """Return one DICOM picture as it is meant to be seen.

    Stored values become `slope * stored + intercept`. Grey goes through the window (DICOM PS3.3
    C.11.2.1.2): with centre `c` and width `w`, `clip((x - (c - 0.5)) / (w - 1) + 0.5, 0, 1)`. A
    file without one shows its least value as black and its greatest as white. MONOCHROME1 stores
    its negative and is turned round. Colour is returned as RGB.

    Args:
      path: a `.dcm` file.
      window: in place of the file's own.

    Returns:
      (H, W) uint16 of grey, or (H, W, 3) uint8 of colour.

    Raises:
      UnreadableImage: (a ValueError) naming the file: no DICOM, no pixels, several frames, a
        compression that no installed decoder knows.
    """
    path = Path(path)
    data = _open(path)
    values = _pixels(data, path)
    kind = str(data.get("PhotometricInterpretation") or "MONOCHROME2")
    (frames,) = _numbers(data, path, "NumberOfFrames", (1.0,))
    if frames > 1:
        raise UnreadableImage(
            f"{path} holds {frames:g} frames; read it with read_series, or save the frame that is "
            "meant"
        )
    if kind == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        values = apply_color_lut(values, data)
        return (values >> 8 if values.dtype == np.uint16 else values).astype(np.uint8)
    if values.ndim == 3:
        if values.dtype == np.uint8:
            return values
        return np.round(values / float(2**data.BitsStored - 1) * 255).astype(np.uint8)
    values = _rescaled(values, data, path)
    window = window or _window(data, path)
    if window is not None and window[1] < 1:
        raise UnreadableImage(
            f"{path}: its window (centre {window[0]:g}, width {window[1]:g}) is narrower than 1, "
            "which DICOM forbids; mend WindowWidth in the file, or give read_dicom a `window`"
        )
    unit = _windowed(values, window, str(data.get("VOILUTFunction") or ""))
    if kind == "MONOCHROME1":
        unit = 1 - unit
    return np.round(unit * 65535).astype(np.uint16)


def read_series(folder: str | Path, series: str | None = None) -> Volume:
    """Stack the files of one DICOM series, in the order of their places in the patient.

    Planes are ordered along the normal of their orientation (by instance number where positions are
    missing). Values are rescaled and not windowed.

    Args:
      folder: whose `.dcm` files (or files without an ending) are read.
      series: the SeriesInstanceUID, if the folder has several.

    Raises:
      UnreadableImage: (a ValueError) if there is no file, several series and none chosen, planes of
        different shapes, two planes at one place, or gaps that differ by more than a tenth (a
        missing plane).
    """
    folder = Path(folder)
    files = [
        p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix.lower() in ("", ".dcm")
    ]
    found: dict[str, list[tuple[Any, Path]]] = {}
    for path in files:
        if path.name.upper() != "DICOMDIR":
            data = _open(path)
            found.setdefault(str(data.get("SeriesInstanceUID") or ""), []).append((data, path))
    if not found:
        raise UnreadableImage(f"{folder} holds no DICOM file")
    if series is None and len(found) > 1:
        raise UnreadableImage(
            f"{folder} holds {len(found)} series; choose one of {', '.join(found)} (`series` of "
            "read_series), or give each a folder of its own"
        )
    if series is not None and series not in found:
        raise UnreadableImage(f"{folder} has no series {series}; it has {', '.join(found)}")
    planes = found[series] if series is not None else next(iter(found.values()))
    places = [_place(*plane) for plane in planes]
    positioned = all(place is not None for place in places)
    keys = [
        place if positioned else _numbers(*plane, "InstanceNumber", (float(number),))[0]
        for number, (plane, place) in enumerate(zip(planes, places, strict=True))
    ]
    order = np.argsort(np.array(keys, float), kind="stable")
    values = [_rescaled(_pixels(*planes[i]), *planes[i]) for i in order]
    if len({plane.shape for plane in values}) > 1 or values[0].ndim != 2:
        shapes = ", ".join(sorted({str(plane.shape) for plane in values}))
        raise UnreadableImage(
            f"{folder}: its planes do not make one volume, their shapes are {shapes}; keep only "
            "the grey planes of one size in the folder"
        )
    first = planes[int(order[0])]
    gap = _numbers(*first, "SliceThickness", (1.0,))[0] or 1.0
    if positioned and len(order) > 1:
        gaps = np.diff(np.array(keys, float)[order])
        gap = float(np.median(gaps))
        odd = np.flatnonzero(np.abs(gaps - gap) > 0.1 * max(gap, 1e-6))
        if gap <= 0 or len(odd):
            where = planes[order[int(odd[0]) if len(odd) else 0]][1].name
            raise UnreadableImage(
                f"{folder}: planes are {gaps.min():g} to {gaps.max():g} mm apart, first after "
                f"{where}; one is missing or there twice: copy the series again, or remove the "
                "second"
            )
    down, across = _numbers(*first, "PixelSpacing", (1.0, 1.0))
    return Volume(np.stack(values).astype(np.float32), (gap, down, across), str(folder))


def _open(path: Path) -> Any:
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError as error:
        raise ImportError(
            f'{path} is DICOM, which needs pydicom: pip install "sftjax[medical]"'
        ) from error
    try:
        with warnings.catch_warnings():
            # Old scanners write values that the standard has since forbidden; the pixels are fine.
            warnings.simplefilter("ignore")
            # From memory: a file object makes room for whatever length a damaged field has.
            data = pydicom.dcmread(io.BytesIO(path.read_bytes()))
            for name in _READ:  # pydicom decodes a field when it is asked for
                data.get(name)
            return data
    except (
        InvalidDicomError, BytesLengthException, struct.error, OSError, EOFError, ValueError,
        TypeError, LookupError, AttributeError, NotImplementedError,
    ) as error:  # fmt: skip
        # What pydicom raises for damaged headers.
        raise UnreadableImage(f"{path} is no whole DICOM file: {error}") from error


def _pixels(data: Any, path: Path) -> np.ndarray:
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        kind = data.get("Modality")
        raise UnreadableImage(
            f"{path} is DICOM without pixels" + (f" (modality {kind})" if kind else "")
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(data.pixel_array)
    except (
        RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, OSError,
    ) as error:  # fmt: skip
        # What pydicom raises for damaged pixels and for compressions without a decoder.
        raise UnreadableImage(f"{path}: the pixels cannot be decoded: {error}") from error


def _numbers(
    data: Any, path: Path, name: str, absent: tuple[float, ...], *, more: bool = False
) -> tuple[float, ...]:
    """Return a field of numbers; `absent`, which is as long, where the file has none.

    Raises:
      UnreadableImage: if they are no numbers or (but for `more`) not as many.
    """
    value = data.get(name)
    if value is None or str(value) == "":
        return absent
    several = hasattr(value, "__len__") and not isinstance(value, str)
    try:
        numbers = tuple(float(one) for one in (value if several else (value,)))
    except (ValueError, TypeError):
        numbers = ()
    if not all(map(math.isfinite, numbers)):
        numbers = ()
    if len(numbers) != len(absent) and not (more and len(numbers) > len(absent)):
        many = f"{len(absent)} numbers" if len(absent) > 1 else "a number"
        raise UnreadableImage(
            f"{path}: its {name} is {value!r}, which should be {many}; mend it in the file, or "
            "copy the file again"
        )
    return numbers[: len(absent)]


def _rescaled(values: np.ndarray, data: Any, path: Path) -> np.ndarray:
    (slope,) = _numbers(data, path, "RescaleSlope", (1.0,))
    (intercept,) = _numbers(data, path, "RescaleIntercept", (0.0,))
    return values.astype(np.float32) * (slope or 1.0) + intercept


def _window(data: Any, path: Path) -> Window | None:
    """Return the first window of the file; there may be several, for different tissues."""
    nan = float("nan")
    (centre,) = _numbers(data, path, "WindowCenter", (nan,), more=True)
    (width,) = _numbers(data, path, "WindowWidth", (nan,), more=True)
    return None if np.isnan(centre) or np.isnan(width) else (centre, width)


def _windowed(values: np.ndarray, window: Window | None, function: str) -> np.ndarray:
    if window is None:
        low, high = float(values.min()), float(values.max())
        return (values - low) / max(high - low, np.finfo(np.float32).tiny)
    centre, width = window
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    # Width 1 is a threshold at centre - 0.5.
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5, 0, 1)


def _place(data: Any, path: Path) -> float | None:
    """Return where the plane lies along the normal of its orientation, in millimetres."""
    if not data.get("ImagePositionPatient") or not data.get("ImageOrientationPatient"):
        return None
    along = np.array(_numbers(data, path, "ImageOrientationPatient", (0.0,) * 6))
    position = _numbers(data, path, "ImagePositionPatient", (0.0,) * 3)
    return float(np.cross(along[:3], along[3:]) @ np.array(position))
