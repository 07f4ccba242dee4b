"""Print what a selection means before it runs: leaves, sizes, optimizer memory, rates, anchors."""

import math
from collections.abc import Collection
from typing import NamedTuple

import jax
import optax

from sftjax.core import (
    PyTree,
    count,
    cover,
    flatten,
    is_quantized,
    nbytes,
    owner_of,
    partition,
    path_of,
)
from sftjax.select.part import Part, parts_of
from sftjax.select.rules import Selection


class Row(NamedTuple):
    """All leaves that one rule decided."""

    rule: str
    leaves: int
    parameters: int
    bytes: int
    optimizer_bytes: int | None
    rate: float
    anchored: int
    """How many of the leaves are held near their pretrained values."""
    where: str = ""
    """The subtrees it covers, where its rule moves other leaves at another rate."""
    share: float = 1.0
    """Share of the parameters whose gradient counts at an update, in the mean: below 1 where the
    optimizer draws or masks (Child-Tuning, LISA)."""


class Description(NamedTuple):
    """The report of `describe`; `str()` gives the table."""

    rows: tuple[Row, ...]
    total: Row
    parts: tuple[str, ...] = ()
    """What the optimizer says of the parts that it draws or masks."""
    policy: tuple[str, ...] = ()
    """What happens to running statistics."""

    def __str__(self) -> str:
        header = ("rule", "leaves", "parameters", "memory", "optimizer", "rate", "anchored", "part")
        lines = [header, *(_cells(row) for row in self.rows), _cells(self.total)]
        if not self.parts:
            lines = [line[:-1] for line in lines]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        text = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        moving = sum(row.parameters for row in self.rows if row.rate > 0)
        share = 100 * moving / max(self.total.parameters, 1)
        text.append(
            f"trainable params: {moving:,} || all params: {self.total.parameters:,} "
            f"|| trainable%: {share:.4f}"
        )
        return "\n".join([*text, *self.parts, *self.policy])


def describe(
    params: PyTree,
    selection: Selection,
    *,
    tx: optax.GradientTransformation | None = None,
    anchor: PyTree | None = None,
    policy: object = "",
) -> Description:
    """Report, rule by rule, what moves and what it costs.

    A rule that moves its leaves at several rates (`scaled`) has a line for each, with the subtrees
    it covers. An optimizer that moves a part of the leaves at a time (`lisa`, `only_elements`,
    `bernoulli_gradients`) says which, and what share that is of each line.

    Args:
      params: a tree of arrays or shapes.
      selection: from `select`.
      tx: the optimizer, to count its state for the trainable leaves (by shape, nothing is
        allocated); `None` leaves that column empty.
      anchor: the anchor tree, holes where a leaf is not anchored.
      policy: what happens to running statistics, in words (`models.Policy`): a line of the report.

    Returns:
      A `Description`; print it.

    >>> import jax.numpy as jnp
    >>> from sftjax.select import select
    >>> params = {"trunk": {"w": jnp.zeros((8, 8))}, "head": {"w": jnp.zeros((8, 2))}}
    >>> print(describe(params, select(params, "head"), tx=optax.adam(1e-3)))
    rule      leaves  parameters  memory  optimizer  rate  anchored
    head           1          16    64 B      128 B     1         0
    (frozen)       1          64   256 B        0 B     -         -
    total          2          80   320 B      128 B               0
    trainable params: 16 || all params: 80 || trainable%: 20.0000
    >>> from sftjax.select import block_ids, lisa
    >>> layer = {"0": {"w": jnp.zeros(8)}, "1": {"w": jnp.zeros(8)}}
    >>> params = {"layer": layer, "head": jnp.zeros(16)}
    >>> tx = lisa(optax.sgd(0.1), block_ids(params), active=1, every=20, key=jax.random.key(0))
    >>> print(describe(params, select(params, "all"), tx=tx))
    rule   leaves  parameters  memory  optimizer  rate  anchored   part
    all         3          32   128 B        0 B     1         0  75.0%
    total       3          32   128 B        0 B               0
    trainable params: 32 || all params: 32 || trainable%: 100.0000
    LISA: 1 of 2 blocks (layer/0, layer/1), drawn anew every 20 updates; head: at every update
    """
    leaves, sizes = flatten(params), _sizes(params)
    rules = flatten(selection.rule)
    rates = flatten(selection.rate)
    anchored = set(flatten(anchor)) if anchor is not None else set()
    state, parts = None, []
    if tx is not None:
        moving = partition(params, selection.trainable)[0]
        shapes = jax.eval_shape(tx.init, moving)
        state, parts = _state_bytes(shapes, flatten(moving)), parts_of(shapes)
    groups: dict[tuple[str, float], list[str]] = {}
    for path in leaves:
        groups.setdefault((rules[path], rates[path]), []).append(path)
    order = sorted(groups, key=lambda group: group[1] == 0)
    rules_of = [rule for rule, rate in order if rate > 0]
    spread = {rule for rule in rules_of if rules_of.count(rule) > 1}
    rows = tuple(
        _row(rule or "(frozen)", rate, {path: leaves[path] for path in groups[rule, rate]}, sizes,
             state, anchored, parts,
             cover(groups[rule, rate], leaves) if rule in spread and rate else "")
        for rule, rate in order
    )  # fmt: skip
    total = _row("total", float("nan"), leaves, sizes, state, anchored, parts)
    if state is not None:
        total = total._replace(optimizer_bytes=sum(state.values()))
    said = (str(policy),) if str(policy) else ()
    return Description(rows, total, tuple(part.says for part in parts), said)


def _row(
    rule: str,
    rate: float,
    leaves: dict[str, jax.Array],
    sizes: dict[str, int],
    state: dict[str, int] | None,
    anchored: set[str],
    parts: list[Part],
    where: str = "",
) -> Row:
    spent = None if state is None else sum(state.get(path, 0) for path in leaves)
    held = len(anchored & set(leaves))
    own = {path: sizes[path] for path in leaves if path in sizes}
    size = sum(own.values())
    counted = sum(
        math.prod((part.shares.get(path, 1.0) for part in parts), start=float(one))
        for path, one in own.items()
    )
    share = counted / size if size else 1.0
    return Row(rule, len(own), size, nbytes(leaves), spent, rate, held, where, share)


def _sizes(params: PyTree) -> dict[str, int]:
    """Return the scalars of each leaf; those that a quantized one stands for, by its codes' path.

    >>> from sftjax.core import Quantized
    >>> codes, scales = jax.numpy.zeros((4, 2), "uint8"), jax.numpy.ones((4, 1))
    >>> _sizes({"w": Quantized(codes, scales, None, None, "nf4", (4, 4), "float32", 4)})
    {'w/codes': 16}
    """
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_quantized):
        path = f"{path_of(keys)}/codes" if is_quantized(leaf) else path_of(keys)
        found[path] = count({"": leaf})
    return found


def _state_bytes(shapes: optax.OptState, paths: Collection[str]) -> dict[str, int]:
    """Bytes of optimizer state by the path of the leaf they belong to, without counters."""
    spent: dict[str, int] = {}
    for where, leaf in flatten(shapes).items():
        owner = owner_of(where, paths)
        spent[owner] = spent.get(owner, 0) + nbytes(leaf)
    spent.pop("", None)
    return spent


def _cells(row: Row) -> tuple[str, ...]:
    total = row.rule == "total"
    frozen = row.rate == 0
    return (
        f"{row.rule}: {row.where}" if row.where else row.rule,
        f"{row.leaves:,}",
        f"{row.parameters:,}",
        _size(row.bytes),
        "" if row.optimizer_bytes is None else _size(row.optimizer_bytes),
        "" if total else "-" if frozen else f"{row.rate:.3g}",
        "-" if frozen else f"{row.anchored:,}",
        "" if total else "-" if frozen else f"{100 * row.share:.1f}%",
    )


def _size(number: int) -> str:
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError(number)
