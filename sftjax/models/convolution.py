"""Convolutions of images (B, H, W, C), each by whichever way the platform is good at.

XLA on CPU runs a depthwise convolution through its general, slow path: 3x3 over 96 channels at 56^2
and batch 16 took 392 ms forward and 1530 ms with the gradient, and 24 and 316 ms as a sum of
shifted products. It also has no short way for windows of one pixel (the gradient of a kernel of 16
to 96 channels at 48^2 took 35 ms of CPU time, and 2.3 as a product of matrices) nor for maps of few
pixels and many channels (512 to 512 at 2 x 2 and batch 64: 1,420 ms forward, and 16 as a product of
patches). On GPU and TPU the library's own convolution is the fast one.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.core.by_rows import by_rows

Padding = str | Sequence[tuple[int, int]]
"""`"SAME"` (TensorFlow's, which depends on the size), or (before, after) of height and width."""

Pads = tuple[tuple[int, int], ...]
"""Of height and width, in pixels."""

fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al. 2015, over what leaves: the start of convolutions without a pretrained value."""


def around(window: int) -> Padding:
    """Return the padding of torch's `padding=window // 2`.

    >>> around(3)
    ((1, 1), (1, 1))
    """
    return ((window // 2, window // 2),) * 2


def conv(
    features: int,
    window: int,
    stride: int,
    padding: Padding,
    dtype: DTypeLike,
    name: str,
    *,
    bias: bool = False,
    init: Callable[..., Array] = fan_out,
) -> nn.Conv:
    """Return a square convolution as checkpoints of images have them."""
    return nn.Conv(
        features, (window, window), strides=(stride, stride), padding=padding, use_bias=bias,
        dtype=dtype, kernel_init=init, name=name, conv_general_dilated=convolve,
    )  # fmt: skip


_LAYOUT = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
SMALL = 8
"""A map is small where its pixels are at most the channels that come in, divided by this."""


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Padding, **rest: Any
) -> Array:
    """Convolve as `jax.lax.conv_general_dilated` does, which it is but for two shapes on CPU.

    Args:
      x: (B, H, W, C), batch and channels as flax lays them out.
      kernel: (K, L, C, F).
      strides: of both axes.
      padding: with zeros.
      **rest: dilations, groups, precision and layout; the library's own way is taken wherever they
        are not those of a plain convolution.

    Returns:
      (B, h, w, F), whichever way it was computed.

    >>> x, kernel = jnp.arange(8.0).reshape(1, 2, 2, 2), jnp.ones((1, 1, 2, 3))
    >>> convolve(x, kernel, (1, 1), "SAME")[0, 1, 1].tolist()
    [13.0, 13.0, 13.0]
    """

    rest = {"dimension_numbers": _LAYOUT, **rest}
    if _is_plain(x, kernel, rest):
        pads = _pads(x.shape[1:3], kernel.shape[:2], strides, padding)
        if _is_of_one_pixel(kernel, pads) or _makes_few_pixels(x, kernel, strides, pads):
            return _short_or_lax(x, kernel, tuple(strides), pads)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **rest)


def _is_plain(x: Array, kernel: Array, rest: dict[str, Any]) -> bool:
    """Say whether a product of matrices could stand for it."""
    if any(set(rest.get(name) or (1,)) != {1} for name in ("lhs_dilation", "rhs_dilation")):
        return False
    if rest["dimension_numbers"] != _LAYOUT or rest.get("feature_group_count", 1) != 1:
        return False
    # half precision adds up in the library's own way
    return rest.get("precision") is None and jnp.result_type(x, kernel) == jnp.float32


def _is_of_one_pixel(kernel: Array, pads: Pads) -> bool:
    return kernel.shape[:2] == (1, 1) and all(pad == (0, 0) for pad in pads)


def _makes_few_pixels(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> bool:
    height, width = (
        (size + sum(pad) - window) // stride + 1
        for size, pad, window, stride in zip(
            x.shape[1:3], pads, kernel.shape[:2], strides, strict=True
        )
    )
    return 0 < SMALL * height * width <= x.shape[-1]


@partial(jax.jit, static_argnums=(2, 3))  # blocks that look alike are traced once
def _short_or_lax(x: Array, kernel: Array, strides: tuple[int, ...], pads: Pads) -> Array:
    down, right = strides

    def by_pixels(x: Array, kernel: Array) -> Array:
        return by_rows(x[:, ::down, ::right], kernel[0, 0])

    def by_patches(x: Array, kernel: Array) -> Array:
        patches = jnp.concatenate(_shifts(x, kernel.shape[:2], strides, pads), -1)
        return by_rows(patches, kernel.reshape(patches.shape[-1], -1))

    def by_lax(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_LAYOUT)

    way = by_pixels if _is_of_one_pixel(kernel, pads) else by_patches
    return jax.lax.platform_dependent(x, kernel, cpu=way, default=by_lax)


class Depthwise(nn.Module):
    """A convolution of each channel by itself."""

    window: int
    stride: int
    padding: Padding
    dtype: DTypeLike
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (B, h, w, C) from (B, H, W, C)."""
        shape = (self.window, self.window, 1, x.shape[-1])
        kernel = self.param("kernel", fan_out, shape, jnp.float32)
        y = depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            y += bias.astype(self.dtype)
        return y


def depthwise(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """Convolve each channel with its own window: `y_c = sum_ij k_ijc x_c(s y + i, s x + j)`.

    Args:
      x: (B, H, W, C).
      kernel: (K, L, 1, C).
      stride: of both axes.
      padding: with zeros.

    Returns:
      (B, h, w, C), whichever way it was computed.

    >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    >>> depthwise(x, jnp.ones((3, 3, 1, 1)), 2, "SAME")[0, ..., 0].tolist()
    [[8.0, 12.0], [20.0, 24.0]]
    """
    pads = _pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)
    if jnp.result_type(x) != jnp.float32:  # half precision adds up in the library's own way
        return _by_lax(x, kernel, stride, pads)
    return _shifts_or_lax(x, kernel, stride, pads)


@partial(jax.jit, static_argnums=(2, 3))
def _shifts_or_lax(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _by_shifts(x, kernel, stride, pads),
        default=lambda x, kernel: _by_lax(x, kernel, stride, pads),
    )


def _by_lax(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip


def _by_shifts(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    window = kernel.shape[:2]
    total = None
    for place, shifted in enumerate(_shifts(x, window, (stride, stride), pads)):
        product = shifted * kernel[place // window[1], place % window[1], 0]
        total = product if total is None else total + product
    assert total is not None
    return total


def _shifts(
    x: Array, window: Sequence[int], strides: Sequence[int], pads: Sequence[tuple[int, int]]
) -> list[Array]:
    """Return for each place of the window, in its order, what lies there: (B, h, w, C)."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    (rows, columns), (down, right) = window, strides
    last = (x.shape[1] - rows) // down * down, (x.shape[2] - columns) // right * right
    return [
        jax.lax.slice(
            x, (0, i, j, 0), (x.shape[0], i + last[0] + 1, j + last[1] + 1, x.shape[3]),
            (1, down, right, 1),
        )
        for i, j in itertools.product(range(rows), range(columns))
    ]  # fmt: skip


def _pads(
    size: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Padding
) -> Pads:
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(size, window, strides, padding)
    return tuple((int(before), int(after)) for before, after in padding)
