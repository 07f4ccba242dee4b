"""A network of stages, each of its own width and number of layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jax import Array

from sftjax.models.architecture import given
from sftjax.models.image_config import sizes
from sftjax.models.passage import Passage


@dataclass(frozen=True)
class Staged:
    """Width and number of layers of each stage, and the channels of a picture."""

    num_channels: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]

    @property
    def num_blocks(self) -> int:
        """How many blocks can be cut apart: the stages."""
        return len(self.depths)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the maps."""
        return ("stem", *(f"stage{number}" for number in range(1, len(self.depths) + 1)))


def read_stages(
    config: Mapping[str, Any], widths: tuple[int, ...], depths: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Read the widths and depths of a config.json; absent fields are as given.

    Raises:
      ValueError: if they differ in number.

    >>> read_stages({"depths": [1, 2]}, (8, 16), (3, 3))
    ((8, 16), (1, 2))
    """
    widths = sizes("hidden_sizes", given(config, "hidden_sizes", widths))
    depths = sizes("depths", given(config, "depths", depths))
    if len(widths) != len(depths):
        raise ValueError(f"the config has {len(widths)} hidden_sizes and {len(depths)} depths")
    return widths, depths


def run_stages(
    a: Staged, stage: Callable[[int, Array], Array], x: Array, passage: Passage
) -> Array:
    """Run the stages of a passage, and note the maps of stem and stages."""
    if passage.start == 0:
        passage.maps["stem"] = x
    for number in passage.blocks(a.num_blocks):
        x = stage(number, x)
        passage.maps[f"stage{number + 1}"] = x
    return x
