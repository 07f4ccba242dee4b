"""`sftjax inspect`: the tree of a checkpoint with sizes, and what a selection would move."""

import dataclasses
from typing import Annotated, Any

import optax
import tyro

from sftjax.core import PyTree, count, flatten, nbytes
from sftjax.hub import load
from sftjax.models import statistics_of, statistics_policy
from sftjax.recipes.named_models import folder_of
from sftjax.recipes.training import Training
from sftjax.select import describe, select, stacks


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print the tree of a checkpoint's weights, with sizes, blocks, and what --train would move."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A folder of a model, a name on the Hub (owner/model), or asset:NAME (asset:minilm-l6)."""
    train: tuple[str, ...] = ()
    """Rules as in `sftjax classify --train`; their report is printed too."""
    depth: int = 4
    """How many levels of the tree to print."""


def inspect(job: Inspect) -> str:
    """Return what `sftjax inspect` prints.

    Raises:
      ValueError: if the checkpoint cannot be read or a rule matches nothing.
    """
    model, params, report = load(folder_of(job.model))
    parts = [str(report), tree_text(params, job.depth)]
    for stack in stacks(params):
        parts.append(f"blocks: {stack.blocks[0]} ... {stack.blocks[-1]} ({len(stack.blocks)})")
    longest = f"longest input: {model.max_length} tokens; " if model.max_length else ""
    parts.append(f"{longest}head: {model.head.kind}")
    if job.train:
        rules, still = Training(train=job.train).rules(), statistics_of(params)
        chosen = select(params, rules, new=report.new, still=still)
        policy = statistics_policy(params, chosen.trainable, "frozen") if still else ""
        parts.append(str(describe(params, chosen, tx=optax.adamw(1e-4), policy=policy)))
    return "\n\n".join(parts)


def tree_text(params: PyTree, depth: int) -> str:
    """Draw a nested dict of arrays to a depth, each line with its parameters and bytes.

    >>> import jax.numpy as jnp
    >>> print(tree_text({"head": {"kernel": jnp.zeros((4, 2))}}, 2))
    head               8       32
      kernel (4, 2)    8       32
    total              8       32
    """
    rows = [(name, count(leaves), nbytes(leaves)) for name, leaves in _lines(params, depth)]
    rows.append(("total", count(params), nbytes(params)))
    width = max(len(name) for name, *_ in rows)
    return "\n".join(f"{name:<{width}} {size:>12,} {memory:>14,}" for name, size, memory in rows)


def _lines(tree: Any, depth: int, indent: int = 0) -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    keys = dict.fromkeys(path.split("/")[0] for path in flatten(tree))
    for key in keys:
        child = tree[key]
        leaf = "" if isinstance(child, dict) else f" {tuple(child.shape)}"
        lines.append((f"{'  ' * indent}{key}{leaf}", child))
        if depth > 1 and isinstance(child, dict):
            lines += _lines(child, depth - 1, indent + 1)
    return lines
