"""What a fine-tuned model still knows: retrieval, similarity of features, drift of outputs."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.core import PyTree
from sftjax.evaluate.calibration import log_softmax
from sftjax.evaluate.checks import Undefined, same_rows, scores
from sftjax.evaluate.moved import Moved, moved
from sftjax.evaluate.tables import table

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


class Retention(NamedTuple):
    """What a run kept, and how far it went."""

    before: Retrieval
    """The pretrained model."""
    after: Retrieval
    """The fine-tuned model."""
    cka: float
    """Linear CKA of the two models' embeddings: 1 is the same up to rotation and scale."""
    moved: tuple[Moved, ...]

    def __str__(self) -> str:
        """Return a text of a few lines: retrieval before and after, CKA, the blocks."""
        columns = ["block", "|w - w0|", "relative", "scalars", "new"]
        rows = [dict(zip(columns, row, strict=True)) for row in self.moved]
        return (
            f"retrieval P@1: {self.before.precision:.3f} before, {self.after.precision:.3f} after "
            f"({self.after.queries:,} queries, {self.after.excluded:,} rows alone in their group "
            f"left out)\nlinear CKA of the embeddings: {self.cka:.3f}\n\n{table(rows, columns)}"
        )


def retention(
    embeddings_before: ArrayLike,
    embeddings_after: ArrayLike,
    groups: ArrayLike,
    anchor: PyTree,
    params: PyTree,
) -> Retention:
    """Compare a fine-tuned model with the pretrained one it came from.

    Args:
      embeddings_before: (N, D) of the pretrained model, on text like its pretraining's.
      embeddings_after: (N, D) of the fine-tuned model, same rows.
      groups: (N,) group ids (the article of each sentence).
      anchor: the pretrained params, without leaves that are new.
      params: the fine-tuned params.

    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> kept = retention(x, x, [0, 0, 1, 1], {"w": np.ones(2)}, {"w": np.ones(2)})
    >>> print(kept)
    retrieval P@1: 1.000 before, 1.000 after (4 queries, 0 rows alone in their group left out)
    linear CKA of the embeddings: 1.000
    <BLANKLINE>
    block  |w - w0|  relative  scalars  new
    w         0.000     0.000        2    0
    """
    return Retention(
        before=same_group_retrieval(embeddings_before, groups),
        after=same_group_retrieval(embeddings_after, groups),
        cka=linear_cka(embeddings_before, embeddings_after),
        moved=moved(anchor, params),
    )


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


def linear_cka(one: ArrayLike, other: ArrayLike) -> float:
    """Return the linear centred kernel alignment of two feature matrices (Kornblith et al. 2019).

    `|Y' X|² / (|X' X| |Y' Y|)` in Frobenius norms, columns centred: 1 if one is a rotation and
    scaling of the other, 0 if they are uncorrelated.

    Args:
      one: (N, D) features.
      other: (N, E) features of the same rows.

    Raises:
      Undefined: (a ValueError) if all rows of a matrix are equal.

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(linear_cka(x, 2 * x[:, ::-1]), 6)
    1.0
    """
    x, y = scores("one", one, ndim=2), scores("other", other, ndim=2)
    same_rows(x, y)
    for name, features in (("first", x), ("second", y)):
        if (features == features[0]).all():
            raise Undefined(f"CKA has no value: all rows of the {name} matrix are equal")
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(min(np.linalg.norm(y.T @ x) ** 2 / own, 1.0))


def kl_divergence(reference: ArrayLike, logits: ArrayLike) -> float:
    """Return the mean over rows of `KL(p0 || p) = sum_c p0 (log p0 - log p)`, in nats.

    Args:
      reference: (N, C) logits of the pretrained model.
      logits: (N, C) logits of the model now.

    >>> round(kl_divergence([[0.0, 0.0]], [[0.0, 1.0]]), 4)
    0.1201
    """
    z0, z = scores("reference", reference, ndim=2), scores("logits", logits, ndim=2)
    if z0.shape != z.shape:
        raise ValueError(f"reference logits are {z0.shape}, logits {z.shape}; pass the same rows")
    log_p0, log_p = log_softmax(z0), log_softmax(z)
    return float(max(np.mean(np.sum(np.exp(log_p0) * (log_p0 - log_p), axis=1)), 0.0))
