"""The activation functions that `config.json` files name."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def gelu(x: Array) -> Array:
    """Return `x * Phi(x)`, the Gaussian error linear unit (Hendrycks and Gimpel 2016).

    Args:
      x: any shape, floating.

    Returns:
      The same shape and dtype.

    >>> gelu(jnp.array([-1.0, 0.0, 1.0])).round(4).tolist()
    [-0.158..., 0.0, 0.841...]
    """
    # Not `jax.nn.gelu(approximate=False)`: XLA on CPU keeps two more temporaries of x's size for
    # its `erfc` (151 MB in a step of a 6-layer model).
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


_gelu_tanh = partial(jax.nn.gelu, approximate=True)


def _clipped_gelu(x: Array) -> Array:
    return jnp.clip(gelu(x), -10.0, 10.0)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _laplace(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def _squared_relu(x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


def _linear(x: Array) -> Array:
    return x


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": jax.nn.hard_swish,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": _linear,
    "mish": jax.nn.mish,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": _squared_relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    name: jax.checkpoint(function) for name, function in _FUNCTIONS.items()
}
"""Name in a config -> elementwise function that keeps only its input for the backward pass: its
slope is one pass over that input, and would be the widest array of every layer if it were stored.
Activations with weights of their own (prelu, xielu) are not here: their weights would be lost."""
