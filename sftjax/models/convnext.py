"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.alike import Alike
from sftjax.models.architecture import given
from sftjax.models.convolution import Depthwise, around, conv
from sftjax.models.dropout import DropPath
from sftjax.models.image_config import known_activation, size
from sftjax.models.level import at
from sftjax.models.norm import LayerNorm
from sftjax.models.passage import Final, Passage
from sftjax.models.staged import Staged, read_stages, run_stages

EPSILON = 1e-6
"""Of every norm but the last, whatever the config says."""


@dataclass(frozen=True)
class ConvNeXt(Staged):
    """What the computation depends on."""

    patch: int
    activation: str
    epsilon: float
    scale: float
    drop: float
    initializer_range: float


def read(config: Mapping[str, Any]) -> ConvNeXt:
    """Read a config.json; absent fields take transformers' defaults.

    Raises:
      ValueError: if depths and widths differ in number or a value is not supported.

    >>> read({}).widths
    (96, 192, 384, 768)
    """
    widths, depths = read_stages(config, (96, 192, 384, 768), (3, 3, 9, 3))
    return ConvNeXt(
        num_channels=size(config, "num_channels", 3),
        patch=size(config, "patch_size", 4),
        widths=widths,
        depths=depths,
        activation=known_activation(config, "gelu"),
        epsilon=given(config, "layer_norm_eps", 1e-12),
        scale=given(config, "layer_scale_init_value", 1e-6),
        drop=given(config, "drop_path_rate", 0.0),
        initializer_range=given(config, "initializer_range", 0.02),
    )


class Layer(nn.Module):
    """Depthwise 7x7, norm, and a network of two pointwise layers, scaled and added."""

    a: ConvNeXt
    drop: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (B, H, W, C) from the same."""
        a, width = self.a, x.shape[-1]
        normal = nn.initializers.normal(a.initializer_range)
        y = Depthwise(7, 1, around(7), self.dtype, use_bias=True, name="dwconv")(x)
        y = LayerNorm(EPSILON, self.dtype, name="layernorm")(y)
        # A matrix of places by channels: XLA on CPU is slower at more axes (see `attention`).
        y = y.reshape(-1, width)
        y = nn.Dense(4 * width, dtype=self.dtype, kernel_init=normal, name="pwconv1")(y)
        y = ACTIVATIONS[a.activation](y)
        y = nn.Dense(width, dtype=self.dtype, kernel_init=normal, name="pwconv2")(y)
        y = y.reshape(x.shape)
        if a.scale > 0:
            start = nn.initializers.constant(a.scale)
            y = y * self.param("layer_scale_parameter", start, (width,)).astype(y.dtype)
        return x + DropPath(self.drop)(y)


def blocks(a: ConvNeXt, x: Array, passage: Passage, dtype: DTypeLike) -> Array:
    """Run stem and stages, and note their maps."""
    normal = nn.initializers.normal(a.initializer_range)
    valid = ((0, 0), (0, 0))

    def stem(x: Array) -> Array:
        x = conv(
            a.widths[0], a.patch, a.patch, valid, dtype, "patch_embeddings", bias=True, init=normal
        )(x)
        return LayerNorm(EPSILON, dtype, name="layernorm")(x)

    def halve(width: int, x: Array) -> Array:
        x = LayerNorm(EPSILON, dtype, name="0")(x)
        return conv(width, 2, 2, valid, dtype, "1", bias=True, init=normal)(x)

    def layers(number: int, x: Array) -> Array:
        below, call = sum(a.depths[:number]), Alike()
        for depth in range(a.depths[number]):
            drop = a.drop * (below + depth) / max(sum(a.depths) - 1, 1)
            x = call(Layer(a, drop, dtype, name=str(depth)), x)
        return x

    def stage(number: int, x: Array) -> Array:
        if number > 0:
            x = at("downsampling_layer", halve, a.widths[number], x)
        return at("layers", layers, number, x)

    def numbered(number: int, x: Array) -> Array:
        return at(str(number), stage, number, x)

    if not passage.given:
        x = at("embeddings", stem, x)
    return at("encoder/stages", run_stages, a, numbered, x, passage)


def finish(a: ConvNeXt, x: Array, passage: Passage, dtype: DTypeLike) -> Final:
    """Norm the mean of the last map."""
    x = x.astype(jnp.float32)
    features = LayerNorm(a.epsilon, jnp.float32, name="layernorm")(x.mean((1, 2)))
    return Final(x, x, features, features)


def classify(a: ConvNeXt, final: Final, classes: int) -> Array:
    """Return (B, L) float32 logits."""
    normal = nn.initializers.normal(a.initializer_range)
    return nn.Dense(classes, kernel_init=normal, name="classifier")(final.read)
