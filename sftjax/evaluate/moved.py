"""How far the weights moved from their pretrained values, block by block.

Three distances: `|w - w0|` (all scalars alike), the same relative to `|w0|`, and the spectral one,
the most by which any of the block's matrices now maps a unit vector elsewhere.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    """How many have none (a fresh head); they are in no distance."""
    spectral: float = math.nan
    """Greatest `largest_singular_value(w - w0)` of the block's leaves; NaN if not measured."""


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
    ...     print(row.block, row.distance, row.relative, row.spectral)
    layer 0 1.0 0.2 1.0
    layer 1 0.0 0.0 0.0
    """
    old, now = flatten(anchor), flatten(params)
    _check(old, now)
    name = block_names(now).__getitem__ if block is None else block
    grouped: dict[str, list[str]] = {}
    top = set(above(params))
    for path in sorted(now, key=top.__contains__):
        grouped.setdefault(name(path), []).append(path)
    return tuple(_row(block, paths, old, now) for block, paths in grouped.items())


def whole(rows: Sequence[Moved], anchor: PyTree) -> Moved:
    """Return the blocks as one: root of the summed squares, and the greatest spectral distance.

    Args:
      rows: what `moved` returned.
      anchor: the same as it was given.

    >>> before = {"a": np.array([3.0]), "b": np.array([4.0])}
    >>> after = {"a": np.array([3.0]), "b": np.array([5.0])}
    >>> whole(moved(before, after), before)
    Moved(block='whole', distance=1.0, relative=0.2, scalars=2, new=0, spectral=1.0)
    """
    leaves = (np.asarray(leaf, np.float64) for leaf in flatten(anchor).values())
    start = math.sqrt(sum(float(np.vdot(leaf, leaf)) for leaf in leaves))
    distance = math.sqrt(sum(row.distance**2 for row in rows))
    return Moved(
        "whole",
        distance,
        _relative(distance, start),
        sum(row.scalars for row in rows),
        sum(row.new for row in rows),
        float(np.max([row.spectral for row in rows], initial=0.0)),
    )


def largest_singular_value(leaf: NDArray[np.float64]) -> float:
    """Return `max |W x|` over unit vectors `x`, to a relative 1e-6.

    A leaf of more than two axes is the matrix (all but the last, last), as a convolution's kernel
    (height, width, in, out) is; a vector is a matrix of one column, so its value is its length.

    Lanczos iterations on the smaller Gram matrix, each direction made orthogonal to all before it;
    they start at a fixed random vector and end when eight more have added nothing.

    Args:
      leaf: any shape.

    >>> round(largest_singular_value(np.diag([3.0, -5.0, 4.0])), 9)
    5.0
    """
    size = float(np.vdot(leaf, leaf))
    if not 0 < size < math.inf:  # nothing moved, or NaN and infinity, which have no directions
        return math.sqrt(size)
    matrix = leaf.reshape(-1, leaf.shape[-1] if leaf.ndim > 1 else 1)
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = matrix.T @ matrix / size  # of trace 1
    basis = images = np.empty((0, len(gram)))
    direction = np.random.default_rng(0).standard_normal(len(gram))
    best = 0.0
    while len(basis) < len(gram):
        for _ in range(2):  # once leaves rounding errors that grow
            direction = direction - basis.T @ (basis @ direction)
        length = float(np.linalg.norm(direction))
        if length < 1e-13:
            break
        basis = np.vstack([basis, direction / length])
        direction = gram @ basis[-1]
        images = np.vstack([images, direction])
        if len(basis) % 8 == 0:
            found = _top(basis @ images.T)
            if found - best <= 1e-9 * found:
                break
            best = found
    return math.sqrt(size * _top(basis @ images.T))


def _top(symmetric: NDArray[np.float64]) -> float:
    return float(np.linalg.eigvalsh(symmetric)[-1])


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
    went = started = spectral = 0.0
    scalars = new = 0
    for path in paths:
        if path not in old:
            new += int(np.size(now[path]))
            continue
        start = np.asarray(old[path], np.float64)
        away = np.asarray(now[path], np.float64) - start
        went += float(np.vdot(away, away))
        started += float(np.vdot(start, start))
        # Not max(): it would lose a NaN.
        spectral = float(np.maximum(spectral, largest_singular_value(away)))
        scalars += start.size
    distance = math.sqrt(went)
    return Moved(block, distance, _relative(distance, math.sqrt(started)), scalars, new, spectral)


def _relative(distance: float, start: float) -> float:
    if start > 0:
        return distance / start
    return math.inf if distance > 0 else 0.0
