"""Print what an adapter is before it runs: where it sits, its size, what each way costs."""

import math
from typing import Literal, NamedTuple

from sftjax.adapters.kind import Kind, Site, tree_at
from sftjax.adapters.plan import Plan, shapes_of
from sftjax.core import PyTree, count

Way = Literal["side-branch", "tree-merge"]

SHORT = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "num_virtual_tokens": "tokens"}
"""Settings in PEFT's words -> in the table's."""


class AdapterRow(NamedTuple):
    """All sites of one kind."""

    kind: str
    settings: str
    sites: int
    parameters: int
    share: float
    """Of the base's parameters."""
    added: float | None
    """Forward FLOPs a position, as a share of the base's own products there; None if unknown."""


class AdapterDescription(NamedTuple):
    """The report of `describe_adapter`; `str()` gives the table."""

    way: Way
    rows: tuple[AdapterRow, ...]
    step: dict[str, float] | None
    """FLOPs of the adapted products in a training step, by way; None if unknown."""
    positions: int

    def __str__(self) -> str:
        header = ("adapter", "settings", "sites", "parameters", "of base", "added FLOPs")
        lines = [header, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        text = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*text, _told(self)])


def describe_adapter(
    params: PyTree, plan: Plan, *, way: Way = "side-branch", positions: int = 4096
) -> AdapterDescription:
    """Report where adapters sit, how large they are, and what a training step pays for them.

    The FLOPs are of the adapted products, 2 a multiply-add. Beside the modules a step pays the
    base's product forward and back (its kernel has no gradient) and three times the branch's own;
    merged, it pays the kernel's gradient in full, and builds the change once an update.

    Args:
      params: the base, arrays or shapes.
      plan: from `plan_adapter`.
      way: how it is applied, `"side-branch"` or `"tree-merge"`.
      positions: tokens (or pixels) in an update, for the comparison of the two ways.

    Returns:
      An `AdapterDescription`; print it.

    >>> import jax
    >>> from sftjax.adapters import lora, plan_adapter
    >>> params = {"q": {"kernel": jax.ShapeDtypeStruct((64, 64), "float32")}}
    >>> print(describe_adapter(params, plan_adapter(params, lora(r=4))))
    adapter  settings     sites  parameters  of base  added FLOPs
    lora     r=4 alpha=4      1         512  12.500%       12.50%
    side-branch: a step's adapted products cost 0.79 of tree-merge at 4,096 positions an update
    """
    shapes = shapes_of(plan, params)
    total = max(count(params), 1)
    rows = []
    for kind in plan.kinds:
        sites = [site for site, own in plan.sites if own is kind]
        size = sum(count(tree_at(shapes, site.path)) for site in sites)
        base = sum(_products(site) for site in sites)
        known = kind.flops is not None and base
        added = sum(kind.flops(site)[0] for site in sites) / base if known else None  # type: ignore[misc]
        rows.append(AdapterRow(kind.name, _settings(kind), len(sites), size, size / total, added))
    return AdapterDescription(way, tuple(rows), _step(plan, positions), positions)


def _products(site: Site) -> int:
    """Return the forward FLOPs of a module's own product, a position; a look-up has none."""
    return 0 if site.leaf == "embedding" else 2 * math.prod(site.shape)


def _step(plan: Plan, positions: int) -> dict[str, float] | None:
    """Return the FLOPs of a step's adapted products, by way."""
    if any(kind.flops is None or kind.merge is None for kind in plan.kinds):
        return None
    beside = merged = 0.0
    for site, kind in plan.sites:
        assert kind.flops is not None
        base = _products(site)
        branch, built = kind.flops(site)
        beside += positions * (2 * base + 3 * branch)
        merged += positions * 3 * base + 3 * built
    return {"side-branch": beside, "tree-merge": merged} if beside and merged else None


def _settings(kind: Kind) -> str:
    """Return a kind's settings in few words."""
    words = [
        f"{short}={kind.config[name]:g}" for name, short in SHORT.items() if kind.config.get(name)
    ]
    flags = [name.removeprefix("use_") for name in ("use_rslora",) if kind.config.get(name)]
    start = kind.config.get("init_lora_weights", "default")
    return " ".join([*words, *flags, *([] if start == "default" else [start])])


def _cells(row: AdapterRow) -> tuple[str, ...]:
    return (
        row.kind,
        row.settings,
        f"{row.sites}",
        f"{row.parameters:,}",
        f"{100 * row.share:.3f}%",
        "-" if row.added is None else f"{100 * row.added:.2f}%",
    )


def _told(found: AdapterDescription) -> str:
    if found.step is None:
        return f"{found.way}: the base stays as it is; only the adapter has gradients and moments"
    other = "tree-merge" if found.way == "side-branch" else "side-branch"
    ratio = found.step[found.way] / found.step[other]
    return (
        f"{found.way}: a step's adapted products cost {ratio:.2f} of {other} at "
        f"{found.positions:,} positions an update"
    )
