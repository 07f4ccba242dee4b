"""A run with adapters: what it trains, what it computes, and the plain model that it comes to."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
from jax import Array

from sftjax.adapters import (
    Plan,
    base_outputs,
    dequantize_tree,
    linear_leaves,
    merge_adapter,
    on_quantized,
    plan_of_words,
    side_branch,
    with_adapter,
)
from sftjax.core import Batch, PyTree, flatten
from sftjax.objectives import Apply
from sftjax.recipes.methods import Parts


class Worn(NamedTuple):
    """Params with the adapters that they wear; without any, the plain params."""

    params: PyTree
    """`{"adapter", "base"}`, or the params as they are."""
    new: tuple[str, ...]
    """Paths of the leaves without a pretrained value: the head's and the adapter's."""
    held: tuple[str, ...] = ()
    """Those of the adapter's in which its change is linear: they can be held to their start."""
    plan: Plan | None = None
    """Where the adapters sit; None without any."""

    @property
    def mergeable(self) -> bool:
        """Whether a plain model can do what this one does."""
        return self.plan is None or all(kind.merge is not None for kind in self.plan.kinds)

    def beside(self, apply: Apply) -> Apply:
        """Return a function of plain params as one of these; it may run a part of the model."""
        if self.plan is None:
            return on_quantized(apply)
        return side_branch(apply, self.plan, partly=True)

    def parts(self, parts: Parts) -> Parts:
        """Return what methods need, of these params."""
        if self.plan is None:
            return parts

        def rest(params: PyTree, h: Array, batch: Batch, key: Array | None) -> Array:
            run = self.beside(lambda base, batch, key: parts.rest(base, h, batch, key))
            return run(params, batch, key)

        return parts._replace(
            logits=self.beside(parts.logits),
            features=self.beside(parts.features),
            embed=self.beside(parts.embed),
            rest=rest,
            logits_before=base_outputs(parts.logits, self.plan),
            features_before=base_outputs(parts.features, self.plan),
        )

    def weights(self, params: PyTree) -> PyTree:
        """Return plain params: with the adapters merged, or the base where they cannot be."""
        if self.plan is None:
            return dequantize_tree(params)
        base = dequantize_tree(params["base"])
        return merge_adapter(base, params["adapter"], self.plan) if self.mergeable else base

    def trained(self, params: Collection[str]) -> list[str]:
        """Return of these paths the base's own, as the plain model names them."""
        inside = [path.removeprefix("base/") for path in params if path.startswith("base/")]
        return inside if self.plan is not None else list(params)


PLAIN = Worn(None, ())
"""No adapter: everything is as it is."""


def wear(
    adapters: Sequence[str], params: PyTree, new: Collection[str], key: Array | None = None
) -> Worn:
    """Return params with fresh adapters, given by name.

    Args:
      adapters: such as `["lora:r=8"]`; none leaves the params as they are.
      params: the pretrained params, with a new head.
      new: paths of its leaves.
      key: draws the adapters; `jax.random.key(0)` if None.

    Raises:
      ValueError: if a name, a setting or a target does not fit.

    >>> import jax.numpy as jnp
    >>> params = {"q": {"kernel": jnp.ones((4, 4))}, "head": {"kernel": jnp.ones((4, 2))}}
    >>> wear(["lora:r=2"], params, ["head/kernel"]).new
    ('adapter/q/lora_a', 'adapter/q/lora_b', 'base/head/kernel')
    """
    if not adapters:
        return Worn(params, tuple(new))
    plan = plan_of_words(adapters, params, new)
    joined = with_adapter(params, plan, jax.random.key(0) if key is None else key)
    own = [f"adapter/{path}" for path in flatten(joined["adapter"])]
    fresh = (*own, *(f"base/{path}" for path in new))
    return Worn(joined, fresh, tuple(linear_leaves(joined, plan)), plan)


def adapted_leaves(
    adapters: Sequence[str], params: PyTree, new: Collection[str]
) -> list[tuple[str, float]]:
    """Return rules of the leaves that adapters sit beside: where blocks cannot be kept frozen."""
    if not adapters:
        return []
    sites = plan_of_words(adapters, params, new).sites
    return [(f"{site.path}/{site.leaf}", 1.0) for site, _ in sites]
