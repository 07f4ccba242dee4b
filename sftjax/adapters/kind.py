"""What an adapter of one kind is: a few pure functions of the leaves at one site.

A user's own kind is one `Kind`. Here is one that learns a gain for each output:

>>> def init(site, key, params):
...     return {"gain": jnp.zeros(site.shape[-1])}
>>> def branch(leaves, call):
...     return call.base() * (1 + call.scale * leaves["gain"])
>>> def merge(leaves, params, scale):
...     return {name: value * (1 + scale * leaves["gain"]) for name, value in params.items()}
>>> gain = Kind("gain", init, branch, merge)

It is then used like the others:

>>> from sftjax.adapters import attach, side_branch, merge_adapter, plan_adapter
>>> module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
>>> x = jnp.ones((1, 3))
>>> params = module.init(jax.random.key(0), x)["params"]
>>> plan = plan_adapter(params, gain, target_modules=["layers_2"])
>>> adapter = {"layers_2": {"gain": jnp.ones(2)}}
>>> apply = lambda params, x: module.apply({"params": params}, x)
>>> y = side_branch(apply, plan)({"adapter": adapter, "base": params}, x)
>>> bool(jnp.allclose(y, apply(merge_adapter(params, adapter, plan), x)))
True
>>> bool(jnp.allclose(y, 2 * apply(params, x)))
True
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch, PyTree
from sftjax.core.by_rows import by_rows

ALL_LINEAR = "all-linear"

Leaves = Mapping[str, Array]
"""The adapter's arrays at one site, or the module's own params there."""


class Site(NamedTuple):
    """A module that an adapter sits beside."""

    path: str
    """Of the module, such as `bert/encoder/layer/0/attention/self/query`."""
    leaf: str
    """Of the module's params, the one adapted: `kernel` or `embedding`."""
    shape: tuple[int, ...]
    """Of that leaf: (in, out), (height, width, in, out) or (rows, width)."""


class Call(NamedTuple):
    """One call of an adapted module, as a kind's `branch` sees it."""

    base: Callable[..., Array]
    """Runs the module as it is; without arguments, on what it was called with."""
    x: Array
    """What the module was called with: hidden states, an image, token ids."""
    rest: tuple[Any, ...]
    """Its further positional arguments."""
    params: Leaves
    """The module's own params; they do not move."""
    linear: Callable[[Array, Array], Array]
    """`(x, kernel) ->` the module's product with another kernel, without its bias: for a
    convolution, one with the same strides and padding; for an embedding, a look-up."""
    scale: Array | float
    """How much of the adapter counts: 1, or 0 for the base."""
    key: Array | None
    """Draws the adapter's dropout; `None` is none."""


class Kind(NamedTuple):
    """A kind of adapter, as pure functions of one site's leaves."""

    name: str
    init: Callable[[Site, Array, Leaves], dict[str, Array]]
    """`(site, key, module's params) -> leaves`, float32."""
    branch: Callable[[Leaves, Call], Array]
    """`(leaves, call) -> y`, what the adapted module gives."""
    merge: Callable[[Leaves, Leaves, Array | float], dict[str, Array]] | None = None
    """`(leaves, module's params, scale) ->` params that do the same without the adapter; `None`
    where no params can."""
    unmerge: Callable[[Leaves, Leaves], dict[str, Array]] | None = None
    """`(leaves, merged params) ->` the module's params before."""
    scaled: Callable[[Leaves, float], dict[str, Array]] | None = None
    """`(leaves, c) ->` leaves whose effect is c times as large."""
    added: Callable[[list[Leaves], list[float]], dict[str, Array]] | None = None
    """`(leaves of several, weights) ->` leaves whose effect is the weighted sum of theirs."""
    distance: Callable[[Leaves, Leaves | None, Leaves], Array] | None = None
    """`(leaves, leaves at the start or None for no change, module's params) ->` the squared
    Frobenius distance between the weights that they stand for."""
    linear: tuple[str, ...] = ()
    """Names of its leaves that start at zero and in which the change is linear."""
    flops: Callable[[Site], tuple[int, int]] | None = None
    """`site ->` what the branch adds to a forward pass for each position, and what building the
    merged kernel costs once; 2 a multiply-add."""
    leaves: tuple[str, ...] = ("kernel",)
    """Names of the leaves it can sit beside."""
    check: Callable[[Site], None] = lambda site: None
    """Raises ValueError where the kind does not fit."""
    starts_at_base: bool = True
    """Whether the base is the pretrained params; else it is what remains of them beside fresh
    leaves."""
    batch: Callable[[Batch], Batch] | None = None
    """What the model reads in place of a batch (a prompt's places before the tokens)."""
    output: Callable[[Any, Batch], Any] | None = None
    """`(model's output, batch as it came) ->` the output without those places."""
    method: str = "__call__"
    """The method of the module that is intercepted."""
    config: Mapping[str, Any] = {}
    """Its settings, in PEFT's words."""
    targets: str | Sequence[str] = ALL_LINEAR
    """Where it sits unless `target_modules` say otherwise."""


def kernel_of(params: Leaves, site_leaf: str | None = None) -> Array:
    """Return the leaf that is adapted: the kernel of a Dense or Conv, the table of an Embed.

    >>> kernel_of({"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}).shape
    (1, 2)
    """
    name = site_leaf or ("kernel" if "kernel" in params else "embedding")
    return params[name]


def with_kernel(params: Leaves, kernel: Array) -> dict[str, Array]:
    """Return the params with another kernel (or table), in the dtype of the old one."""
    name = "kernel" if "kernel" in params else "embedding"
    return {**params, name: kernel.astype(params[name].dtype)}


def dropped(x: Array, rate: float, key: Array | None) -> Array:
    """Return x with a share of its entries put to zero and the others grown to keep the mean.

    >>> dropped(jnp.ones(4), 0.5, None)
    Array([1., 1., 1., 1.], dtype=float32)
    """
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def product_of(x: Array, kernel: Array) -> Array:
    """Return `x @ kernel` for hidden states (..., d), or for an image by the rows of its pixels.

    Into the gradient of a kernel with an image's axes XLA on CPU folds, again for each of its sums,
    what comes from a depthwise convolution: a step of EfficientNet-lite0 with LoRA took 2.7 s, and
    takes 0.65 by rows.

    >>> product_of(jnp.ones((1, 2, 2, 3)), jnp.ones((3, 4))).shape
    (1, 2, 2, 4)
    """
    return x @ kernel if x.ndim < 4 else by_rows(x, kernel)


def product_with(module: nn.Module, x: Array, kernel: Array) -> Array:
    """Return what a bound module would compute with another kernel, without its bias.

    Raises:
      ValueError: if the module is no Dense, Conv or Embed, or a convolution in groups or masked.
    """
    if isinstance(module, nn.Dense):
        return x @ kernel
    if isinstance(module, nn.Embed):
        return jnp.take(kernel, x, axis=0)
    if not isinstance(module, nn.Conv):
        raise ValueError(
            f"{'/'.join(module.path)} is a {type(module).__name__}; adapters sit beside Dense, "
            "Conv and Embed modules. Use tree_merge, which needs no modules"
        )
    if module.feature_group_count != 1 or module.mask is not None:
        raise ValueError(
            f"{'/'.join(module.path)} is a convolution in groups or with a mask, which another "
            "kernel does not fit; use tree_merge, or leave it out"
        )
    like = nn.Conv(
        kernel.shape[-1], module.kernel_size, module.strides, module.padding,
        module.input_dilation, module.kernel_dilation, use_bias=False, dtype=x.dtype, parent=None,
        conv_general_dilated=module.conv_general_dilated,
    )  # fmt: skip
    return like.apply({"params": {"kernel": kernel}}, x)  # type: ignore[return-value]


def tree_at(tree: PyTree, path: str) -> Any:
    """Return the subtree at a path of nested dicts; `None` where there is none.

    >>> tree_at({"a": {"b": 1}}, "a/b"), tree_at({"a": {"b": 1}}, "a/c")
    (1, None)
    """
    for key in path.split("/") if path else ():
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree
