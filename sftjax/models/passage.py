"""One pass through a trunk: where it starts and stops, and the maps it leaves at named stages."""

from dataclasses import dataclass, field
from typing import NamedTuple

from jax import Array


@dataclass
class Passage:
    """What a trunk is asked to run; it notes its stages here while it is traced."""

    start: int = 0
    """The first block that is run."""
    stop: int | None = None
    """One past the last; `None` is all of them."""
    given: bool = False
    """Whether what comes in is the output of the blocks below `start`, and not images."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, where tokens must be laid out as a map."""
    maps: dict[str, Array] = field(default_factory=dict)
    """Stage -> (B, h, w, C)."""

    def blocks(self, count: int) -> range:
        """Return the numbers of the blocks to run, of `count`."""
        return range(self.start, count if self.stop is None else self.stop)


class Final(NamedTuple):
    """What a trunk gives."""

    hidden: Array
    """(B, h, w, C), or tokens (B, T, D)."""
    map: Array
    """(B, h, w, C)."""
    features: Array
    """(B, D)."""
    read: Array
    """(B, D') what the classifier reads, before dropout."""
