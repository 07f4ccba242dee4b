"""EfficientNet (Tan and Le 2019, arXiv:1905.11946), B0 to B7, and its lite variants."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import given
from sftjax.models.batch_norm import BatchNorm
from sftjax.models.convolution import Depthwise, Padding, conv
from sftjax.models.dropout import DropPath
from sftjax.models.image_config import choice, known_activation, sizes
from sftjax.models.level import at
from sftjax.models.passage import Final, Passage

DEFAULTS: Mapping[str, Any] = {
    "kernel_sizes": (3, 3, 5, 3, 5, 5, 3),
    "in_channels": (32, 16, 24, 40, 80, 112, 192),
    "out_channels": (16, 24, 40, 80, 112, 192, 320),
    "strides": (1, 2, 2, 2, 1, 2, 1),
    "num_block_repeats": (1, 2, 2, 3, 3, 4, 1),
    "expand_ratios": (1, 6, 6, 6, 6, 6, 6),
}
"""The stages of B0, which are transformers' defaults too."""


@dataclass(frozen=True)
class Block:
    """One inverted bottleneck."""

    inside: int
    outside: int
    window: int
    stride: int
    expand: int
    padding: Padding
    residual: bool
    squeezed: int
    """Width of the squeeze; 0 for none."""
    drop: float


@dataclass(frozen=True)
class EfficientNet:
    """What the computation depends on."""

    num_channels: int
    stem: int
    stem_padding: Padding
    blocks: tuple[Block, ...]
    ends: tuple[int, ...]
    """How many blocks lie in each stage and below it."""
    top: int
    activation: str
    epsilon: float
    momentum: float
    dropout: float
    pooling: str

    @property
    def num_blocks(self) -> int:
        """How many blocks can be cut apart."""
        return len(self.blocks)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the maps."""
        return ("stem", *(f"stage{number}" for number in range(1, len(self.ends) + 1)))


def rounded(width: float, divisor: int) -> int:
    """Return a width scaled to a multiple of `divisor`, at most a tenth smaller.

    >>> rounded(32 * 1.4, 8), rounded(10, 8)
    (48, 16)
    """
    new = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return new + divisor if new < 0.9 * width else new


def read(config: Mapping[str, Any]) -> EfficientNet:
    """Read a config.json; beside transformers' fields these are known:

    - `padding`: `"same"` pads as TensorFlow does, by the size of what comes in; absent is
      transformers' fixed padding with its `depthwise_padding`.
    - `fixed_stem_and_head`: stem, top and the repeats of the first and last stage are not scaled
      (the lite variants).
    - `squeeze_expansion_ratio` 0: no squeeze and excitation (the lite variants).

    Raises:
      ValueError: if lists disagree in length or a value is not supported.

    >>> a = read({"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280})
    >>> a.num_blocks, a.stem, a.top
    (16, 32, 1280)
    """
    lists = {name: tuple(given(config, name, default)) for name, default in DEFAULTS.items()}
    if len({len(values) for values in lists.values()}) != 1:
        lengths = {name: len(values) for name, values in lists.items()}
        raise ValueError(f"the config's lists of stages differ in length: {lengths}")
    for name, values in lists.items():
        sizes(name, values)
    width, depth = given(config, "width_coefficient", 2.0), given(config, "depth_coefficient", 3.1)
    divisor = given(config, "depth_divisor", 8)
    fixed = bool(given(config, "fixed_stem_and_head", False))
    same = choice(config, "padding", ("fixed", "same")) == "same"
    odd = tuple(given(config, "depthwise_padding", ()))
    squeeze = given(config, "squeeze_expansion_ratio", 0.25)
    last = len(lists["strides"]) - 1
    repeats = [
        count if fixed and stage in (0, last) else math.ceil(depth * count)
        for stage, count in enumerate(lists["num_block_repeats"])
    ]
    stem = 32 if fixed else rounded(32 * width, divisor)
    top = 1280 if fixed else rounded(1280 * width, divisor)
    said = given(config, "hidden_dim", 2560)
    if said != top:
        raise ValueError(
            f"the config's hidden_dim is {said}, and width_coefficient {width} makes the top "
            f"{top} wide; take the config.json that belongs to the weights"
        )
    blocks: list[Block] = []
    ends = []
    for stage, count in enumerate(repeats):
        outside = rounded(lists["out_channels"][stage] * width, divisor)
        for repeat in range(count):
            first = rounded(lists["in_channels"][stage] * width, divisor)
            inside = outside if repeat else stem if stage == 0 else first
            window = lists["kernel_sizes"][stage]
            stride = 1 if repeat else lists["strides"][stage]
            half, cut = window // 2, int(len(blocks) not in odd)
            pads = ((half - cut, half),) * 2 if stride == 2 else ((half, half),) * 2
            blocks.append(
                Block(
                    inside=inside,
                    outside=outside,
                    window=window,
                    stride=stride,
                    expand=lists["expand_ratios"][stage],
                    padding="SAME" if same else pads,
                    residual=repeat > 0,
                    squeezed=max(1, int(inside * squeeze)) if squeeze else 0,
                    drop=given(config, "drop_connect_rate", 0.2) * len(blocks) / sum(repeats),
                )
            )
        ends.append(len(blocks))
    return EfficientNet(
        num_channels=given(config, "num_channels", 3),
        stem=stem,
        stem_padding="SAME" if same else ((0, 1), (0, 1)),
        blocks=tuple(blocks),
        ends=tuple(ends),
        top=top,
        activation=known_activation(config, "swish"),
        epsilon=given(config, "batch_norm_eps", 1e-3),
        # The config has TensorFlow's momentum, the share that stays. (Transformers hands it to
        # torch, where it is the share that goes: its running statistics follow the last batch.)
        momentum=1.0 - given(config, "batch_norm_momentum", 0.99),
        dropout=given(config, "dropout_rate", 0.5),
        pooling=choice(config, "pooling_type", ("mean", "max")),
    )


def blocks(a: EfficientNet, x: Array, passage: Passage, dtype: DTypeLike) -> Array:
    """Run stem and blocks, and note the stages."""
    act = ACTIVATIONS[a.activation]

    def norm(name: str) -> BatchNorm:
        return BatchNorm(a.epsilon, a.momentum, dtype, name=name)

    def stem(x: Array) -> Array:
        x = conv(a.stem, 3, 2, a.stem_padding, dtype, "convolution")(x)
        return act(norm("batchnorm")(x))

    def expansion(b: Block, x: Array) -> Array:
        x = conv(b.inside * b.expand, 1, 1, "SAME", dtype, "expand_conv")(x)
        return act(norm("expand_bn")(x))

    def depthwise(b: Block, x: Array) -> Array:
        x = Depthwise(b.window, b.stride, b.padding, dtype, name="depthwise_conv")(x)
        return act(norm("depthwise_norm")(x))

    def squeeze(b: Block, x: Array) -> Array:
        y = x.mean((1, 2), keepdims=True)
        y = act(conv(b.squeezed, 1, 1, "SAME", dtype, "reduce", bias=True)(y))
        y = conv(b.inside * b.expand, 1, 1, "SAME", dtype, "expand", bias=True)(y)
        return x * jax.nn.sigmoid(y)

    def projection(b: Block, x: Array) -> Array:
        return norm("project_bn")(conv(b.outside, 1, 1, "SAME", dtype, "project_conv")(x))

    def block(b: Block, x: Array) -> Array:
        y = at("expansion", expansion, b, x) if b.expand != 1 else x
        y = at("depthwise_conv", depthwise, b, y)
        y = at("squeeze_excite", squeeze, b, y) if b.squeezed else y
        y = at("projection", projection, b, y)
        return x + DropPath(b.drop)(y) if b.residual else y

    def encoder(x: Array) -> Array:
        if passage.start == 0:
            passage.maps["stem"] = x
        for number in passage.blocks(a.num_blocks):
            x = at(str(number), block, a.blocks[number], x)
            if number + 1 in a.ends:
                passage.maps[f"stage{a.ends.index(number + 1) + 1}"] = x
        return x

    if not passage.given:
        x = at("embeddings", stem, x)

    def whole(x: Array) -> Array:
        x = at("blocks", encoder, x)
        if passage.stop is not None:
            return x
        return act(norm("top_bn")(conv(a.top, 1, 1, "SAME", dtype, "top_conv")(x)))

    return at("encoder", whole, x)


def finish(a: EfficientNet, x: Array, passage: Passage, dtype: DTypeLike) -> Final:
    """Pool what the top gives."""
    x = x.astype(jax.numpy.float32)
    features = x.mean((1, 2)) if a.pooling == "mean" else x.max((1, 2))
    return Final(x, x, features, features)


def classify(a: EfficientNet, final: Final, classes: int) -> Array:
    """Return (B, L) float32 logits."""
    return nn.Dense(classes, kernel_init=nn.initializers.normal(0.02), name="classifier")(
        final.read
    )
