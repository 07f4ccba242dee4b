"""Run linen modules on params that hold quantized leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from sftjax.adapters.kind import tree_at
from sftjax.adapters.quantize import dequantize_tree, quantized_dot, quantized_rows
from sftjax.core import PyTree, is_quantized
from sftjax.core.beside import Beside, beside


def on_quantized(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of params whose Dense kernels and Embed tables may be quantized.

    A Dense layer multiplies by weights that are dequantized at that moment and again in the
    backward pass; an Embed dequantizes the rows that it looks up; any other module reads its leaf
    dequantized as a whole. `side_branch` does this by itself. Compile it: run eagerly, whole leaves
    are made first.

    Args:
      apply: `(params, ...) -> output`, with linen modules at the paths of `params`.

    Returns:
      The same; with params of plain arrays it does nothing.

    >>> from sftjax.adapters import quantize_base
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(64, name="d")(x)
    >>> x = jnp.ones((2, 8))
    >>> params = Net().init(jax.random.key(0), x)["params"]
    >>> run = on_quantized(lambda params, x: Net().apply({"params": params}, x))
    >>> error = jnp.abs(run(quantize_base(params, "int8"), x) - run(params, x)).max()
    >>> 0 < float(error) < 0.02
    True
    """

    def run(params: PyTree, *rest: Any, **named: Any) -> Any:
        if not has_quantized(params):
            return apply(params, *rest, **named)
        # An Embed reads its table when it is set up (a tied decoder may want it). Compiled, what is
        # read by nobody after all is never made.
        with beside(_Quantized(params)):
            return apply(dequantize_tree(params), *rest, **named)

    return run


def has_quantized(params: PyTree) -> bool:
    """Tell whether a tree holds a quantized leaf."""
    return any(map(is_quantized, jax.tree.leaves(params, is_leaf=is_quantized)))


@dataclass(frozen=True)
class _Quantized(Beside):
    """Lets Dense and Embed read quantized leaves."""

    params: PyTree
    """Below the place where the paths of modules begin."""

    def meet(
        self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, nn.Dense | nn.Embed):
            return run(*args, **kwargs)
        own = tree_at(self.params, "/".join(module.path))
        kept = None if own is None else own.get("kernel", own.get("embedding"))
        if kept is None or not is_quantized(kept):
            return run(*args, **kwargs)
        (x,) = args
        if isinstance(module, nn.Embed):
            return quantized_rows(kept, x).astype(module.dtype or kept.dtype)
        return _dense(module, own, kept, x)

    def given(self, path: str, params: PyTree) -> PyTree:
        del params
        return tree_at(self.params, path)

    def within(self, path: str, given: PyTree) -> "_Quantized":
        del path
        return _Quantized(given)


def _dense(module: nn.Dense, own: Any, kernel: Any, x: Array) -> Array:
    dtype = module.dtype or jnp.promote_types(x.dtype, kernel.dtype)
    y = quantized_dot(kernel, x.astype(dtype))
    return y + own["bias"].astype(dtype) if module.use_bias else y
