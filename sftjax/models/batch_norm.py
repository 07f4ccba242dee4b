r"""Batch norm whose running statistics are leaves of the params, `mean` and `var`.

$y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$. With the running statistics $\mu,
\sigma^2$ it is an affine map and the same for every batch: that is how a frozen trunk uses it, in
training as in evaluation. Where the statistics are handed in beside the params (see `statistics`),
the batch's own are used and the running ones follow,
$s \leftarrow (1 - m) s + m \hat s$ with the variance's unbiased estimate, as torch does.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

MOVING = "moving"
"""The collection in which statistics that move are handed in."""


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

    epsilon: float
    momentum: float
    """What share of the batch's statistics enters the running ones; torch's convention."""
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (..., C) from (..., C)."""
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, width, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, width, jnp.float32)
        if self.has_variable(MOVING, "mean"):
            mean, var = self._follow(x)
        else:
            mean = self.param("mean", nn.initializers.zeros, width, jnp.float32)
            var = self.param("var", nn.initializers.ones, width, jnp.float32)
            mean, var = jax.lax.stop_gradient((mean, var))
        slope = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x.astype(jnp.float32) * slope + (bias - mean * slope)).astype(self.dtype)

    def _follow(self, x: Array) -> tuple[Array, Array]:
        """Return the batch's statistics, and let the running ones move towards them."""
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError(
                f"{'/'.join(self.path)} sees one value of each channel (shape {x.shape}), which has"
                " no variance: use larger batches or images, or freeze its statistics "
                "(statistics_policy; --statistics frozen)"
            )
        x = x.astype(jnp.float32)
        mean = x.mean(axes)
        var = jnp.square(x - mean).mean(axes)
        for name, seen in (("mean", mean), ("var", var * (count / (count - 1)))):
            old = self.get_variable(MOVING, name)
            new = (1 - self.momentum) * old + self.momentum * jax.lax.stop_gradient(seen)
            if self.is_mutable_collection(MOVING):
                self.put_variable(MOVING, name, new)
        return mean, var
