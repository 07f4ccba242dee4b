import flax.linen as nn
import jax
import jax.numpy as jnp
from functools import partial


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def standardize(x, epsilon):
    return _standardize(x, epsilon)[0]


def _standardize(x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred * rstd, rstd


@standardize.defjvp
def _(epsilon, primals, tangents):
    (x,), (t,) = primals, tangents
    y, rstd = _standardize(x, epsilon)
    return y, rstd * (t - t.mean(-1, keepdims=True) - y * (y * t).mean(-1, keepdims=True))


class LayerNorm(nn.Module):
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        f = lambda x, scale, bias: (
            standardize(x.astype(jnp.float32), self.epsilon) * scale + bias
        ).astype(self.dtype)
        import os

        if os.environ.get("LNCK", "1") == "1":
            f = jax.checkpoint(f)
        return f(x, scale, bias)
