"""How a picture becomes what a model wants: resize, crop, scale, as its checkpoint's files say."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sftjax.data.decode import Pixels

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""In the order of Pillow's numbers, which the Hub's files hold."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Processor(NamedTuple):
    """Resize, crop in the middle, then `(pixel / 255 - mean) / std`.

    >>> processor = Processor(shortest=4, crop=(4, 4))
    >>> processor.size, processor(np.zeros((8, 16, 3), np.uint8)).shape
    ((4, 4), (4, 4, 3))
    """

    resize: tuple[int, int] | None = None
    """(H, W) that the picture is stretched to."""
    shortest: int | None = None
    """Else, the length that its shorter side gets; the other keeps the proportion."""
    crop: tuple[int, int] | None = None
    """(H, W) cut from the middle; a smaller picture is padded with black."""
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    """Of pixels between 0 and 1; one number a channel."""

    @property
    def channels(self) -> int:
        """1 or 3."""
        return len(self.mean)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every processed picture.

        Raises:
          ValueError: if pictures would keep sizes of their own.
        """
        size = self.crop or self.resize
        if size is None:
            raise ValueError(
                "the processor neither stretches nor crops, so pictures of different sizes do not "
                "fit one batch; give resize=(H, W) or crop=(H, W)"
            )
        return size

    def __call__(self, pixels: Pixels) -> Pixels:
        """Return (H, W, C) of the same dtype, resized and cropped; not yet normalized."""
        height, width = pixels.shape[:2]
        target = self.resize
        if self.shortest is not None:
            short, long = sorted((height, width))
            longer = max(int(self.shortest * long / short), 1)
            target = (self.shortest, longer) if height <= width else (longer, self.shortest)
        pixels = resized(pixels, target, self.interpolation) if target else pixels
        return pixels if self.crop is None else _centre(pixels, *self.crop)

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Return float32 `(pixel / most - mean) / std`; most is 255, or 65535 of uint16."""
        most = np.iinfo(pixels.dtype).max
        width = pixels.shape[-2]
        # A row at a time: numpy is slow along an axis of three channels.
        std, mean = (np.tile(np.asarray(v, np.float32), width) for v in (self.std, self.mean))
        out = pixels.astype(np.float32).reshape(*pixels.shape[:-2], -1)
        out *= np.float32(1) / (most * std)
        out -= mean / std
        return out.reshape(pixels.shape)

    def at(self, size: int | tuple[int, int]) -> "Processor":
        """Return the same for another size; a resize before a crop keeps its share of it.

        >>> Processor(shortest=256, crop=(224, 224)).at(112).shortest
        128
        """
        height, width = (size, size) if isinstance(size, int) else size
        if self.crop is None:
            return self._replace(resize=(height, width), shortest=None)
        grow = max(height / self.crop[0], width / self.crop[1])
        return self._replace(
            crop=(height, width),
            shortest=self.shortest and round(self.shortest * grow),
            resize=self.resize and (round(self.resize[0] * grow), round(self.resize[1] * grow)),
        )


def processor_of(source: str | Path | Mapping[str, Any]) -> Processor:
    """Read a checkpoint's `preprocessor_config.json`, or timm's `pretrained_cfg` in `config.json`.

    Args:
      source: a folder, one of these files, or the content of one.

    Raises:
      FileNotFoundError: if the folder has neither file.
      ValueError: naming a field that this cannot follow.

    >>> processor_of({"size": {"shortest_edge": 256}, "crop_size": 224, "resample": 3}).crop
    (224, 224)
    """
    if isinstance(source, Mapping):
        return _of_config(source, "the config")
    path = Path(source).expanduser()
    if path.is_dir():
        names = ("preprocessor_config.json", "config.json")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"{path} holds no preprocessor_config.json; say how pictures are processed with "
                "Processor(...)"
            )
        path = found
    return _of_config(json.loads(path.read_text(encoding="utf-8")), str(path))


def processor_config(processor: Processor) -> dict[str, Any]:
    """Return what a `preprocessor_config.json` says of a processor; `processor_of` reads it back.

    >>> processor = Processor(shortest=256, crop=(224, 224), interpolation="bicubic")
    >>> processor_of(processor_config(processor)) == processor
    True
    """
    config: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": processor.resize is not None or processor.shortest is not None,
        "do_center_crop": processor.crop is not None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
        "resample": INTERPOLATIONS.index(processor.interpolation),
    }
    if processor.resize is not None:
        config["size"] = {"height": processor.resize[0], "width": processor.resize[1]}
    elif processor.shortest is not None:
        config["size"] = {"shortest_edge": processor.shortest}
    if processor.crop is not None:
        config["crop_size"] = {"height": processor.crop[0], "width": processor.crop[1]}
    return config


def resized(pixels: Pixels, size: tuple[int, int], interpolation: str = "bilinear") -> Pixels:
    """Resize to (H, W) with Pillow's filters, which average when they shrink.

    >>> resized(np.full((4, 4, 1), 300, np.uint16), (2, 2)).ravel().tolist()
    [300, 300, 300, 300]
    """
    from PIL import Image

    if pixels.shape[:2] == tuple(size):
        return pixels
    method = Image.Resampling[interpolation.upper()]
    height, width = size
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return np.asarray(image.resize((width, height), method)).reshape(height, width, -1)
    # 16 bits: each channel as floats, since Pillow has no 16-bit colour.
    channels = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), method))
        for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.clip(np.round(np.stack(channels, -1)), 0, 65535).astype(pixels.dtype)


def _centre(pixels: Pixels, height: int, width: int) -> Pixels:
    out = np.zeros((height, width, pixels.shape[2]), pixels.dtype)
    tall, wide = pixels.shape[:2]
    # Where the picture is larger, its top is cut; where smaller, the frame's top is padded.
    top, left = max((tall - height) // 2, 0), max((wide - width) // 2, 0)
    down = max(math.ceil((height - tall) / 2), 0)
    right = max(math.ceil((width - wide) / 2), 0)
    part = pixels[top : top + height, left : left + width]
    out[down : down + part.shape[0], right : right + part.shape[1]] = part
    return out


def _of_config(config: Mapping[str, Any], where: str) -> Processor:
    if "pretrained_cfg" in config:
        return _of_timm(config["pretrained_cfg"], where)
    known = {"size", "crop_size", "do_resize", "do_normalize", "image_mean"}
    if not known & set(config):
        raise ValueError(
            f"{where} says nothing of how pictures are processed (it has none of "
            f"{', '.join(sorted(known))}); give a Processor(...)"
        )
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    size, crop = _edges(config.get("size"), where), _edges(config.get("crop_size"), where)
    resize, shortest = (size, None) if isinstance(size, tuple) else (None, size)
    if isinstance(crop, int):
        crop = (crop, crop)
    if kind.startswith("ConvNext") and shortest is not None:
        # Its own rule: below 384 the crop is a share of the picture, from there on all of it.
        if shortest < 384:
            crop = (shortest, shortest)
            shortest = int(shortest / config.get("crop_pct", 224 / 256))
        else:
            resize, shortest, crop = (shortest, shortest), None, None
    elif not config.get("do_center_crop", "crop_size" in config):
        crop = None
    if not config.get("do_resize", True):
        resize = shortest = None
    scale = 255 * float(config.get("rescale_factor", 1 / 255))
    offset = 1.0 if config.get("rescale_offset") else 0.0
    if not config.get("do_rescale", True):
        scale = 255.0
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config.get("do_normalize", True):
        mean = std = None
    mean, std = _numbers(mean, 0.0), _numbers(std, 1.0)
    # scale * unit - offset, minus the mean, over std: one mean and one std of the unit pixel.
    return Processor(
        resize=resize,
        shortest=shortest,
        crop=crop,
        interpolation=_interpolation(config.get("resample", 2), where),
        mean=tuple((m + offset) / scale for m in mean),
        std=tuple(s / scale for s in std),
    )


def _of_timm(config: Mapping[str, Any], where: str) -> Processor:
    _, height, width = config.get("input_size", (3, 224, 224))
    share = float(config.get("crop_pct") or 1.0)
    if config.get("crop_mode", "center") not in ("center", "squash"):
        raise ValueError(
            f"{where}: crop_mode {config['crop_mode']!r} is not known here (center and squash "
            "are); give a Processor(...)"
        )
    squash = config.get("crop_mode") == "squash"
    return Processor(
        resize=(int(height / share), int(width / share)) if squash else None,
        shortest=None if squash else math.floor(min(height, width) / share),
        crop=(height, width),
        interpolation=_interpolation(config.get("interpolation", "bilinear"), where),
        mean=_numbers(config.get("mean"), 0.0),
        std=_numbers(config.get("std"), 1.0),
    )


def _edges(size: Any, where: str) -> tuple[int, int] | int | None:
    """Return (H, W), the shorter side, or None; old files write one number for a square."""
    if size is None:
        return None
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, Mapping) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    raise ValueError(
        f"{where}: the size {size!r} is not understood (a number, height and width, or "
        "shortest_edge are); give a Processor(...)"
    )


def _interpolation(value: Any, where: str) -> str:
    name = INTERPOLATIONS[value] if isinstance(value, int) and 0 <= value < 6 else value
    if name not in INTERPOLATIONS:
        raise ValueError(
            f"{where}: interpolation {value!r} is none of {', '.join(INTERPOLATIONS)}; give a "
            "Processor(...)"
        )
    return name


def _numbers(values: Any, default: float) -> tuple[float, ...]:
    return (default,) * 3 if values is None else tuple(float(value) for value in values)
