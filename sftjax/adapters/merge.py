"""Adapters put into weights and taken out again, scaled, added and averaged."""

from collections.abc import Callable, Sequence

from jax import Array

from sftjax.adapters.kind import Leaves, tree_at
from sftjax.adapters.plan import Plan, Planned
from sftjax.core import PyTree, flatten, map_with_path, unflatten


def merge_adapter(
    params: PyTree, adapter: PyTree, plan: Plan, *, scale: Array | float = 1.0
) -> PyTree:
    r"""Return the params that do without the adapter what the base does with it.

    Sums are float32, then cast to the dtype of the base's leaf.

    Args:
      params: the base.
      adapter: its leaves.
      plan: where they sit.
      scale: how much of the adapter counts; with several values, the WiSE-FT curve of an adapter.

    Raises:
      ValueError: if a kind changes what no weights can (a bottleneck, a prompt, a prefix).

    >>> import jax.numpy as jnp
    >>> from sftjax.adapters import lora, plan_adapter
    >>> base = {"q": {"kernel": jnp.zeros((2, 2))}}
    >>> adapter = {"q": {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 2))}}
    >>> merge_adapter(base, adapter, plan_adapter(base, lora(r=1)), scale=0.5)["q"]["kernel"]
    Array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    for _, kind in plan.sites:
        if kind.merge is None:
            raise ValueError(
                f"a {kind.name} adapter cannot be merged: no weights of the base do what it does; "
                "keep it beside the base (side_branch)"
            )
    return _changed(
        params,
        plan,
        lambda planned, module: planned.kind.merge(  # type: ignore[misc]
            tree_at(adapter, planned.site.path), module, scale
        ),
    )


def unmerge_adapter(params: PyTree, adapter: PyTree, plan: Plan) -> PyTree:
    """Return the base that an adapter was merged into: the inverse of `merge_adapter`.

    Raises:
      ValueError: if a kind cannot be taken out.
    """
    for _, kind in plan.sites:
        if kind.unmerge is None:
            raise ValueError(f"a {kind.name} adapter cannot be taken out of weights; keep the base")
    return _changed(
        params,
        plan,
        lambda planned, module: planned.kind.unmerge(  # type: ignore[misc]
            tree_at(adapter, planned.site.path), module
        ),
    )


def scale_adapter(adapter: PyTree, plan: Plan, factor: float) -> PyTree:
    """Return an adapter whose effect is `factor` times as large: 0 is the base, -1 the opposite.

    Exact for LoRA, whose change of the weights is linear in it; DoRA and bottlenecks meet both ends
    (0 and 1) exactly and are a curve between.

    Raises:
      ValueError: if a kind has no scale.
    """
    return _of_each(plan, "scaled", lambda planned: planned.kind.scaled(  # type: ignore[misc]
        tree_at(adapter, planned.site.path), factor
    ))  # fmt: skip


def add_adapters(
    adapters: Sequence[PyTree], plan: Plan, weights: Sequence[float] | None = None
) -> PyTree:
    r"""Return an adapter whose change of the weights is the weighted sum of those of several.

    $$ \Delta W = \sum_i c_i\, s A_i B_i $$

    LoRA factors are laid side by side, so the ranks add up and the sum is exact (averaging the
    factors themselves would not be: $\bar A \bar B \neq \overline{A B}$). They
    are the leaves of a kind of that rank and the same s: of n adapters, `lora(r=n * r,
    lora_alpha=n * lora_alpha)`, with rsLoRA `sqrt(n) * lora_alpha`.

    Args:
      adapters: of the same plan.
      plan: theirs.
      weights: $c_i$; 1 for each if None. Weights of 1/n average.

    Raises:
      ValueError: if there is nothing to add, the weights are not as many, or a kind does not add.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if not adapters or len(weights) != len(adapters):
        raise ValueError(f"{len(adapters)} adapters and {len(weights)} weights; give one for each")
    return _of_each(plan, "added", lambda planned: planned.kind.added(  # type: ignore[misc]
        [tree_at(adapter, planned.site.path) for adapter in adapters], weights
    ))  # fmt: skip


def _of_each(plan: Plan, what: str, function: Callable[[Planned], dict[str, Array]]) -> PyTree:
    found = {}
    for planned in plan.sites:
        if getattr(planned.kind, what) is None:
            raise ValueError(f"{planned.kind.name} adapters cannot be {what}")
        for name, value in function(planned).items():
            found[f"{planned.site.path}/{name}"] = value
    return unflatten(found)


def _changed(params: PyTree, plan: Plan, function: Callable[[Planned, Leaves], Leaves]) -> PyTree:
    changed = {}
    for planned in plan.sites:
        path = planned.site.path
        module = function(planned, tree_at(params, path))
        changed |= {
            f"{path}/{name}" if path else name: leaf for name, leaf in flatten(module).items()
        }
    return map_with_path(lambda path, leaf: changed.get(path, leaf), params)
