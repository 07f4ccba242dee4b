"""How unlike the training rows a row is: scores of logits, and of features against a fitted state.

`fit_...` makes a pytree of arrays once; the score functions are pure, can be jitted, and are higher
for stranger rows. Say which model made the features: the untouched one or the tuned one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


class Neighbours(NamedTuple):
    """Features of known rows."""

    features: Array
    """(N, D) float32, of length 1 if they were normalized."""


class Gaussians(NamedTuple):
    """A normal distribution a class with one covariance, and one of everything."""

    means: Array
    """(C, D)."""
    whiten: Array
    """(D, D): the inverse of the covariance is `whiten.T @ whiten`."""
    mean: Array
    """(D,), of all rows."""
    whiten_all: Array
    """(D, D), of the covariance about it."""


def msp_score(logits: Array) -> Array:
    r"""Return $-\max_k p_k$ (Hendrycks and Gimpel 2017).

    Args:
      logits: (N, C).

    >>> msp_score(jnp.zeros((1, 4))).tolist()
    [-0.25]
    """
    return -jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), -1)


def energy_score(logits: Array, temperature: float = 1.0) -> Array:
    r"""Return the energy $-T \log \sum_k e^{z_k / T}$ (Liu et al. 2020).

    It shifts with the logits, $E(z + c) = E(z) - c$, which the softmax does not see; so energies of
    two heads cannot be compared.

    Args:
      logits: (N, C).
      temperature: $T$.

    >>> energy_score(jnp.zeros((1, 2))).round(4).tolist()
    [-0.6930999755859375]
    """
    z = logits.astype(jnp.float32) / temperature
    return -temperature * jax.nn.logsumexp(z, axis=-1)


def fit_neighbours(features: ArrayLike, *, normalize: bool = True) -> Neighbours:
    """Keep the features of known rows for `knn_score`.

    Args:
      features: (N, D).
      normalize: to length 1, so that the scale of a row does not count (Sun et al. 2022).
    """
    values = _finite(features)
    return Neighbours(_unit(values) if normalize else values)


def knn_score(state: Neighbours, features: Array, k: int = 10, *, normalize: bool = True) -> Array:
    """Return the distance to the k-th nearest known row.

    Args:
      state: of `fit_neighbours`.
      features: (M, D).
      k: 1 is the nearest; at most the number of known rows.
      normalize: as in the fit.

    >>> state = fit_neighbours(np.eye(3))
    >>> knn_score(state, jnp.array([[0.0, 5.0, 0.0]]), k=1).tolist()
    [0.0]
    """
    if not 1 <= k <= len(state.features):
        raise ValueError(
            f"k is {k}, and there are {len(state.features)} known rows; choose a k from 1 to that"
        )
    values = features.astype(jnp.float32)
    squared = squared_distances(_unit(values) if normalize else values, state.features)
    return jnp.sqrt(-jax.lax.top_k(-squared, k)[0][:, -1])


def fit_gaussians(features: ArrayLike, labels: ArrayLike, *, shrinkage: float = 1e-3) -> Gaussians:
    """Fit class means, one covariance about them, and one about the mean of all (Lee et al. 2018).

    The covariance is shrunk: `(1 - s) S + s tr(S) / D I`. Computed in float64 on the host.

    Args:
      features: (N, D).
      labels: (N,) class ids; every class from 0 to the largest has a row.
      shrinkage: s in [0, 1].

    Raises:
      ValueError: for a class without rows, or a covariance that cannot be inverted.
    """
    x, y = np.asarray(_finite(features), np.float64), np.asarray(labels)
    counts = np.bincount(y)
    if len(x) != len(y) or (counts == 0).any():
        raise ValueError(
            f"{len(x)} rows, {len(y)} labels, classes of {counts.tolist()} rows; give a label a "
            "row and a row of every class"
        )
    means = np.stack([x[y == label].mean(0) for label in range(len(counts))])
    mean = x.mean(0)
    whiten = [_whitening(centred, shrinkage) for centred in (x - means[y], x - mean)]
    arrays = (means, whiten[0], mean, whiten[1])
    return Gaussians(*(jnp.asarray(array, jnp.float32) for array in arrays))


def mahalanobis_score(state: Gaussians, features: Array) -> Array:
    r"""Return $\min_c (x - \mu_c)^\top \Sigma^{-1} (x - \mu_c)$.

    Args:
      state: of `fit_gaussians`.
      features: (N, D).
    """
    return jnp.min(_to_means(state, features), -1)


def relative_mahalanobis_score(state: Gaussians, features: Array) -> Array:
    """Return the Mahalanobis score less the distance from the mean of all (Ren et al. 2021).

    What is unusual for every class alike, and mostly noise, cancels.

    Args:
      state: of `fit_gaussians`.
      features: (N, D).
    """
    away = (features.astype(jnp.float32) - state.mean) @ state.whiten_all.T
    return mahalanobis_score(state, features) - jnp.sum(away**2, -1)


def squared_distances(one: Array, two: Array) -> Array:
    """Return (N, M) squared Euclidean distances in float32, none negative.

    >>> squared_distances(jnp.array([[0.0, 3.0]]), jnp.array([[4.0, 0.0]])).tolist()
    [[25.0]]
    """
    # About the mean of the second: the products would cancel badly far from the origin.
    centre = two.mean(0)
    one, two = one - centre, two - centre
    product = jnp.matmul(one, two.T, precision="highest")
    squared = jnp.sum(one**2, -1)[:, None] + jnp.sum(two**2, -1) - 2 * product
    return jnp.maximum(squared, 0.0)


def _to_means(state: Gaussians, features: Array) -> Array:
    away = features.astype(jnp.float32)[:, None, :] - state.means
    return jnp.sum((away @ state.whiten.T) ** 2, -1)


def _whitening(centred: np.ndarray, shrinkage: float) -> np.ndarray:
    size = centred.shape[1]
    covariance = centred.T @ centred / len(centred)
    spread = np.trace(covariance) / size
    covariance = (1 - shrinkage) * covariance + shrinkage * spread * np.eye(size)
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the covariance of {len(centred)} rows in {size} dimensions cannot be inverted; give "
            f"more rows or more shrinkage than {shrinkage:g}"
        ) from error
    return np.linalg.solve(lower, np.eye(size))


def _unit(values: Array) -> Array:
    return values / jnp.maximum(jnp.linalg.norm(values, axis=-1, keepdims=True), 1e-12)


def _finite(features: ArrayLike) -> Array:
    values = jnp.asarray(features, jnp.float32)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"features have shape {values.shape}; expected (rows, dimensions)")
    if not bool(jnp.isfinite(values).all()):
        row = int(np.argwhere(~np.isfinite(np.asarray(values)))[0, 0])
        raise ValueError(f"features: row {row} is not finite; look at what the model returned")
    return values
