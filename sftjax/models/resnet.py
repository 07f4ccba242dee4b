"""ResNet 18 to 152 (He et al. 2015, arXiv:1512.03385), with the stride where v1.5 has it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import given
from sftjax.models.batch_norm import BatchNorm
from sftjax.models.convolution import around, conv
from sftjax.models.image_config import choice, known_activation, size
from sftjax.models.level import at
from sftjax.models.passage import Final, Passage
from sftjax.models.staged import Staged, read_stages, run_stages

Activation = Callable[[Array], Array]

EPSILON, MOMENTUM = 1e-5, 0.1
"""Torch's defaults, which no config mentions."""


@dataclass(frozen=True)
class ResNet(Staged):
    """What the computation depends on."""

    stem: int
    bottleneck: bool
    activation: str
    early: bool
    """Whether the first stage halves the map."""
    stride_first: bool
    """Whether a bottleneck has its stride in the 1x1 convolution (v1)."""


def read(config: Mapping[str, Any]) -> ResNet:
    """Read a config.json; absent fields take transformers' defaults.

    Raises:
      ValueError: if depths and widths differ in number or a value is not supported.

    >>> read({}).depths
    (3, 4, 6, 3)
    """
    widths, depths = read_stages(config, (256, 512, 1024, 2048), (3, 4, 6, 3))
    kind = choice(config, "layer_type", ("bottleneck", "basic"))
    if kind == "bottleneck" and any(width % 4 for width in widths):
        raise ValueError(f"hidden_sizes {widths} of a bottleneck must be multiples of 4")
    return ResNet(
        num_channels=size(config, "num_channels", 3),
        stem=size(config, "embedding_size", 64),
        widths=widths,
        depths=depths,
        bottleneck=kind == "bottleneck",
        activation=known_activation(config, "relu"),
        early=bool(given(config, "downsample_in_first_stage", False)),
        stride_first=bool(given(config, "downsample_in_bottleneck", False)),
    )


def blocks(a: ResNet, x: Array, passage: Passage, dtype: DTypeLike) -> Array:
    """Run stem and stages, and note their maps."""
    act = ACTIVATIONS[a.activation]

    def normed(width: int, window: int, stride: int, act: Activation | None, x: Array) -> Array:
        x = conv(width, window, stride, around(window), dtype, "convolution")(x)
        x = BatchNorm(EPSILON, MOMENTUM, dtype, name="normalization")(x)
        return x if act is None else act(x)

    # As in transformers, the config's activation is that of stem and sums, and ReLU is within.
    def inner(width: int, stride: int, x: Array) -> Array:
        if a.bottleneck:
            first, second = (stride, 1) if a.stride_first else (1, stride)
            x = at("0", normed, width // 4, 1, first, nn.relu, x)
            x = at("1", normed, width // 4, 3, second, nn.relu, x)
            return at("2", normed, width, 1, 1, None, x)
        x = at("0", normed, width, 3, stride, nn.relu, x)
        return at("1", normed, width, 3, 1, None, x)

    def layer(width: int, stride: int, x: Array) -> Array:
        y = at("layer", inner, width, stride, x)
        if x.shape[-1] != width or stride != 1:
            x = at("shortcut", normed, width, 1, stride, None, x)
        return act(x + y)

    def stage(number: int, x: Array) -> Array:
        halves = number > 0 or a.early
        for depth in range(a.depths[number]):
            stride = 2 if halves and depth == 0 else 1
            x = at(str(depth), layer, a.widths[number], stride, x)
        return x

    def numbered(number: int, x: Array) -> Array:
        return at(f"{number}/layers", stage, number, x)

    if not passage.given:
        x = at("embedder/embedder", normed, a.stem, 7, 2, act, x)
        edges: Any = ((1, 1), (1, 1))  # flax says str, and takes these
        x = nn.max_pool(x, (3, 3), (2, 2), edges)
    return at("encoder/stages", run_stages, a, numbered, x, passage)


def finish(a: ResNet, x: Array, passage: Passage, dtype: DTypeLike) -> Final:
    """Take the mean of the last map."""
    x = x.astype(jnp.float32)
    features = x.mean((1, 2))
    return Final(x, x, features, features)


def classify(a: ResNet, final: Final, classes: int) -> Array:
    """Return (B, L) float32 logits."""
    return at("classifier", lambda x: linear(classes, "1")(x), final.read)


def linear(classes: int, name: str) -> nn.Dense:
    """Return a Dense layer that starts as torch's Linear does."""
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nn.Dense(classes, kernel_init=uniform, name=name)
