"""A leaf kept in few bits: codes and the scales of their blocks, in place of an array.

It is a node of the tree whose own leaves (`codes`, `scales`, ...) move between devices, shards and
checkpoints like any others; `shape` and `dtype` are those of the array that it stands for.
"""

import dataclasses
from typing import Any, Literal

import jax
from jax import Array

How = Literal["nf4", "int8"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized array; see `adapters.quantize` and `adapters.dequantize`."""

    codes: Array | Any
    """uint8 (..., width / 2), two 4-bit codes a byte, or int8 (..., width); the last axis is padded
    to whole blocks. None is a hole, as `partition` leaves."""
    scales: Array | Any
    """(..., blocks) float32, or int8 where they are quantized in turn; None beside a hole."""
    outer: Array | None
    """float32 scales of the scales, of 256 each; None if they are not quantized."""
    mean: Array | None
    """() float32, the mean of the scales, taken off before they were quantized."""
    how: How = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    """Of the array that it stands for."""
    block: int = dataclasses.field(metadata={"static": True})
    """Entries of the last axis that share a scale."""

    @property
    def ndim(self) -> int:
        """Number of axes of the array that it stands for."""
        return len(self.shape)


def is_quantized(leaf: object) -> bool:
    """`is_leaf` for functions that look at a quantized array (but not at its hole) as one leaf."""
    return isinstance(leaf, Quantized) and leaf.codes is not None
