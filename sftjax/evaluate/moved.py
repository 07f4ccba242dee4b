"""How far the weights moved from their pretrained values, block by block."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from sftjax.core import PyTree, flatten
from sftjax.select import above, stacks


class Moved(NamedTuple):
    """The distance one block moved."""

    block: str
    distance: float
    """`|w - w0|`, the Euclidean norm over the block's pretrained scalars."""
    relative: float
    """`|w - w0| / |w0|`; infinite if a block of zeros moved."""
    scalars: int
    """How many have a pretrained value."""
    new: int
    """How many have none (a fresh head); they are in neither distance."""


def moved(
    anchor: PyTree, params: PyTree, block: Callable[[str], str] | None = None
) -> tuple[Moved, ...]:
    """Return for each block of a model how far it is from where it started.

    Args:
      anchor: the pretrained params; leaves without a pretrained value are absent or holes.
      params: the params now, all of them.
      block: path -> name of its block; `block_names` when left out.

    Returns:
      One `Moved` a block, in the order of the paths, with what lies above the numbered blocks last.

    Raises:
      ValueError: if the anchor has a path that the params lack, or a leaf of another shape.

    >>> before = {"layer": {"0": {"w": np.array([3.0, 4.0])}, "1": {"w": np.array([1.0])}}}
    >>> after = {"layer": {"0": {"w": np.array([3.0, 3.0])}, "1": {"w": np.array([1.0])}}}
    >>> for row in moved(before, after):
    ...     print(row.block, row.distance, row.relative)
    layer 0 1.0 0.2
    layer 1 0.0 0.0
    """
    old, now = flatten(anchor), flatten(params)
    _check(old, now)
    name = block_names(now).__getitem__ if block is None else block
    grouped: dict[str, list[str]] = {}
    top = set(above(params))
    for path in sorted(now, key=top.__contains__):
        grouped.setdefault(name(path), []).append(path)
    return tuple(_row(block, paths, old, now) for block, paths in grouped.items())


def block_names(paths: Iterable[str]) -> dict[str, str]:
    """Name the block that each path belongs to: `layer 3`, or the part beside the layers.

    Numbered blocks are those that `select.stacks` finds. A first segment that all of them share
    (`bert`) is left out of the other names; an encoder and a decoder keep theirs.

    >>> paths = ["bert/embeddings/word/embedding", "bert/encoder/layer/0/w/kernel",
    ...          "bert/encoder/layer/1/w/kernel", "bert/pooler/dense/bias", "classifier/bias"]
    >>> list(block_names(paths).values())
    ['embeddings', 'layer 0', 'layer 1', 'pooler', 'classifier']
    """
    paths = list(paths)
    found = stacks(dict.fromkeys(paths, 0))
    firsts = {stack.blocks[0].split("/")[0] for stack in found}
    deep = all(stack.blocks[0].count("/") >= 2 for stack in found)
    trunk = firsts.pop() + "/" if len(firsts) == 1 and deep else ""
    labels = {path: _numbered(path) for stack in found for path in stack.blocks}
    if len(set(labels.values())) < len(labels):
        labels = {path: f"{path.split('/')[0]} {label}" for path, label in labels.items()}
    if len(set(labels.values())) < len(labels):
        labels = {path: path for path in labels}
    names = {}
    for path in paths:
        segments = path.split("/")
        prefixes = ("/".join(segments[:depth]) for depth in range(1, len(segments)))
        numbered = next((labels[prefix] for prefix in prefixes if prefix in labels), None)
        names[path] = numbered or path.removeprefix(trunk).split("/")[0]
    return names


def _numbered(block: str) -> str:
    """`encoder/layer/3` -> `layer 3`, `encoder/block_3` -> `block 3`."""
    *_, parent, last = ["", *block.split("/")]
    match = re.fullmatch(r"(.*?)_?(\d+)", last)
    assert match is not None, block  # stacks are numbered
    return f"{match[1] or parent} {match[2]}".strip()


def _check(old: dict[str, Any], now: dict[str, Any]) -> None:
    lost = [path for path in old if path not in now]
    if lost:
        raise ValueError(
            f"the anchor holds {len(lost)} leaves that the params lack, {lost[0]!r} first; pass "
            "the whole params (combine the trainable and the frozen leaves)"
        )
    for path, leaf in old.items():
        if np.shape(leaf) != np.shape(now[path]):
            raise ValueError(
                f"{path!r} has shape {np.shape(leaf)} in the anchor and {np.shape(now[path])} in "
                "the params; leave a resized leaf out of the anchor, it counts as new then"
            )


def _row(block: str, paths: list[str], old: dict[str, Any], now: dict[str, Any]) -> Moved:
    went = started = 0.0
    scalars = new = 0
    for path in paths:
        if path not in old:
            new += int(np.size(now[path]))
            continue
        start = np.asarray(old[path], np.float64)
        went += float(np.sum((np.asarray(now[path], np.float64) - start) ** 2))
        started += float(np.sum(start**2))
        scalars += start.size
    if started > 0:
        relative = math.sqrt(went / started)
    else:
        relative = math.inf if went > 0 else 0.0
    return Moved(block, math.sqrt(went), relative, scalars, new)
