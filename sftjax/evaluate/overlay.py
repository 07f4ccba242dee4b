"""Heat maps over pictures, as one PNG."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from sftjax.evaluate.figure import INK, figure, save


def overlays(
    pictures: ArrayLike,
    maps: ArrayLike,
    path: str | os.PathLike[str],
    *,
    titles: Sequence[str] = (),
    title: str = "",
    scale: tuple[float, float] | None = None,
    label: str = "",
    opacity: float = 0.75,
) -> Path:
    """Draw each picture beside itself under its heat map, in one figure.

    Args:
      pictures: (N, H, W, C) uint8, uint16, or floats from 0 to 1.
      maps: (N, h, w), any size; enlarged smoothly.
      path: file to write.
      titles: one a picture.
      title: above the figure.
      scale: `(low, high)`, one colour scale for all maps (anomaly scores); None gives every map its
        own from its least to its greatest (saliency, which has no unit).
      label: beside the colour bar, which is drawn with a scale.
      opacity: of the map where it is highest; where it is lowest the picture shows through.

    Raises:
      ValueError: if pictures and maps differ in number, or there are none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     overlays(np.zeros((1, 8, 8, 3)), np.ones((1, 2, 2)), folder + "/a.png").name
    'a.png'
    """
    shown, heat = np.asarray(pictures), np.asarray(maps, np.float64)
    if len(shown) != len(heat) or not len(shown):
        raise ValueError(
            f"{len(shown)} pictures and {len(heat)} maps; give one map for each picture, and one "
            "picture or more"
        )
    if shown.dtype.kind == "u":
        shown = shown / np.iinfo(shown.dtype).max
    shown = np.clip(shown, 0, 1)
    pairs = min(len(shown), 3)
    rows = -(-len(shown) // pairs)
    drawing = figure(2.6 * pairs + 0.6, 1.6 * rows + (0.5 if title else 0.1))
    axes = drawing.subplots(rows, 2 * pairs, squeeze=False)
    image = None
    for number in range(rows * pairs):
        row, column = divmod(number, pairs)
        left, right = axes[row, 2 * column], axes[row, 2 * column + 1]
        for axis in (left, right):
            axis.axis("off")
        if number >= len(shown):
            continue
        picture = shown[number][..., 0] if shown.shape[-1] == 1 else shown[number]
        box = (0, picture.shape[1], picture.shape[0], 0)
        for axis in (left, right):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=box)
        low, high = scale or (float(heat[number].min()), float(heat[number].max()))
        high = max(high, low + 1e-12)
        # What is low is transparent: a dark veil would hide the picture where nothing is found.
        veil = opacity * np.sqrt(np.clip((heat[number] - low) / (high - low), 0, 1))
        image = right.imshow(
            heat[number], cmap="inferno", vmin=low, vmax=high, alpha=veil, extent=box,
            interpolation="bilinear",
        )  # fmt: skip
        if number < len(titles):
            left.set_title(titles[number], fontsize=8, color=INK, loc="left")
    if scale is not None and image is not None:
        bar = drawing.colorbar(image, ax=axes, shrink=0.8, label=label)
        bar.ax.tick_params(labelsize=8)
    if title:
        drawing.suptitle(title, fontsize=11, fontweight="bold", color=INK)
    return save(drawing, path)
