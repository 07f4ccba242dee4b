"""From what a table says of an image to its pixels: any file, one box of it, one slice of a volume.

A picture is always (H, W, C) of uint8 or uint16, C being 1 (grey) or 3 (RGB).
"""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[Any]
"""(H, W, C) uint8 or uint16."""

IMAGE_ENDINGS = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".dcm",
)  # fmt: skip
"""The file name endings that count as images; `.dcm` needs the extra `medical`."""


class Crop(NamedTuple):
    """A box of an image file, in its pixels as they are shown (after EXIF rotation)."""

    path: str
    left: int
    top: int
    right: int
    bottom: int
    """The box holds columns `left` to `right - 1` and rows `top` to `bottom - 1`."""


class Slice(NamedTuple):
    """A plane of a volume: a NIfTI file or a folder with the files of one DICOM series."""

    path: str
    axis: int
    place: int
    low: float
    high: float
    """Values from `low` to `high` become grey 0 to 65535; those outside are clipped."""


Reference = str | Path | Crop | Slice | bytes | Pixels
"""One cell of a column of images; bytes are an encoded file, an array its pixels."""


class UnreadableImage(ValueError):
    """An image that cannot be decoded; the message says which and why."""


def decode(reference: Reference, *, channels: int | None = 3) -> Pixels:
    """Return the pixels of one image.

    EXIF rotation is applied. CMYK, palettes and other colour spaces become RGB; transparent pixels
    are laid over white. Grey of 9 to 16 bits keeps its values as uint16; colour of 16 bits becomes
    8 bits, as Pillow reads it. DICOM is shown through its own window (`read_dicom`).

    Args:
      reference: a path, a `Crop`, a `Slice`, an encoded file as bytes, or pixels (H, W[, C]).
      channels: 3 repeats grey, 1 takes the luma of colour (ITU-R 601), None keeps what there is.

    Returns:
      (H, W, C) uint8 or uint16.

    Raises:
      UnreadableImage: (a ValueError) naming the image: empty, cut off, no image, several frames,
        a float image, a box without pixels.

    >>> decode(np.zeros((2, 3), np.uint8)).shape
    (2, 3, 3)
    """
    return cut(open_source(source_of(reference)), reference, channels=channels)


def name_of(reference: Reference) -> str:
    """Say which image this is, for an error message.

    >>> name_of(Crop("a.jpg", 0, 1, 2, 3)), name_of(Slice("t1.nii", 0, 5, 0, 1))
    ('a.jpg (box 0, 1, 2, 3)', 't1.nii (slice 5 along axis 0)')
    """
    if isinstance(reference, Crop):
        return f"{reference.path} (box {', '.join(map(str, reference[1:]))})"
    if isinstance(reference, Slice):
        return f"{reference.path} (slice {reference.place} along axis {reference.axis})"
    if isinstance(reference, bytes):
        return f"an encoded image of {len(reference)} bytes"
    if isinstance(reference, np.ndarray):
        return f"an array of {reference.dtype} {reference.shape}"
    return str(reference)


def source_of(reference: Reference) -> Any:
    """Return what has to be opened for an image; boxes and slices of one file share it.

    >>> source_of(Crop("a.jpg", 0, 0, 2, 2)), source_of("a.jpg")
    ('a.jpg', 'a.jpg')
    """
    if isinstance(reference, Crop):
        return reference.path
    if isinstance(reference, Slice):
        return reference._replace(axis=0, place=0, low=0.0, high=0.0)
    return os.fspath(reference) if isinstance(reference, Path) else reference


def open_source(source: Any) -> np.ndarray:
    """Read what `source_of` named: (H, W[, C]) pixels, or the (Z, Y, X) float32 of a volume."""
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, Slice):
        from sftjax.data.volumes import read_volume

        return read_volume(source.path).values
    if isinstance(source, bytes):
        if not source:
            raise UnreadableImage("an encoded image of 0 bytes")
        return _pillow(io.BytesIO(source), f"an encoded image of {len(source)} bytes")
    path = Path(source)
    if not path.is_file():
        raise UnreadableImage(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise UnreadableImage(f"{path} is empty (0 bytes)")
    if path.suffix.lower() == ".dcm":
        from sftjax.data.dicom import read_dicom

        return read_dicom(path)
    return _pillow(path, str(path))


def cut(source: np.ndarray, reference: Reference, *, channels: int | None = 3) -> Pixels:
    """Cut an image out of its opened source and bring it to (H, W, channels)."""
    if isinstance(reference, Slice):
        plane = np.take(source, reference.place, axis=reference.axis)
        span = max(reference.high - reference.low, np.finfo(np.float32).tiny)
        unit = np.clip((plane - reference.low) / span, 0, 1)
        source = np.round(unit * 65535).astype(np.uint16)
    elif isinstance(reference, Crop):
        _, left, top, right, bottom = reference
        height, width = source.shape[:2]
        source = source[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    name = name_of(reference)
    if source.ndim == 2:
        source = source[..., None]
    if (
        source.ndim != 3
        or source.shape[2] not in (1, 3)
        or source.dtype not in (np.uint8, np.uint16)
    ):
        raise UnreadableImage(
            f"{name} has shape {source.shape} and dtype {source.dtype}; an image is (H, W), "
            "(H, W, 1) or (H, W, 3) of uint8 or uint16"
        )
    if not source.size:
        raise UnreadableImage(f"{name} holds no pixels")
    if channels == 3 and source.shape[2] == 1:
        return np.repeat(source, 3, axis=2)
    if channels == 1 and source.shape[2] == 3:
        luma = source @ np.array([0.299, 0.587, 0.114])
        return np.round(luma).astype(source.dtype)[..., None]
    return source


def _pillow(file: Any, name: str) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # More than 89 Mpixels are no attack where people work on slides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                frames = getattr(opened, "n_frames", 1)
                if frames > 1:
                    raise UnreadableImage(
                        f"{name} holds {frames} frames; save the one that is meant as a file"
                    )
                opened.load()
                return _plain(ImageOps.exif_transpose(opened), name)
    except UnreadableImage:
        raise
    except (
        OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError,
        struct.error, zlib.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        # What Pillow's plug-ins raise on damaged files; none says which file it was.
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "no image format that Pillow knows"
        raise UnreadableImage(f"{name} cannot be decoded: {reason}") from error


def _plain(image: "Image.Image", name: str) -> np.ndarray:
    from PIL import Image

    mode = image.mode
    if mode.startswith("I"):  # grey of 16 bits; Pillow widens some of it to 32
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage(
                f"{name} has grey values from {values.min()} to {values.max()}; save it as 16 bits"
            )
        return values.astype(np.uint16)
    if mode == "F":
        raise UnreadableImage(
            f"{name} holds floating-point values, whose black and white nobody states; save it as "
            "8 or 16 bits"
        )
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, over).convert("RGB"))
    return np.asarray(image.convert("L" if mode in ("1", "L") else "RGB"))
