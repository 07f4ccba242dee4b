"""A run with adapters: what it trains, what it computes, and the plain model that it comes to."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array

from sftjax.adapters import (
    Plan,
    anchored_change,
    base_outputs,
    dequantize_tree,
    describe_adapter,
    describe_quantized,
    held_leaves,
    merge_adapter,
    on_quantized,
    plan_of_words,
    quantize_base,
    side_branch,
    with_adapter,
)
from sftjax.adapters.on_quantized import has_quantized
from sftjax.core import Batch, Objective, PyTree, flatten, map_with_path, matches
from sftjax.objectives import Apply
from sftjax.recipes.methods import Parts


class Worn(NamedTuple):
    """Params with the adapters that they wear; without any, the plain params."""

    params: PyTree
    """`{"adapter", "base"}`, or the params as they are."""
    new: tuple[str, ...]
    """Paths of the leaves without a pretrained value: the head's and the adapter's."""
    held: tuple[str, ...] = ()
    """Those of the adapter's that can be held to their start, and the change of the weights so."""
    plan: Plan | None = None
    """Where the adapters sit; None without any."""

    @property
    def base(self) -> PyTree:
        """The params of the model itself, as this run holds them."""
        return self.params if self.plan is None else self.params["base"]

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
            embed=self.beside(parts.embed),  # type: ignore[arg-type]
            rest=rest,
            logits_before=base_outputs(parts.logits, self.plan),
            features_before=base_outputs(parts.features, self.plan),
            hold=self._hold,
            longer=any(kind.batch is not None for kind in self.plan.kinds),
        )

    def weights(self, params: PyTree) -> PyTree:
        """Return plain params: with the adapters merged, or the base where they cannot be."""
        if self.plan is None:
            return dequantize_tree(params)
        base = dequantize_tree(params["base"])
        return merge_adapter(base, params["adapter"], self.plan) if self.mergeable else base

    def drawn(self, params: PyTree, new: Collection[str], key: Array) -> dict[str, Array]:
        """Return, by path, these params' leaves without a pretrained value as a key draws them.

        Args:
          params: plain ones, whose own new leaves the key drew.
          new: their paths.
          key: draws the adapters.
        """
        leaves = flatten(params)
        if self.plan is None:
            return {path: leaves[path] for path in new}
        adapter = with_adapter(params, self.plan, key)["adapter"]
        return {f"adapter/{path}": leaf for path, leaf in flatten(adapter).items()} | {
            f"base/{path}": leaves[path] for path in new
        }

    def touched(self, trainable: PyTree) -> PyTree:
        """Return which of the plain params decide what moves: trained, or beside an adapter."""
        if self.plan is None:
            return trainable
        adapted = tuple(f"{site.path}/{site.leaf}" for site, _ in self.plan.sites)
        return map_with_path(
            lambda path, moves: bool(moves) or any(matches(leaf, path) for leaf in adapted),
            trainable["base"],
        )

    def _hold(self, objective: Objective, weight: float) -> Objective:
        assert self.plan is not None
        for kind in self.plan.kinds:
            if kind.distance is None:
                raise ValueError(
                    f"--coupled adds the distance of an adapter's product to the loss, and that of "
                    f"a {kind.name} has no closed form; use a dose, or --anchor features"
                )
        return anchored_change(objective, self.plan, weight)


PLAIN = Worn(None, ())
"""No adapter: everything is as it is."""


def wear(
    adapters: Sequence[str],
    params: PyTree,
    new: Collection[str],
    key: Array | None = None,
    *,
    quantize: str = "",
) -> Worn:
    """Return params with fresh adapters, given by name.

    Args:
      adapters: such as `["lora:r=8"]`; none leaves the params as they are.
      params: the pretrained params, with a new head; shapes give shapes, and nothing is computed.
      new: paths of its leaves.
      key: draws the adapters; `jax.random.key(0)` if None.
      quantize: how the base is to be kept, where it is not yet: what a PiSSA leaves of it.

    Raises:
      ValueError: if a name, a setting or a target does not fit.

    >>> import jax.numpy as jnp
    >>> params = {"q": {"kernel": jnp.ones((4, 4))}, "head": {"kernel": jnp.ones((4, 2))}}
    >>> worn = wear(["lora:r=2"], params, ["head/kernel"])
    >>> worn.new
    ('adapter/q/lora_a', 'adapter/q/lora_b', 'base/head/kernel')
    >>> worn.held
    ('adapter/q/lora_b',)
    """
    if not adapters:
        return Worn(params, tuple(new))
    plan = plan_of_words(adapters, params, new)
    key = jax.random.key(0) if key is None else key
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        joined = jax.eval_shape(lambda params: with_adapter(params, plan, key), params)
    else:
        joined = with_adapter(params, plan, key)
    if quantize and not all(kind.starts_at_base for kind in plan.kinds):
        how, _, double = quantize.partition("-")
        joined["base"] = quantize_base(joined["base"], how, double=bool(double))  # type: ignore[arg-type]
    own = [f"adapter/{path}" for path in flatten(joined["adapter"])]
    fresh = (*own, *(f"base/{path}" for path in new))
    return Worn(joined, fresh, tuple(held_leaves(joined, plan)), plan)


def told_of(worn: Worn, params: PyTree) -> list[str]:
    """Return what a person wants to know of the adapters, and of the base beside them.

    Args:
      worn: the adapters.
      params: the plain params, with their sizes.
    """
    if worn.plan is None:
        return []
    told = [str(describe_adapter(params, worn.plan))]
    if has_quantized(worn.base):
        told.append(str(describe_quantized(worn.base)))
    return told


def trained_beside(trained: Mapping[str, Any]) -> list[str]:
    """Return, of trained leaves, those of the base, as the plain model names them.

    >>> trained_beside({"adapter/q/lora_a": 0, "base/head/kernel": 0})
    ['head/kernel']
    """
    return [path.removeprefix("base/") for path in trained if path.startswith("base/")]
