r"""After a run: mixtures of weights that share one pretrained start.

All of them are arithmetic on params, in float32 (float64 for float64 weights) whatever the dtype of
the leaves, and give each leaf back in its own dtype. Running statistics (batch_stats) are no params
and do not mix: the variance of a mixture is not the mixture of variances. Measure them anew with
`soups.recalibrate`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import PyTree, flatten, holes, nearest, path_of


def interpolate(a: PyTree, b: PyTree, t: ArrayLike) -> PyTree:
    """Return `(1 - t) a + t b`: `a` at `t = 0` and `b` at `t = 1`, to the last bit.

    Args:
      a: params.
      b: params of the same structure. Leaves that are not floats (integers, booleans, PRNG keys)
        and the dtypes are taken from here.
      t: (), any number; outside 0 to 1 it extrapolates. May be traced.

    Returns:
      The mixture. Where one tree has a hole, the leaf of the other.

    Raises:
      ValueError: if a path or a shape differs.

    >>> a, b = {"w": jnp.zeros(1), "head": None}, {"w": jnp.ones(1), "head": jnp.ones(1)}
    >>> interpolate(a, b, 0.25)
    {'head': Array([1.], dtype=float32), 'w': Array([0.25], dtype=float32)}
    """
    check_alike(a, b)

    def mix(x: Array | None, y: Array | None) -> Array | None:
        if x is None or y is None:
            return y if x is None else x
        if not _is_float(y):
            return y
        dtype = _wide(y)
        start, end = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
        mixed = (1 - t) * start + t * end
        # Without these, -0.0 becomes 0.0 and an infinity NaN at the ends.
        mixed = jnp.where(t == 0, start, jnp.where(t == 1, end, mixed))
        return mixed.astype(y.dtype)

    return jax.tree.map(mix, a, b, is_leaf=holes)


def wise_ft(
    pretrained: PyTree, tuned: PyTree, alphas: Iterable[float]
) -> Iterator[tuple[float, PyTree]]:
    r"""Yield the models on the line from the pretrained weights to the tuned ones, one at a time.

    $$ w_\alpha = (1 - \alpha)\,w_0 + \alpha\,w $$

    The ends are `pretrained` and `tuned` to the last bit. Choose $\alpha$ on validation data, never
    on the shifted data that a claim is about.

    Args:
      pretrained: $w_0$, with holes where a leaf has no pretrained value (`anchor_of` of all leaves
        gives them): a fresh head is the tuned one at every $\alpha$. With $\alpha = 0$ that is the
        pretrained trunk under the tuned head, which means something only if the head was trained
        on that trunk first (linear probing).
      tuned: $w$, full params.
      alphas: from 0 to 1.

    Returns:
      An iterator of `(alpha, params)`; one mixture is alive at a time.

    Raises:
      ValueError: at once, if an $\alpha$ is outside 0 to 1, or the trees differ.

    References:
      Wortsman et al., *Robust Fine-Tuning of Zero-Shot Models*, 2022, arXiv:2109.01903

    >>> curve = wise_ft({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, [0.0, 0.5, 1.0])
    >>> [(alpha, float(params["w"][0])) for alpha, params in curve]
    [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]
    """
    chosen = [float(alpha) for alpha in alphas]
    outside = [alpha for alpha in chosen if not 0.0 <= alpha <= 1.0]
    if outside:
        raise ValueError(f"alpha {outside[0]} is outside 0 (pretrained) to 1 (tuned)")
    missing = sorted(set(flatten(pretrained)) - set(flatten(tuned)))
    if missing:
        raise ValueError(f"tuned has no leaf at {missing[0]!r}; give the full params of the run")
    check_alike(pretrained, tuned)
    mix = jax.jit(interpolate)
    return ((alpha, mix(pretrained, tuned, alpha)) for alpha in chosen)


def task_vector(pretrained: PyTree, tuned: PyTree) -> PyTree:
    r"""Return what a run learned, $\tau = w - w_0$, in float32 or wider.

    Holes where a leaf has no pretrained value, is frozen in one of the trees, or is not a float.

    Raises:
      ValueError: if a path or a shape differs.

    >>> task_vector({"w": jnp.ones(1), "head": None}, {"w": jnp.zeros(1), "head": jnp.ones(1)})
    {'head': None, 'w': Array([-1.], dtype=float32)}
    """
    check_alike(pretrained, tuned)

    def subtract(origin: Array | None, value: Array | None) -> Array | None:
        if origin is None or value is None or not _is_float(value):
            return None
        return jnp.asarray(value, _wide(value)) - jnp.asarray(origin, _wide(value))

    return jax.tree.map(subtract, pretrained, tuned, is_leaf=holes)


def add_task_vectors(
    pretrained: PyTree, vectors: Sequence[PyTree], scales: Sequence[float]
) -> PyTree:
    r"""Return $w_0 + \sum_i s_i \tau_i$: learn with $s > 0$, forget with $s < 0$ (negation).

    Scales of 0 give the pretrained weights to the last bit. A single vector with scale 1 gives the
    tuned weights, to the last bit wherever $|w - w_0| < |w| / 2$, and within a unit in the last
    place of the larger of $|w|$ and $|w_0|$ elsewhere. (`interpolate` is exact everywhere.)

    Args:
      pretrained: $w_0$, holes where a leaf has no pretrained value; those stay holes, to be filled
        with a head by `combine`.
      vectors: $\tau_i$, as `task_vector` or `ties` gives them.
      scales: $s_i$, one for each vector.

    Returns:
      Params with the dtypes of `pretrained`.

    Raises:
      ValueError: if the numbers of vectors and scales differ, or a path or a shape does.

    References:
      Ilharco et al., *Editing Models with Task Arithmetic*, 2023, arXiv:2212.04089

    >>> w0, tau = {"w": jnp.ones(1)}, {"w": jnp.array([0.5])}
    >>> [float(add_task_vectors(w0, [tau], [scale])["w"][0]) for scale in (1.0, 0.0, -1.0)]
    [1.5, 1.0, 0.5]
    """
    if len(vectors) != len(scales):
        raise ValueError(
            f"{len(vectors)} task vectors and {len(scales)} scales; each needs its own"
        )
    for vector in vectors:
        check_alike(pretrained, vector)

    def add(origin: Array | None, *moves: Array | None) -> Array | None:
        present = [s * move for s, move in zip(scales, moves, strict=True) if move is not None]
        if origin is None or not present:
            return origin
        total = sum(present[1:], start=present[0])
        there = (jnp.asarray(origin, _wide(origin)) + total).astype(origin.dtype)
        return jnp.where(total == 0, origin, there)

    return jax.tree.map(add, pretrained, *vectors, is_leaf=holes)


def ties(vectors: Sequence[PyTree], keep: float = 0.2) -> PyTree:
    r"""Merge task vectors without letting them cancel: trim, elect a sign, average who agrees.

    1. Of each vector only the fraction `keep` of largest magnitude stays, counted over all its
       leaves together (entries as large as the smallest that stays do too).
    2. Each entry's sign is that of the sum of what stayed; where the sum is 0 nothing is elected.
    3. Each entry is the mean of the vectors that stayed and have that sign, or 0.

    One vector, or copies of it, with `keep=1` comes back as it is.

    Args:
      vectors: as `task_vector` gives them, of one structure.
      keep: above 0, up to 1.

    Returns:
      A task vector; `add_task_vectors(pretrained, [it], [scale])` applies it.

    Raises:
      ValueError: if there is no vector, `keep` is outside its range, or a path or a shape differs.

    References:
      Yadav et al., *TIES-Merging: Resolving Interference When Merging Models*, 2023,
      arXiv:2306.01708

    >>> ties([{"w": jnp.array([4.0, 1.0])}, {"w": jnp.array([-1.0, 3.0])}], keep=1.0)
    {'w': Array([4., 2.], dtype=float32)}
    """
    if not vectors:
        raise ValueError("there is no task vector to merge")
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep is {keep}; it is the fraction that stays, above 0 and up to 1")
    for vector in vectors[1:]:
        check_alike(vectors[0], vector, same=True)
    thresholds = [_threshold(vector, keep) for vector in vectors]

    def merge(*leaves: Array) -> Array:
        trimmed = [
            jnp.where(jnp.abs(leaf) >= threshold, leaf, 0)
            for leaf, threshold in zip(leaves, thresholds, strict=True)
        ]
        elected = jnp.sign(sum(trimmed[1:], start=trimmed[0]))
        mean, count = jnp.zeros_like(elected), jnp.zeros_like(elected)
        for leaf in trimmed:
            agrees = (jnp.sign(leaf) == elected) & (elected != 0)
            count = count + agrees
            # A running mean: of copies it is the copy itself, which sum / count need not be.
            mean = jnp.where(agrees, mean + (leaf - mean) / jnp.maximum(count, 1), mean)
        return mean

    return jax.tree.map(merge, *vectors)


def check_alike(first: PyTree, other: PyTree, *, same: bool = False) -> None:
    """Refuse two trees that cannot be mixed.

    Args:
      first: a tree of arrays, with holes.
      other: another.
      same: also refuse a leaf where the other tree has a hole.

    Raises:
      ValueError: naming the path that only one has, or whose shapes differ.

    >>> check_alike({"w": jnp.ones(2)}, {"w": jnp.zeros(2)})
    """
    ours, theirs = _with_holes(first), _with_holes(other)
    for path in [*ours, *theirs]:
        if path not in ours or path not in theirs:
            inside = list(theirs if path in ours else ours)
            raise ValueError(
                f"only one of two trees to be merged has {path!r}; nearest in the other: "
                f"{nearest(path, inside)}; merge runs of one model with one selection"
            )
        x, y = ours[path], theirs[path]
        if same and (x is None) != (y is None):
            raise ValueError(
                f"only one of two trees to be merged has a leaf at {path!r}, the other a hole; "
                "merge runs of one selection"
            )
        if x is not None and y is not None and x.shape != y.shape:
            raise ValueError(
                f"{path!r} has shape {x.shape} in one tree and {y.shape} in the other; leave out "
                "what differs (a head of other classes) by a hole"
            )


def _with_holes(tree: PyTree) -> dict[str, Any]:
    return {
        path_of(keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=holes)
    }


def _threshold(vector: PyTree, keep: float) -> float:
    """Return the smallest magnitude that is among the fraction `keep` of the largest."""
    magnitudes = np.concatenate([np.abs(np.asarray(x)).ravel() for x in jax.tree.leaves(vector)])
    place = magnitudes.size - max(1, round(keep * magnitudes.size))
    return float(np.partition(magnitudes, place)[place])


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _wide(leaf: Any) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
