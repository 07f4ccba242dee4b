r"""Projections of the displacement $\delta = w - w_0$: the last word in a chain of updates.

They stand after `scale_by_learning_rate`, where the update is what will be added to the weights.
A leaf without an anchor is never touched. Norms are sums over whole tensors: under `jit` they are
the same however the tensors and the batch are sharded.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import PyTree, flatten, holes, map_with_path, nearest

Norm = Literal["l2", "mars", "max"]
"""What of a tensor is measured, and shortened, as one: all of it (`l2`, Euclidean), every output
row (`mars`, by its L1 norm) or every entry (`max`)."""


def selective_projection_decay(strength: float = 1.0) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the displacement of a tensor where the gradient asks for less of it and it grew.

    With $\delta$ the displacement before the update and $\tilde\delta = \delta + u$ after it, and
    for every anchored tensor on its own,

    $$ r = \mathrm{clip}\left( \frac{\|\tilde\delta\| - \|\delta\|}{\|\tilde\delta\|}, 0, 1 \right),
       \quad \tilde\delta \leftarrow (1 - \lambda r)\,\tilde\delta
       \quad \text{where } \langle g, \delta \rangle > 0. $$

    $\lambda = 1$ is projection to the previous radius, whatever the optimizer or the learning rate,
    so there is no dose; $\lambda r$ stops at 1, the anchor itself. It needs an optimizer whose
    update is not along $-g$ (Adam, momentum): under plain gradient descent it all but never fires.

    Args:
      strength: $\lambda \ge 0$.

    Returns:
      A transform whose `update` takes the extra arguments `anchor` and `grad` (the gradient before
      any transform), as `train.make_step` gives them.

    Raises:
      ValueError: if the strength is negative or not finite; in `update`, without its arguments.

    References:
      Tian et al., *Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models*, 2024,
      arXiv:2411.01713

    >>> tx = selective_projection_decay(1.0)
    >>> w, origin = {"a": jnp.array([1.0, 0.0])}, {"a": jnp.zeros(2)}
    >>> update, grad = {"a": jnp.array([0.0, 1.0])}, {"a": jnp.array([1.0, 0.0])}
    >>> update, _ = tx.update(update, tx.init(w), w, anchor=origin, grad=grad)
    >>> float(jnp.linalg.norm(w["a"] + update["a"]))  # the radius stays
    1.0
    """
    _check("strength", strength)

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        *,
        anchor: PyTree | None = None,
        grad: PyTree | None = None,
        **others: object,
    ) -> tuple[PyTree, optax.EmptyState]:
        del others
        if params is None or anchor is None or grad is None:
            raise ValueError(
                "selective_projection_decay needs the params, the anchor and the gradient: "
                "tx.update(updates, state, params, anchor=..., grad=...)"
            )

        def decay(
            update: Array | None, value: Any, origin: Array | None, gradient: Any
        ) -> Array | None:
            if update is None or origin is None:
                return update
            before = _difference(value, origin)
            after = before + update
            start, end = _length(before, "l2"), _length(after, "l2")
            # Both lengths are 0 in the first step of a tensor without gradient.
            growth = jnp.clip((end - start) / jnp.where(end > 0, end, 1.0), 0.0, 1.0)
            fires = (jnp.sum(gradient * before) > 0) & (growth > 0)
            shrunk = (1.0 - jnp.clip(strength * growth, 0.0, 1.0)) * after - before
            return jnp.where(fires, shrunk.astype(update.dtype), update)

        return jax.tree.map(decay, updates, params, anchor, grad, is_leaf=holes), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)  # type: ignore[arg-type]


def project_displacement(
    radii: ArrayLike | PyTree, norm: Norm = "l2"
) -> optax.GradientTransformationExtraArgs:
    r"""Keep every anchored tensor inside a ball around its anchor: $\|w - w_0\| \le \gamma$.

    `norm="max"` is a box, $|w_j - w_{0j}| \le \gamma$. See `project` for the norms.

    Args:
      radii: $\gamma$, one for all or a tree of them; an anchored leaf without one is free.
      norm: of `Norm`.

    Returns:
      A transform whose `update` takes the extra argument `anchor`. An update that ends inside the
      ball passes through as it is.

    Raises:
      ValueError: if a radius is negative, not finite or not a scalar, or the norm is unknown; in
        `update`, without an anchor, or for a radius whose path names no anchored leaf.

    >>> tx = project_displacement(1.0)
    >>> w = {"a": jnp.zeros(2)}
    >>> update, _ = tx.update({"a": jnp.array([3.0, 4.0])}, tx.init(w), w, anchor=w)
    >>> update["a"].round(6).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    _check_norm(norm)
    for path, radius in flatten(radii).items():
        _check(f"the radius of {path!r}" if path else "the radius", radius)

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        *,
        anchor: PyTree | None = None,
        **others: object,
    ) -> tuple[PyTree, optax.EmptyState]:
        del others
        if params is None or anchor is None:
            raise ValueError(
                "project_displacement needs the params and the anchor: "
                "tx.update(updates, state, params, anchor=...)"
            )
        after = jax.tree.map(
            lambda update, value: None if update is None else value + update,
            updates,
            params,
            is_leaf=holes,
        )

        def toward(update: Array | None, value: Any, free: Any, held: Any) -> Array | None:
            # Where nothing was shortened the update itself goes on, to the last bit.
            return None if update is None else jnp.where(held == free, update, held - value)

        held = project(after, anchor, radii, norm)
        return jax.tree.map(toward, updates, params, after, held, is_leaf=holes), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)  # type: ignore[arg-type]


def project(
    trainable: PyTree, anchor: PyTree, radii: ArrayLike | PyTree, norm: Norm = "l2"
) -> PyTree:
    r"""Return the weights with each displacement scaled into its ball:
    $w_0 + \min(1, \gamma / \|\delta\|)\,\delta$.

    - `l2`: a tensor is scaled as a whole by its Euclidean norm; this is the nearest point.
    - `mars`: every output row is scaled by its own L1 norm, so that the largest of them (the
      maximum absolute row sum, the operator norm of $\delta$ between max norms) is at most
      $\gamma$. Outputs lie on the **last** axis, as in Flax kernels `(in, out)` and
      `(height, width, in, out)`: the sum runs over all the others. An entry of a vector is a row.
      Short rows stay as they are (one version of the authors' code lengthens them to $\gamma$).
    - `max`: every entry is clipped; this is the nearest point.

    Idempotent up to rounding, and the identity inside the ball.

    Args:
      trainable: the weights, holes where frozen.
      anchor: $w_0$, of the same structure, holes where a leaf is free.
      radii: $\gamma$, one for all or a tree; an anchored leaf without one is free.
      norm: of `Norm`.

    Raises:
      ValueError: if the norm is unknown, or a radius is no scalar or names no anchored leaf.

    References:
      Tian et al., *Trainable Projected Gradient Method for Robust Fine-tuning*, 2023,
      arXiv:2303.10720

    >>> w, origin = {"a": jnp.array([[3.0, 0.1], [-1.0, 0.2]])}, {"a": jnp.zeros((2, 2))}
    >>> project(w, origin, 1.0, "mars")["a"].tolist()  # the first column had 4
    [[0.75, 0.10000000149011612], [-0.25, 0.20000000298023224]]
    """
    _check_norm(norm)

    def shorten(
        value: Array | None, origin: Array | None, radius: ArrayLike | None
    ) -> Array | None:
        if value is None or origin is None or radius is None:
            return value
        away = _difference(value, origin)
        length = _length(away, norm)
        factor = radius / jnp.where(length > 0, length, 1.0)
        # On the sphere itself the scaled branch is taken: the radius keeps its derivative there.
        return jnp.where(length >= radius, (origin + factor * away).astype(value.dtype), value)

    return jax.tree.map(shorten, trainable, anchor, _radius_tree(radii, anchor), is_leaf=holes)


def displacement_norms(trainable: PyTree, anchor: PyTree, norm: Norm = "l2") -> PyTree:
    r"""Return $\|w - w_0\|$ of every anchored tensor, holes elsewhere; `project` says of what.

    >>> w = {"a": jnp.array([3.0, 4.0]), "head": jnp.ones(2)}
    >>> norms = displacement_norms(w, {"a": jnp.zeros(2), "head": None})
    >>> float(norms["a"]), norms["head"]
    (5.0, None)
    """
    _check_norm(norm)

    def measure(value: Array | None, origin: Array | None) -> Array | None:
        if value is None or origin is None:
            return None
        return jnp.max(_length(_difference(value, origin), norm))

    return jax.tree.map(measure, trainable, anchor, is_leaf=holes)


def _difference(value: Array, origin: Array) -> Array:
    """Return `value - origin` in float32, or in float64 where the weights are."""
    dtype = jnp.promote_types(value.dtype, jnp.float32)
    return value.astype(dtype) - origin.astype(dtype)


def _length(away: Array, norm: Norm) -> Array:
    """Return the lengths of what the norm takes as one, in a shape that broadcasts to `away`."""
    if norm == "l2":
        return jnp.sqrt(jnp.sum(jnp.square(away)))
    if norm == "mars":
        return jnp.sum(jnp.abs(away), axis=tuple(range(away.ndim - 1)), keepdims=True)
    return jnp.abs(away)


def _radius_tree(radii: ArrayLike | PyTree, anchor: PyTree) -> PyTree:
    """Return a radius, or a hole, for every leaf of the anchor."""
    table = flatten(radii)
    for path, radius in table.items():
        if jnp.ndim(radius) != 0:
            raise ValueError(
                f"the radius of {path!r} has shape {jnp.shape(radius)}; a radius is one number for "
                "the whole tensor"
            )
    if "" in table:
        return map_with_path(lambda path, _: table[""], anchor)
    held = list(flatten(anchor))
    for path in table:
        if path not in held:
            raise ValueError(
                f"the radius of {path!r} names no anchored leaf; nearest: {nearest(path, held)}"
            )
    return map_with_path(lambda path, _: table.get(path), anchor)


def _check(name: str, value: ArrayLike) -> None:
    """Refuse a number that cannot be; arrays (a sweep's hyperparameters) have no value yet."""
    if isinstance(value, int | float) and not 0.0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}; it is a finite number >= 0")


def _check_norm(norm: str) -> None:
    if norm not in get_args(Norm):
        raise ValueError(f"norm is {norm!r}; the norms are {', '.join(get_args(Norm))}")
