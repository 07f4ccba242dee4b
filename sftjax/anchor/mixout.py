"""Mixout: in every update, a random part of the weights is the pretrained one."""

import zlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sftjax.core import Fixed, PyTree, View, map_with_path


def mixout(rate: float, *, per: Literal["column", "weight"] = "column") -> View:
    r"""Return the view that puts a random part of each matrix back to its pretrained value.

    $$ \tilde w = w_0 + \frac{m \odot (w - w_0)}{1 - p}, \qquad m \sim \mathrm{Bernoulli}(1 - p) $$

    The mean of $\tilde w$ is $w$, and a quadratic loss with Hessian $H$ grows on average by
    $\frac{p}{2 (1 - p)} \sum_c \delta_c^\top H_{cc} \delta_c$, where $\delta = w - w_0$ and $c$
    runs over what shares a mask: a pull toward $w_0$ that is strongest where the loss is curved.
    The gradient is $m / (1 - p)$ times that of the loss, by automatic differentiation. (The
    authors' code leaves the divisor out of the gradient; Adam hides that, SGD and clipping do not.)

    Vectors (biases, norms) and leaves without an anchor (a fresh head) pass as they are. With
    accumulation every micro-batch draws masks of its own.

    Args:
      rate: $p$ in [0, 1), the share of the weights put back; `mixout_rate_of` makes it of a dose.
      per: `"column"` draws one mask for each input of a kernel (..., in, out), shared by all its
        outputs, as the paper does; every axis but the last counts the inputs, so a convolution has
        a mask for each tap and a stack of layers one for each layer. `"weight"` draws one for each
        weight.

    Returns:
      A `View` for `train.make_step(view=...)`. Without a key (evaluation) it changes nothing.

    Raises:
      ValueError: if the rate or the kind is unknown; when tracing, if nothing can be mixed.

    References:
      Lee et al., *Mixout: Effective Regularization to Finetune Large-scale Pretrained Language
      Models*, 2020, arXiv:1909.11299

    >>> fixed = Fixed({"w": None}, {}, anchor={"w": jnp.zeros((4, 2))})
    >>> mixed = mixout(0.5)({"w": jnp.ones((4, 2))}, fixed, jax.random.key(0))["w"]
    >>> sorted(set(mixed.ravel().tolist()))
    [0.0, 2.0]
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"the rate of mixout is {rate}; it is a share of the weights in [0, 1)")
    if per not in ("column", "weight"):
        raise ValueError(f"mixout per {per!r} is unknown; there are 'column' and 'weight'")

    def view(trainable: PyTree, fixed: Fixed, key: Array | None) -> PyTree:
        if rate == 0.0 or key is None:
            return trainable
        mixed = []

        def mix(path: str, value: Array, origin: Array | None) -> Array:
            if origin is None or value.ndim < 2:
                return value
            mixed.append(path)
            shape = value.shape if per == "weight" else (*value.shape[:-1], 1)
            keep = jax.random.bernoulli(_key_of(path, key), 1.0 - rate, shape)
            origin = origin.astype(value.dtype)
            return origin + jnp.where(keep, value - origin, 0.0) / (1.0 - rate)

        if fixed.anchor is not None:
            trainable = map_with_path(mix, trainable, fixed.anchor)
        if not mixed:
            raise ValueError(
                "mixout finds nothing to mix: no trainable matrix has an anchor. Give train.init "
                "anchor=anchor_of(params, trainable) with a pretrained matrix that moves."
            )
        return trainable

    return view


def _key_of(path: str, key: Array) -> Array:
    """Return the key of a leaf; a checksum, since Python's `hash` differs from run to run."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(f"mixout/{path}".encode())))
