"""Convolutions of images (B, H, W, C), the depthwise one by whichever way the platform is good at.

XLA on CPU runs a depthwise convolution through its general, slow path: 3x3 over 96 channels at 56^2
and batch 16 took 392 ms forward and 1530 ms with the gradient, and 24 and 316 ms as a sum of
shifted products. On GPU and TPU the library's own convolution is the fast one.
"""

import itertools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Padding = str | Sequence[tuple[int, int]]
"""`"SAME"` (TensorFlow's, which depends on the size), or (before, after) of height and width."""

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
        dtype=dtype, kernel_init=init, name=name,
    )  # fmt: skip


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
    window = kernel.shape[:2]
    pads = _pads(x.shape[1:3], window, stride, padding)
    if jnp.result_type(x) != jnp.float32:  # half precision adds up in the library's own way
        return _by_lax(x, kernel, stride, pads)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _by_shifts(x, kernel, stride, pads),
        default=lambda x, kernel: _by_lax(x, kernel, stride, pads),
    )


def _by_lax(x: Array, kernel: Array, stride: int, pads: list[tuple[int, int]]) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip


def _by_shifts(x: Array, kernel: Array, stride: int, pads: list[tuple[int, int]]) -> Array:
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height = (x.shape[1] - rows) // stride + 1
    width = (x.shape[2] - columns) // stride + 1
    total = None
    for i, j in itertools.product(range(rows), range(columns)):
        shifted = jax.lax.slice(
            x,
            (0, i, j, 0),
            (x.shape[0], i + (height - 1) * stride + 1, j + (width - 1) * stride + 1, x.shape[3]),
            (1, stride, stride, 1),
        )
        product = shifted * kernel[i, j, 0]
        total = product if total is None else total + product
    assert total is not None
    return total


def _pads(
    size: Sequence[int], window: Sequence[int], stride: int, padding: Padding
) -> list[tuple[int, int]]:
    if not isinstance(padding, str):
        return list(padding)
    return jax.lax.padtype_to_pads(size, window, (stride, stride), padding)
