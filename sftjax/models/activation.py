"""The activation functions that `config.json` files name."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def _gelu_exact(x):
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


_gelu_tanh = partial(jax.nn.gelu, approximate=True)


def _clipped_gelu(x: Array) -> Array:
    return jnp.clip(_gelu_exact(x), -10.0, 10.0)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _laplace(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def _squared_relu(x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


def _linear(x: Array) -> Array:
    return x


_gelu_exact = jax.checkpoint(_gelu_exact)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu_exact,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu_exact,
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
"""Name in a config -> elementwise function. Those with weights of their own (prelu, xielu) are not
here: their weights would be lost."""
