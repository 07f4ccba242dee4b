"""A light decoder of dense maps, for any trunk: a class for every pixel."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.convolution import conv

WIDTH = 64
"""Channels of the decoder."""


class Decoder(nn.Module):
    """Bring the maps of several stages to one width and size, add them up, and classify.

    The top-down half of a feature pyramid (Lin et al. 2016, arXiv:1612.03144) without its outputs
    at every level: `sum_s resize(conv1x1(map_s))`, a 3x3 convolution, a 1x1 classifier, and a
    bilinear resize to the size of the images.
    """

    classes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, maps: list[Array], size: tuple[int, int]) -> Array:
        """Return (B, H, W, L) float32 logits from maps (B, h, w, C), the largest first."""
        largest = max((m.shape[1:3] for m in maps), key=lambda shape: shape[0] * shape[1])
        laterals = [
            _resize(self._conv(WIDTH, 1, f"lateral_{level}_")(x), largest)
            for level, x in enumerate(maps)
        ]
        total = functools.reduce(jnp.add, laterals)
        x = self._conv(WIDTH, 3, "smooth")(nn.relu(total))
        x = self._conv(self.classes, 1, "classifier", jnp.float32)(nn.relu(x))
        return _resize(x.astype(jnp.float32), size)

    def _conv(
        self, features: int, window: int, name: str, dtype: DTypeLike | None = None
    ) -> nn.Conv:
        start = nn.initializers.lecun_normal()
        dtype = self.dtype if dtype is None else dtype
        return conv(features, window, 1, "SAME", dtype, name, bias=True, init=start)


def _resize(x: Array, size: tuple[int, ...]) -> Array:
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "bilinear")
