"""PatchCore: where a picture has a patch unlike all those of normal ones (Roth et al. 2022)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sftjax.evaluate.outliers import squared_distances


class MemoryBank(NamedTuple):
    """Patches of normal pictures, thinned out."""

    patches: Array
    """(M, D) float32."""
    radius: Array
    """(), the farthest that any patch seen lies from the nearest one kept."""


def patch_features(*stages: Array) -> Array:
    """Join the maps of several stages into one vector a patch.

    Each map is averaged over 3 x 3 neighbours, then brought to the size of the first.

    Args:
      *stages: (N, H, W, D) each, the largest first (in a ResNet: the second and third stage).

    Returns:
      (N, H, W, sum of D) float32.

    >>> patch_features(jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 3))).shape
    (1, 4, 4, 5)
    """
    size = stages[0].shape[1:3]
    joined = []
    for stage in stages:
        values = stage.astype(jnp.float32)
        window = ((1, 3, 3, 1), (1, 1, 1, 1), "SAME")
        total = jax.lax.reduce_window(values, 0.0, jax.lax.add, *window)
        ones = jnp.ones((1, *values.shape[1:3], 1))
        mean = total / jax.lax.reduce_window(ones, 0.0, jax.lax.add, *window)
        joined.append(jax.image.resize(mean, (len(mean), *size, mean.shape[-1]), "linear"))
    return jnp.concatenate(joined, -1)


def fit_memory_bank(
    patches: ArrayLike, share: float = 0.1, *, seed: int = 0, project: int | None = 128
) -> MemoryBank:
    """Keep a share of the patches of normal pictures, chosen greedily to lie near all of them.

    Greedy k-center (Gonzalez 1985): next comes the patch that is farthest from those kept; the
    radius is at most twice the best possible. Distances are taken in a random projection, as in the
    paper; what is kept is not projected.

    Args:
      patches: (N, H, W, D) or (P, D).
      share: of the patches to keep, in (0, 1].
      seed: of the first patch and the projection.
      project: dimensions of the projection; None takes all.

    Raises:
      ValueError: for a share outside (0, 1] or patches that are not finite.
    """
    x = jnp.asarray(patches, jnp.float32)
    x = x.reshape(-1, x.shape[-1])
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it is the part of the patches kept, above 0 up to 1")
    if not bool(jnp.isfinite(x).all()):
        raise ValueError("the patches are not finite; look at what the model returned")
    keep = max(1, round(share * len(x)))
    if keep == len(x):
        return MemoryBank(x, jnp.zeros(()))
    start, draw = jax.random.split(jax.random.key(seed))
    seen = x
    if project is not None and project < x.shape[1]:
        seen = x @ jax.random.normal(draw, (x.shape[1], project)) / np.sqrt(project)
    first = jax.random.randint(start, (), 0, len(x))
    chosen, radii = greedy_centers(seen, keep, first)
    return MemoryBank(x[chosen], radii[-1])


def greedy_centers(points: Array, number: int, first: Array | int = 0) -> tuple[Array, Array]:
    """Choose points one after another, each the farthest from those before.

    Args:
      points: (P, D).
      number: how many.
      first: the index of the first.

    Returns:
      (number,) indices, and (number,) the radius after each: it never grows.

    >>> greedy_centers(jnp.array([[0.0], [1.0], [9.0]]), 2)[0].tolist()
    [0, 2]
    """

    def add(state: tuple[Array, Array], _: None):
        nearest, index = state
        # Differences, not products: a chosen point must be at exactly 0 from itself.
        squared = jnp.sum((points - points[index]) ** 2, -1)
        nearest = jnp.minimum(nearest, squared)
        farthest = jnp.argmax(nearest)
        return (nearest, farthest), (index, jnp.sqrt(nearest[farthest]))

    begin = (jnp.full(len(points), jnp.inf), jnp.asarray(first, jnp.int32))
    _, (indices, radii) = jax.lax.scan(add, begin, None, length=number)
    return indices, radii


def patch_distances(bank: MemoryBank, patches: Array, block: int = 4096) -> Array:
    """Return the distance of every patch to the nearest in the bank: the heat map.

    Args:
      bank: of `fit_memory_bank`.
      patches: (N, H, W, D).
      block: how many patches are compared at once (memory).

    Returns:
      (N, H, W) float32.
    """
    flat = patches.astype(jnp.float32).reshape(-1, patches.shape[-1])

    def one(rows: Array) -> Array:
        # The nearest by products, then its distance by differences: exactly 0 for a kept patch.
        nearest = jnp.argmin(squared_distances(rows, bank.patches), -1)
        return jnp.sqrt(jnp.sum((rows - bank.patches[nearest]) ** 2, -1))

    size = min(block, len(flat))
    padded = jnp.pad(flat, ((0, -len(flat) % size), (0, 0)))
    found = jax.lax.map(one, padded.reshape(-1, size, flat.shape[-1])).reshape(-1)
    return found[: len(flat)].reshape(patches.shape[:-1])


def picture_scores(bank: MemoryBank, patches: Array, neighbours: int = 9) -> Array:
    r"""Return how strange each picture is: its farthest patch, weighed as in the paper.

    With the farthest patch $p$, its nearest kept $m$ and the $b$ kept nearest to $m$:
    $(1 - e^{d(p, m)} / \sum_{m'} e^{d(p, m')})\, d(p, m)$, which counts a patch less where the
    normal ones are dense.

    Args:
      bank: of `fit_memory_bank`.
      patches: (N, H, W, D).
      neighbours: $b$; 1 leaves the distance as it is.

    Returns:
      (N,) float32.
    """
    distances = patch_distances(bank, patches).reshape(len(patches), -1)
    worst = jnp.argmax(distances, -1)
    flat = patches.astype(jnp.float32).reshape(len(patches), -1, patches.shape[-1])
    patch = jnp.take_along_axis(flat, worst[:, None, None], 1)[:, 0]
    score = jnp.take_along_axis(distances, worst[:, None], 1)[:, 0]
    if neighbours <= 1:
        return score
    nearest = bank.patches[jnp.argmin(squared_distances(patch, bank.patches), -1)]
    count = min(neighbours, len(bank.patches))
    _, around = jax.lax.top_k(-squared_distances(nearest, bank.patches), count)
    apart = jnp.sqrt(jnp.sum((patch[:, None] - bank.patches[around]) ** 2, -1))
    # exp of distances overflows; a softmax does not. The nearest is one of those around itself.
    weight = 1 - jnp.exp(score - jax.nn.logsumexp(apart, -1))
    return jnp.where(count > 1, jnp.maximum(weight, 0.0), 1.0) * score
