"""Same-group retrieval: whether a model's embeddings still tell which rows belong together."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import Undefined, scores

TIE = 1e-6
"""Cosines this close are equal: float32 products of unit vectors err by up to 5e-7 (D = 384)."""


class Retrieval(NamedTuple):
    """How often the nearest other row is of the same group."""

    precision: float
    """P@1, the share of hits."""
    queries: int
    """Rows that were asked: those with another row in their group."""
    excluded: int
    """Rows alone in their group; never asked, but they can be found."""
    hits: NDArray[np.bool_]
    """(queries,), in row order: to resample for an interval."""
    rows: NDArray[np.intp]
    """(queries,): the row number of each query."""


def same_group_retrieval(
    embeddings: ArrayLike, groups: ArrayLike, *, chunk: int = 1024
) -> Retrieval:
    """Ask of each row whether its nearest other row, by cosine, is of the same group.

    Among equally near rows (within `TIE`) the first counts. Memory is `chunk` x N float32.

    Args:
      embeddings: (N, D) floats.
      groups: (N,) group ids of any type.
      chunk: queries at a time.

    Raises:
      ValueError: if an embedding is zero or not finite (naming the row), or the rows differ in
        number.
      Undefined: (a ValueError) if no group has two rows.

    >>> found = same_group_retrieval([[1, 0], [1, 0.1], [0, 1], [0.9, 0.9]], ["a", "a", "b", "c"])
    >>> found.precision, found.queries, found.excluded
    (1.0, 2, 2)
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it counts queries at a time")
    vectors = scores("embeddings", embeddings, ndim=2)
    _, group, size = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if len(vectors) != len(group):
        raise ValueError(f"{len(vectors)} embeddings for {len(group)} group ids; pass one a row")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(
            f"embeddings: row {int(np.argmin(lengths))} is all zeros, which has no direction; look "
            "at that row's text and mask"
        )
    unit = (vectors / lengths).astype(np.float32)
    rows = np.flatnonzero(size[group] > 1)
    if not len(rows):
        raise Undefined(
            f"retrieval has no value: each of the {len(group)} rows is alone in its group; pass "
            "groups with at least two rows"
        )
    nearest = np.empty(len(rows), np.intp)
    for start in range(0, len(rows), chunk):
        queries = rows[start : start + chunk]
        cosine = unit[queries] @ unit.T
        cosine[np.arange(len(queries)), queries] = -np.inf
        near = cosine >= cosine.max(axis=1, keepdims=True) - TIE
        nearest[start : start + chunk] = near.argmax(axis=1)
    hits = group[nearest] == group[rows]
    return Retrieval(float(hits.mean()), len(rows), len(group) - len(rows), hits, rows)
