"""Several adapters over one base in one batch: each row has its own."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sftjax.adapters.apply import Apply, side_branch
from sftjax.adapters.kind import Call, Kind, Leaves, kernel_of
from sftjax.adapters.plan import Plan, Planned
from sftjax.core import Batch, PyTree, flatten

ADAPTER_IDS = "adapter_ids"
"""The entry of a batch that names each row's adapter, (B,) int32."""


def stack_adapters(adapters: Sequence[PyTree]) -> PyTree:
    """Return a bank: the leaves of several adapters of one plan, stacked along a new first axis.

    Raises:
      ValueError: if there is none, or they are not of one plan (the leaf is named).

    >>> stack_adapters([{"q": jnp.zeros(2)}, {"q": jnp.ones(2)}])["q"].shape
    (2, 2)
    """
    if not adapters:
        raise ValueError("a bank holds at least one adapter, and none is given")
    first = flatten(adapters[0])
    for number, adapter in enumerate(adapters):
        leaves = flatten(adapter)
        for path in sorted(first.keys() ^ leaves.keys()):
            raise ValueError(
                f"adapters 0 and {number}: only one of them has a leaf {path}; a bank holds "
                "adapters of one plan"
            )
        for path, leaf in leaves.items():
            if leaf.shape != first[path].shape:
                raise ValueError(
                    f"adapters 0 and {number} have shapes {first[path].shape} and {leaf.shape} at "
                    f"{path}; a bank holds adapters of one plan"
                )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def adapter_bank(apply: Apply, plan: Plan) -> Apply:
    r"""Return a function that serves each row of a batch by the adapter it names.

    $$ y_i = f(x_i; W, a_{k_i}) $$

    The base's products are of the whole batch at once; only the branches are of each row's leaves.

    Args:
      apply: `(params, batch, key=None, ...) -> output`, as for `side_branch`.
      plan: where adapters sit, the same for all.

    Returns:
      `(params, batch, ...) -> output` of `{"adapter": bank, "base": ...}`, with leaves (K, ...)
      from `stack_adapters`, and batches with `adapter_ids` (B,), each 0 to K - 1. Where there is
      no such adapter, the row is NaN.

    Raises:
      ValueError: if a kind reads or changes whole batches (a prompt, a prefix); when tracing, if
        the batch has no `adapter_ids`, or a module is not called on rows of the batch.

    >>> import flax.linen as nn
    >>> from sftjax.adapters import attach, lora, plan_adapter
    >>> module, x = nn.Dense(2), jnp.ones((3, 4))
    >>> params = {"d": module.init(jax.random.key(0), x)["params"]}
    >>> plan = plan_adapter(params, lora(r=1))
    >>> a, _ = attach(params, plan, jax.random.key(1))
    >>> b = jax.tree.map(jnp.ones_like, a)
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(2, name="d")(x)
    >>> run = adapter_bank(lambda p, batch: Net().apply({"params": p}, batch["x"]), plan)
    >>> joined = {"adapter": stack_adapters([a, b]), "base": params}
    >>> y = run(joined, {"x": x, "adapter_ids": jnp.array([0, 1, 0])})
    >>> (y - Net().apply({"params": params}, x)).round(3).tolist()
    [[0.0, 0.0], [4.0, 4.0], [0.0, 0.0]]
    """
    for kind in plan.kinds:
        if kind.batch is not None or kind.method != "__call__":
            raise ValueError(
                f"a {kind.name} adapter changes what a whole batch looks like, and a bank changes "
                "rows; use one adapter a batch (side_branch)"
            )

    def run(params: PyTree, batch: Batch, *rest: Any, **named: Any) -> Any:
        if ADAPTER_IDS not in batch:
            raise ValueError(
                f"the batch has no {ADAPTER_IDS!r} (B,), the number of each row's adapter; it has "
                f"{sorted(batch)}"
            )
        ids = jnp.asarray(batch[ADAPTER_IDS])
        rows = Plan(tuple(Planned(site, _by_row(kind, ids)) for site, kind in plan.sites))
        return side_branch(apply, rows)(params, batch, *rest, **named)

    return run


def _by_row(kind: Kind, ids: jax.Array) -> Kind:
    """Return the kind that gives each row the branch of its own leaves."""

    def branch(bank: Leaves, call: Call) -> jax.Array:
        rows = len(ids)
        if call.x.shape[0] % rows:
            raise ValueError(
                f"an adapted module is called on {call.x.shape}, which are not {rows} rows; leave "
                "it out of the plan"
            )
        y = call.base()
        x_rows = call.x.reshape(rows, -1, *call.x.shape[1:])
        y_rows = y.reshape(rows, -1, *y.shape[1:])
        keys = None if call.key is None else jax.random.split(call.key, rows)

        def one(number: jax.Array, x: jax.Array, y: jax.Array, key: jax.Array | None) -> jax.Array:
            def base(*given: jax.Array) -> jax.Array:
                if not given:
                    return y
                out = call.linear(given[0], kernel_of(call.params).astype(y.dtype))
                return out + jnp.asarray(call.params.get("bias", 0.0), y.dtype)

            leaves = {
                name: leaf.at[number].get(mode="fill", fill_value=jnp.nan)
                for name, leaf in bank.items()
            }
            return kind.branch(leaves, call._replace(base=base, x=x, key=key))

        found = jax.vmap(one, in_axes=(0, 0, 0, None if keys is None else 0))(
            ids, x_rows, y_rows, keys
        )
        return found.reshape(y.shape)

    return kind._replace(branch=branch)
