"""What `load` found, took, left and made up: nothing about a checkpoint is decided in silence."""

import hashlib
import pathlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from sftjax.hub.weights import Weights
from sftjax.models.image_model import IMAGE_FAMILIES


@dataclass(frozen=True)
class LoadReport:
    """The account of one `load`; `save` reads from it what to write back, and under which names."""

    source: str
    """The name or folder that was asked for."""
    folder: pathlib.Path
    """Where the files lie."""
    config: Mapping[str, Any]
    """The config as it was read."""
    weights: Weights = field(repr=False)
    """The opened files."""
    names: Mapping[str, str] = field(repr=False)
    """Path of each loaded leaf -> its tensor in the file."""
    dtypes: Mapping[str, str] = field(repr=False)
    """Path of each loaded leaf -> its dtype in the file."""
    new: tuple[str, ...]
    """Paths of the leaves that have no pretrained value and were initialised."""
    unused: tuple[str, ...]
    """Tensors of other heads, which this model does not have."""
    ignored: tuple[str, ...]
    """Tensors nobody knows, which the caller allowed."""
    aliases: Mapping[str, str]
    """Tensor that repeats a leaf -> that leaf's path."""
    buffers: tuple[str, ...]
    """Tensors that are not weights (`position_ids`)."""
    tokenizer_files: tuple[str, ...]
    """The tokenizer's files in the folder."""
    fitted: tuple[str, ...] = ()
    """Paths of leaves that were made for another number of channels or grid of patches."""
    layout: str = "hub"
    """Whose names the file has: the Hub's, or another collection's."""
    processor: Mapping[str, Any] | None = None
    """How images are prepared, as a preprocessor_config.json has it; None where nobody says."""

    @property
    def format(self) -> str:
        """ "safetensors", "sharded safetensors", "msgpack", "torch", "npz" or "onnx"."""
        return self.weights.format

    @property
    def mapped(self) -> bool:
        """Whether the file can still be read under the tensors' own names: not so for msgpack."""
        return self.weights.format != "msgpack"

    @cached_property
    def sha256(self) -> str:
        """Hash of the weight file; of several, the hash of their `sha256sum` listing.

        Computed when first asked for: it reads the weights through once.
        """
        digests = self.weights.digests()
        if len(digests) == 1:
            return next(iter(digests.values()))
        listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        return hashlib.sha256(listing.encode()).hexdigest()

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor of the file (for safetensors a mapped view, no copy)."""
        return self.weights.tensors[name]

    @property
    def _of_images(self) -> bool:
        return self.config["model_type"] in IMAGE_FAMILIES

    def facts(self) -> dict[str, Any]:
        """Return what is worth keeping beside a run, as plain JSON values."""
        return {
            "source": self.source,
            "format": self.format,
            "files": [path.name for path in self.weights.files],
            "sha256": self.sha256,
            "loaded": len(self.names),
            "new": list(self.new),
            "unused": list(self.unused),
            "ignored": list(self.ignored),
            "aliases": dict(self.aliases),
            "buffers": list(self.buffers),
            "layout": self.layout,
            "fitted": list(self.fitted),
            "dtypes": dict(Counter(self.dtypes.values())),
        }

    def __str__(self) -> str:
        """One paragraph for a person."""
        kinds = ", ".join(f"{n} {dtype}" for dtype, n in Counter(self.dtypes.values()).items())
        parts = [
            f"{self.source}: {self.config['model_type']}, {self.format}; "
            f"{len(self.names)} leaves loaded ({kinds})"
        ]
        for what, names in (
            ("new", self.new),
            ("of other heads, not used", self.unused),
            ("ignored as asked", self.ignored),
            ("tied", tuple(self.aliases)),
            ("kept as buffers", self.buffers),
            ("made for another input", self.fitted),
        ):
            if names:
                parts.append(f"{len(names)} {what} ({some(names)})")
        if self.layout != "hub":
            parts.append(f"named as in {self.layout}, saved as on the Hub")
        missing = "" if self.tokenizer_files or self._of_images else "; no tokenizer in the folder"
        return "; ".join(parts) + missing + "."


def some(names: tuple[str, ...] | list[str], most: int = 6) -> str:
    """Join names, and count those that are too many to print.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
