"""VGG 11 to 19 (Simonyan and Zisserman 2014, arXiv:1409.1556), with and without batch norm.

Transformers has no such model; the config's words are those of its kin, and the layout is
torchvision's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.architecture import given
from sftjax.models.batch_norm import BatchNorm
from sftjax.models.convolution import around, conv
from sftjax.models.dropout import Dropout
from sftjax.models.image_config import size, sizes
from sftjax.models.level import at
from sftjax.models.passage import Final, Passage


@dataclass(frozen=True)
class VGG:
    """What the computation depends on."""

    num_channels: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    batch_norm: bool
    dense: tuple[int, ...]
    """Widths of the dense layers below the classifier; none is the mean of the map."""
    pooled: int
    """Side of the map that the dense layers read."""
    dropout: float

    @property
    def num_blocks(self) -> int:
        """How many blocks can be cut apart: the convolutions."""
        return sum(self.depths)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the maps, each after its pooling."""
        return tuple(f"stage{number}" for number in range(1, len(self.depths) + 1))


def read(config: Mapping[str, Any]) -> VGG:
    """Read a config; absent fields are those of VGG-16.

    Fields: `hidden_sizes` and `depths` of the stages, `batch_norm`, `dense_sizes` (an empty list
    puts the classifier on the mean of the last map), `pooled_size`, `dropout_rate`.

    Raises:
      ValueError: if depths and widths differ in number or a value is not supported.

    >>> read({}).num_blocks
    13
    """
    widths = sizes("hidden_sizes", given(config, "hidden_sizes", (64, 128, 256, 512, 512)))
    depths = sizes("depths", given(config, "depths", (2, 2, 3, 3, 3)))
    if len(widths) != len(depths):
        raise ValueError(f"the config has {len(widths)} hidden_sizes and {len(depths)} depths")
    dense = tuple(given(config, "dense_sizes", (4096, 4096)))
    return VGG(
        num_channels=size(config, "num_channels", 3),
        widths=widths,
        depths=depths,
        batch_norm=bool(given(config, "batch_norm", False)),
        dense=sizes("dense_sizes", dense) if dense else (),
        pooled=size(config, "pooled_size", 7),
        dropout=given(config, "dropout_rate", 0.5),
    )


def blocks(a: VGG, x: Array, passage: Passage, dtype: DTypeLike) -> Array:
    """Run the convolutions, and note the map after each pooling."""
    ends = [sum(a.depths[: stage + 1]) for stage in range(len(a.depths))]
    widths = [w for w, depth in zip(a.widths, a.depths, strict=True) for _ in range(depth)]

    def block(width: int, x: Array) -> Array:
        x = conv(width, 3, 1, around(3), dtype, "conv", bias=True)(x)
        if a.batch_norm:
            x = BatchNorm(1e-5, 0.1, dtype, name="norm")(x)
        return nn.relu(x)

    def features(x: Array) -> Array:
        for number in passage.blocks(a.num_blocks):
            x = at(str(number), block, widths[number], x)
            if number + 1 in ends:
                x = nn.max_pool(x, (2, 2), (2, 2))
                passage.maps[f"stage{ends.index(number + 1) + 1}"] = x
        return x

    return at("features", features, x)


def finish(a: VGG, x: Array, passage: Passage, dtype: DTypeLike) -> Final:
    """Pool to a fixed size, and run the dense layers."""
    x = x.astype(jnp.float32)
    if not a.dense:
        features = x.mean((1, 2))
        return Final(x, x, features, features)
    y = adaptive_mean(x, a.pooled).astype(dtype)
    # Torch flattens channels before places, and its weights are in that order.
    y = y.transpose(0, 3, 1, 2).reshape(len(y), -1)

    def dense(y: Array) -> Array:
        for number, width in enumerate(a.dense, 1):
            y = nn.relu(nn.Dense(width, dtype=dtype, name=f"fc{number}_")(y))
            y = Dropout(a.dropout)(y)
        return y

    features = at("dense", dense, y).astype(jnp.float32)
    return Final(x, x, features, features)


def adaptive_mean(x: Array, side: int) -> Array:
    """Average (B, H, W, C) to (B, side, side, C) over torch's adaptive windows.

    Window i of n reaches from floor(i H / n) to ceil((i + 1) H / n).

    >>> adaptive_mean(jnp.arange(4.0).reshape(1, 4, 1, 1), 2)[0, :, 0, 0].tolist()
    [0.5, 2.5]
    """

    def weights(length: int) -> Array:
        place, window = jnp.arange(length), jnp.arange(side)[:, None]
        begin, end = window * length // side, -(-(window + 1) * length // side)
        inside = ((place >= begin) & (place < end)).astype(jnp.float32)
        return inside / inside.sum(1, keepdims=True)

    if x.shape[1:3] == (side, side):
        return x
    rows, columns = weights(x.shape[1]), weights(x.shape[2])
    return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)


def classify(a: VGG, final: Final, classes: int) -> Array:
    """Return (B, L) float32 logits."""
    return nn.Dense(classes, kernel_init=nn.initializers.normal(0.01), name="classifier")(
        final.read
    )
