"""Find the repeated blocks of a model in its tree, and what lies above them.

A *stack* is a set of sibling subtrees numbered from their names (`layer/0`, `layer/1`, ... or
`block_0`, `block_1`, ...). The outermost stacks are the model's blocks: numbered parts inside a
block belong to it.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from sftjax.core import PyTree, flatten

BELOW = ("embed", "stem", "wte", "wpe", "shared", "cls_token", "mask_token", "patch")
"""Parts of a path segment that mark a leaf outside the blocks as lying under them."""


class Stack(NamedTuple):
    """A run of numbered sibling subtrees, lowest first."""

    blocks: tuple[str, ...]
    """Path of each block."""


def stacks(params: PyTree) -> list[Stack]:
    """Return the outermost stacks of blocks, in the order of their paths.

    Args:
      params: any tree of arrays or shapes.

    Returns:
      A list of `Stack`; two for an encoder-decoder, none for a tree without numbered siblings.

    >>> tree = {"encoder": {"layer": {"0": {"kernel": 1}, "1": {"kernel": 2}}}, "head": 3}
    >>> stacks(tree)
    [Stack(blocks=('encoder/layer/0', 'encoder/layer/1'))]
    """
    return _stacks(flatten(params))


def last_blocks(params: PyTree, k: int) -> list[str]:
    """Return patterns for the last `k` blocks of every stack and all that lies above them.

    Args:
      params: any tree of arrays or shapes.
      k: how many blocks; 0 keeps only what lies above (pooler, final norm, head).

    Raises:
      ValueError: if the tree has no numbered blocks, or fewer than `k`.

    >>> tree = {"encoder": {"layer": {"0": {"w": 1}, "1": {"w": 2}}}, "embed": {"w": 0}, "head": 3}
    >>> last_blocks(tree, 1)
    ['encoder/layer/1', 'head']
    """
    found = stacks(params)
    if not found:
        tops = sorted({path.split("/")[0] for path in flatten(params)})
        raise ValueError(
            f"'last:{k}' needs numbered blocks (layer/0, layer/1, ...), and this tree has none; "
            f"name what should move by its path instead. Top level: {', '.join(tops)}"
        )
    for stack in found:
        if not 0 <= k <= len(stack.blocks):
            raise ValueError(
                f"'last:{k}' asks for {k} blocks, but {stack.blocks[0].rpartition('/')[0]!r} "
                f"has {len(stack.blocks)}; use a number from 0 to {len(stack.blocks)}"
            )
    chosen = [block for stack in found for block in stack.blocks[len(stack.blocks) - k :]]
    return chosen + above(params)


def above(params: PyTree) -> list[str]:
    """Return the paths of the leaves that lie above all blocks: pooler, final norm, head.

    A leaf outside the blocks lies above them unless a segment of its path speaks of embeddings or
    a stem (`BELOW`).

    >>> above({"layer": {"0": {"w": 1}, "1": {"w": 2}}, "patch_embed": {"w": 0}, "head": {"w": 3}})
    ['head/w']
    """
    paths = flatten(params)
    blocks = tuple(f"{block}/" for stack in _stacks(paths) for block in stack.blocks)
    return [path for path in paths if not path.startswith(blocks) and not _below(path)]


def frozen_below(trainable: PyTree) -> int:
    """Return how many of the lowest blocks stand still together with all that lies under them.

    Their outputs are the same at every step, so that they can be computed once (`train.prefix`).

    Args:
      trainable: bool tree (`Selection.trainable`).

    Returns:
      The number of blocks; 0 if something under them moves or there is not exactly one stack.

    >>> frozen_below({"layer": {"0": {"w": False}, "1": {"w": True}}, "head": True})
    1
    """
    moves = flatten(trainable)
    found, top = stacks(trainable), set(above(trainable))
    if len(found) != 1:
        return 0
    (stack,) = found
    inside = tuple(f"{block}/" for block in stack.blocks)
    if any(moves[path] for path in moves if path not in top and not path.startswith(inside)):
        return 0
    still = 0
    for block in stack.blocks:
        if any(moves[path] for path in moves if path.startswith(f"{block}/")):
            break
        still += 1
    return still


def _below(path: str) -> bool:
    return any(mark in segment.lower() for segment in path.split("/") for mark in BELOW)


def _stacks(paths: Iterable[str]) -> list[Stack]:
    numbered: dict[tuple[str, str], dict[int, str]] = {}
    split = [path.split("/") for path in paths]
    for segments in split:
        for depth, segment in enumerate(segments[:-1]):
            if match := re.fullmatch(r"(.*?)(\d+)", segment):
                stem = ("/".join(segments[:depth]), match[1])
                block = "/".join(segments[: depth + 1])
                numbered.setdefault(stem, {})[int(match[2])] = block
    groups = [
        Stack(tuple(group[number] for number in sorted(group)))
        for group in numbered.values()
        if len(group) > 1
    ]
    every = tuple(f"{block}/" for group in groups for block in group.blocks)
    return [group for group in groups if not group.blocks[0].startswith(every)]
