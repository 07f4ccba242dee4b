"""Two ways to use an adapter, the same numbers: beside the modules, or in the weights."""

import functools
import zlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import Array

from sftjax.adapters.kind import Call, product_with, tree_at
from sftjax.adapters.merge import merge_adapter
from sftjax.adapters.on_quantized import on_quantized
from sftjax.adapters.plan import Plan, Planned
from sftjax.adapters.quantize import dequantize_tree
from sftjax.core import PyTree
from sftjax.core.beside import Beside, below, beside, joined

Apply = Callable[..., Any]


def side_branch(
    apply: Apply, plan: Plan, *, scale: Array | float = 1.0, partly: bool = False
) -> Apply:
    """Return a function of base and adapter in which each adapted module gains its branch.

    Modules are met by `flax.linen.intercept_methods` as they are called, so `apply` may be any
    function that runs linen modules on the base, one's own included; it is not changed. No leaf of
    a kernel's size is made, and no gradient of the base is asked for.

    Args:
      apply: `(params, batch, key=None, ...) -> output`, with modules at the paths of `params`.
      plan: where the branches are.
      scale: how much of the adapter counts; 0 is the base model, at the same price.
      partly: whether `apply` may leave modules of the plan out, as a part of a model does.

    Returns:
      `(params, batch, key=None, ...) -> output` of `{"adapter": ..., "base": ...}`; the key, if
      there is one (by position or name, as in `Model.apply`), is passed on, and draws the adapter's
      dropout.

    Raises:
      ValueError: when tracing, if a module of the plan was not called: its adapter would be
        trained in vain.
    """

    def run(params: PyTree, batch: Any, *rest: Any, **named: Any) -> Any:
        key = named.get("key", rest[0] if rest else None)
        sites = {planned.site.path: planned for planned in plan.sites}
        numbers = {} if key is None else {path: _number(path) for path in sites}
        branches = _Branches(
            sites, {"base": params["base"], "adapter": params["adapter"]}, numbers, scale, key
        )
        read = batch
        for kind in plan.kinds:
            read = kind.batch(read) if kind.batch is not None else read
        with beside(branches):
            output = on_quantized(apply)(params["base"], read, *rest, **named)
        for kind in reversed(plan.kinds):
            output = kind.output(output, batch) if kind.output is not None else output
        missed = [planned for planned in plan.sites if planned.site.path not in branches.met]
        if missed and not partly:
            site, kind = missed[0]
            raise ValueError(
                f"{len(missed)} of {len(plan.sites)} adapted modules were not called, {site.path} "
                f"first (its {kind.method}): the function does not run linen modules under the "
                "paths of its params, or leaves some out. Use tree_merge, or plan without these "
                "modules"
            )
        return output

    return run


def tree_merge(apply: Apply, plan: Plan, *, scale: Array | float = 1.0) -> Apply:
    """Return a function of base and adapter in which the adapter is merged into the weights first.

    For any function of a pytree (haiku, nnx after split, plain JAX); it builds every adapted kernel
    in full, and its gradient too, and so costs more than `side_branch` (see `describe_adapter`).

    Args:
      apply: `(params, ...) -> output`.
      plan: where the adapter sits.
      scale: how much of it counts.

    Returns:
      `(params, ...) -> output` of `{"adapter": ..., "base": ...}`.

    Raises:
      ValueError: if a kind cannot be merged into weights.

    >>> import jax.numpy as jnp
    >>> from sftjax.adapters import attach, lora, plan_adapter
    >>> base = {"dense": {"kernel": jnp.ones((2, 2))}}
    >>> plan = plan_adapter(base, lora(r=1))
    >>> adapter, base = attach(base, plan, jax.random.key(0))
    >>> f = tree_merge(lambda params, x: x @ params["dense"]["kernel"], plan)
    >>> f({"adapter": adapter, "base": base}, jnp.ones(2))
    Array([2., 2.], dtype=float32)
    """

    def run(params: PyTree, *rest: Any, **named: Any) -> Any:
        merged = merge_adapter(params["base"], params["adapter"], plan, scale=scale)
        return apply(merged, *rest, **named)

    return run


@dataclass(frozen=True)
class _Branches(Beside):
    """Gives adapted modules their branches."""

    planned: Mapping[str, Planned]
    """By the site's path in the whole model."""
    params: PyTree
    """Base and adapter, below `above`."""
    numbers: Mapping[str, np.uint32]
    """Of each site below `above`, by its path there: what its key is drawn by."""
    scale: Array | float
    key: Array | None
    above: str = ""
    """The path at which the paths of modules begin."""
    met: set[str] = field(default_factory=set)
    """The sites that were called, by their paths below `above`."""

    def meet(
        self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> Any:
        module = context.module
        place = "/".join(module.path)
        path = joined(self.above, place)
        planned = self.planned.get(path)
        if planned is None or context.method_name != planned.kind.method:
            return run(*args, **kwargs)
        self.met.add(place)
        if not args:
            raise ValueError(
                f"{path} is called with named arguments alone; an adapted module takes its input "
                "by position"
            )
        x, *rest = args

        def base(*given: Any) -> Any:
            return run(*(given or args), **kwargs)

        call = Call(
            base=base,
            x=x,
            rest=tuple(rest),
            params=dequantize_tree(tree_at(self.params["base"], place)),
            linear=functools.partial(product_with, module),
            scale=self.scale,
            key=None if self.key is None else jax.random.fold_in(self.key, self.numbers[place]),
        )
        return planned.kind.branch(tree_at(self.params["adapter"], place), call)

    def fixed(self, path: str) -> Hashable:
        path = joined(self.above, path)
        return tuple(
            (place, id(planned.kind))
            for site, planned in self.planned.items()
            if (place := below(path, site)) is not None
        )

    def given(self, path: str, params: PyTree) -> PyTree:
        del params
        own = {name: tree_at(tree, path) for name, tree in self.params.items()}
        numbers = {
            place: number
            for site, number in self.numbers.items()
            if (place := below(path, site)) is not None
        }
        return own, numbers, self.scale, self.key

    def within(self, path: str, given: PyTree) -> "_Branches":
        return _Branches(self.planned, *given, above=joined(self.above, path))

    def left(self, path: str, inner: "_Branches") -> None:
        self.met.update(joined(path, place) for place in inner.met)


def _number(path: str) -> np.uint32:
    """Return what a site's key is drawn by; a checksum: Python's `hash` differs from run to run."""
    return np.uint32(zlib.crc32(f"adapter/{path}".encode()) & 0x7FFFFFFF)
