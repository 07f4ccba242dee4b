"""Plots of masks: a picture, what is true, what was found, side by side."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from sftjax.evaluate.figure import INK, figure, save

PALETTE = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
    (213, 94, 0), (204, 121, 167), (153, 153, 153), (102, 51, 153), (139, 69, 19), (0, 206, 209),
)  # fmt: skip
"""Colours that colour-blind eyes tell apart (Okabe and Ito), the background's first."""


def colours_of(classes: int) -> np.ndarray:
    """Return a colour a class, (K, 3) uint8; beyond the palette they are drawn by their number.

    >>> colours_of(2).tolist()
    [[0, 0, 0], [230, 159, 0]]
    """
    rng = np.random.default_rng(0)
    more = rng.integers(40, 256, (max(classes - len(PALETTE), 0), 3))
    return np.concatenate([np.array(PALETTE), more])[:classes].astype(np.uint8)


def mask_overlays(
    pictures: ArrayLike,
    truth: ArrayLike | None,
    found: ArrayLike,
    names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    titles: Sequence[str] = (),
    title: str = "",
    opacity: float = 0.55,
) -> Path:
    """Draw each picture, and itself under the true mask and under the one that was found.

    Args:
      pictures: (N, H, W, C) uint8, uint16, or floats from 0 to 1.
      truth: (N, H, W) class numbers, below 0 where a pixel does not count; None draws none.
      found: (N, H, W) class numbers.
      names: of the classes; the first is the background, which stays as it is.
      path: file to write.
      titles: one a picture.
      title: above the figure.
      opacity: of the colours.

    Raises:
      ValueError: if pictures and masks differ in number or size, or there are none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     masks = np.ones((1, 8, 8), int)
    ...     mask_overlays(np.zeros((1, 8, 8, 3)), masks, masks, "ab", folder + "/a.png").name
    'a.png'
    """
    shown = np.asarray(pictures)
    layers = [np.asarray(mask) for mask in (truth, found) if mask is not None]
    if not len(shown) or any(mask.shape != shown.shape[:3] for mask in layers):
        raise ValueError(
            f"pictures are {shown.shape} and masks {[mask.shape for mask in layers]}; give a mask "
            "of the same size for each picture, and one picture or more"
        )
    if shown.dtype.kind == "u":
        shown = shown / np.iinfo(shown.dtype).max
    shown = np.broadcast_to(np.clip(shown, 0, 1), (*shown.shape[:3], 3))
    colours = colours_of(len(names)) / 255
    columns = 1 + len(layers)
    across = min(len(shown), 3)
    rows = -(-len(shown) // across)
    drawing = figure(1.5 * columns * across + 0.2, 1.75 * rows + (0.9 if title else 0.5))
    axes = drawing.subplots(rows, columns * across, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for number, picture in enumerate(shown):
        row, place = divmod(number, across)
        own = axes[row, place * columns : (place + 1) * columns]
        own[0].imshow(picture, interpolation="nearest")
        for axis, layer in zip(own[1:], layers, strict=True):
            mask = layer[number]
            inside = (mask > 0)[..., None]
            veil = (1 - opacity) * picture + opacity * colours[np.maximum(mask, 0)]
            axis.imshow(np.where(inside, veil, picture), interpolation="nearest")
        if number < len(titles):
            own[0].set_title(titles[number], fontsize=8, color=INK, loc="left")
        if number == 0:
            for axis, word in zip(own[1:], ("truth", "found")[-len(layers) :], strict=True):
                axis.set_title(word, fontsize=8, color=INK)
    from matplotlib.patches import Patch

    patches = [
        Patch(color=tuple(colour), label=name)
        for colour, name in zip(colours[1:13], names[1:13], strict=False)
    ]
    drawing.legend(handles=patches, loc="lower center", ncols=min(len(patches), 6), fontsize=8,
                   frameon=False)  # fmt: skip
    if title:
        drawing.suptitle(title, fontsize=11, fontweight="bold", color=INK)
    return save(drawing, path)


def write_mask(mask: ArrayLike, classes: int, path: str | os.PathLike[str]) -> Path:
    """Write a mask as a palette PNG: a pixel's value is its class, and its colour can be seen.

    Args:
      mask: (H, W) class numbers from 0.
      classes: how many there are, at most 256.
      path: file to write.

    Raises:
      ValueError: for more than 256 classes.
    """
    from PIL import Image

    if classes > 256:
        raise ValueError(f"a palette PNG has 256 colours, and there are {classes} classes")
    image = Image.fromarray(np.asarray(mask, np.uint8))
    image.putpalette(colours_of(classes).ravel().tolist())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
