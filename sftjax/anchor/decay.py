"""L2-SP: decay toward the pretrained weights instead of toward zero.

The anchor reaches the transforms as an extra argument of `tx.update`, never through the optimizer
state: there it would be checkpointed, and captured again from the wrong weights on resume. Where
the anchor has a hole, the leaf is not anchored.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import PyTree, flatten, holes, map_with_path, matches, nearest, partition
from sftjax.core.importance import check_form


class DecayState(NamedTuple):
    """How many updates have been made, for strengths that follow a schedule."""

    updates: ArrayLike
    """(), int32."""


def anchor_of(
    params: PyTree,
    trainable: PyTree,
    *,
    new: Collection[str] = (),
    exclude: Collection[str] = (),
) -> PyTree:
    """Return the pretrained values to hold on to: those of trainable leaves that have one.

    Args:
      params: the pretrained params.
      trainable: bool tree of the same structure; frozen leaves need no anchor.
      new: paths of leaves without a pretrained value (a fresh head): never anchored.
      exclude: patterns of further leaves to leave free.

    Returns:
      The anchored leaves of `params`, holes elsewhere. They are the arrays of `params` themselves:
      `train.init` copies what moves, so the step never donates them.

    Raises:
      ValueError: if an `exclude` pattern matches nothing, or no leaf is left to anchor.

    >>> params = {"trunk": jnp.ones(2), "head": jnp.ones(2)}
    >>> anchor_of(params, {"trunk": True, "head": True}, new=["head"])
    {'head': None, 'trunk': Array([1., 1.], dtype=float32)}
    """
    paths = list(flatten(params))
    for pattern in exclude:
        if not any(matches(pattern, path) for path in paths):
            raise ValueError(
                f"exclude pattern {pattern!r} matches no leaf; nearest: {nearest(pattern, paths)}"
            )
    held = map_with_path(
        lambda path, moves: (
            bool(moves) and path not in new and not any(matches(p, path) for p in exclude)
        ),
        trainable,
    )
    if not any(jax.tree.leaves(held)):
        raise ValueError(
            "no leaf can be anchored: every trainable leaf is new, excluded, or frozen; train a "
            "pretrained leaf too (for example the rule 'last:1'), or hold nothing (no anchor; as a "
            "command --anchor none)"
        )
    return partition(params, held)[0]


def add_decayed_difference(
    strength: ArrayLike | optax.Schedule,
) -> optax.GradientTransformation:
    r"""Add the pull toward the anchor to the updates: $u \leftarrow u + \lambda F (w - w_0)$.

    Where the transform stands in the chain decides what it means:

    - before `scale_by_adam` it is **coupled**, a part of the gradient: the L2-SP of the paper, with
      penalty $\frac{\lambda}{2} \sum F (w - w_0)^2$. Converges to the ridge optimum.
    - after `scale_by_adam` and before `scale_by_learning_rate` it is **decoupled**, as AdamW's
      decay is: $w \leftarrow w - \eta_t \lambda (w - w_0)$. Converges to the optimum inside
      $\|w - w_0\|_\infty \le 1/\lambda$.

    Args:
      strength: $\lambda$, or a schedule of it over updates.

    Returns:
      A transform whose `update` takes the extra arguments `anchor` ($w_0$; `None`, or holes where
      a leaf is free) and `importance` ($F$, the anchor's structure; `None` is 1).

    References:
      Li et al., *Explicit Inductive Bias for Transfer Learning with CNNs*, 2018, arXiv:1802.01483

    >>> tx = add_decayed_difference(0.5)
    >>> w, w0 = {"a": jnp.array(3.0), "b": jnp.array(3.0)}, {"a": jnp.array(1.0), "b": None}
    >>> zero = {"a": jnp.array(0.0), "b": jnp.array(0.0)}
    >>> updates, _ = tx.update(zero, tx.init(w), w, anchor=w0)
    >>> float(updates["a"]), float(updates["b"])
    (1.0, 0.0)
    """

    def init(params: PyTree) -> DecayState:
        del params
        return DecayState(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree,
        state: DecayState,
        params: PyTree | None = None,
        *,
        anchor: PyTree | None = None,
        importance: PyTree | None = None,
        **others: object,
    ) -> tuple[PyTree, DecayState]:
        del others
        if params is None:
            raise ValueError("add_decayed_difference needs the params: tx.update(g, state, params)")
        following = DecayState(optax.safe_increment(state.updates))
        if anchor is None:
            return updates, following
        rate = strength(state.updates) if callable(strength) else strength

        def pull(
            update: Array | None, value: Any, origin: Array | None, weight: Array | None
        ) -> Array | None:
            if update is None or origin is None:
                return update
            away = value.astype(jnp.float32) - origin.astype(jnp.float32)
            away = away if weight is None else weight.astype(jnp.float32) * away
            return update + (rate * away).astype(update.dtype)

        weights = _weights(importance, anchor)
        return jax.tree.map(pull, updates, params, anchor, weights, is_leaf=holes), following

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def add_decayed_unanchored(weight_decay: float) -> optax.GradientTransformation:
    r"""Add plain decay, $u \leftarrow u + \beta w$, to the matrices that have no anchor.

    A fresh head has no pretrained value to return to, so it decays to zero, as in the L2-SP paper.
    Vectors (biases, norms) are left alone.

    Args:
      weight_decay: $\beta$; stands after `scale_by_adam` as AdamW's does.

    Returns:
      A transform whose `update` takes the extra argument `anchor`.

    >>> tx = add_decayed_unanchored(0.5)
    >>> w = {"trunk": jnp.ones((1, 1)), "head": jnp.ones((1, 1))}
    >>> updates, _ = tx.update(w, tx.init(w), w, anchor={"trunk": w["trunk"], "head": None})
    >>> float(updates["trunk"][0, 0]), float(updates["head"][0, 0])
    (1.0, 1.5)
    """

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        *,
        anchor: PyTree | None = None,
        **others: object,
    ) -> tuple[PyTree, optax.EmptyState]:
        del others
        if params is None:
            raise ValueError("add_decayed_unanchored needs the params: tx.update(g, state, params)")
        origins = jax.tree.map(lambda _: None, params) if anchor is None else anchor

        def decay(update: Array | None, value: Any, origin: Array | None) -> Array | None:
            if update is None or origin is not None or value.ndim < 2:
                return update
            return update + (weight_decay * value).astype(update.dtype)

        return jax.tree.map(decay, updates, params, origins, is_leaf=holes), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)  # type: ignore[arg-type]


def l2_sp_penalty(trainable: PyTree, anchor: PyTree, importance: PyTree | None = None) -> Array:
    r"""Return $\frac{1}{2} \sum F (w - w_0)^2$ over the anchored leaves, to add to a loss by hand.

    Its gradient is zero, not NaN, at the anchor itself.

    Args:
      trainable: the weights, any float dtype; summed in float32.
      anchor: the pretrained values, holes where a leaf is free.
      importance: $F$, of the anchor's structure; `None` is 1.

    Returns:
      (), float32.

    >>> float(l2_sp_penalty({"a": jnp.array([1.0, 3.0])}, {"a": jnp.array([1.0, 1.0])}))
    2.0
    """

    def half_square(
        value: Array | None, origin: Array | None, weight: Array | None
    ) -> Array | None:
        if value is None or origin is None:
            return None
        away = jnp.square(value.astype(jnp.float32) - origin.astype(jnp.float32))
        return 0.5 * jnp.sum(away if weight is None else weight.astype(jnp.float32) * away)

    weights = _weights(importance, anchor)
    terms = jax.tree.map(half_square, trainable, anchor, weights, is_leaf=holes)
    return sum(jax.tree.leaves(terms), start=jnp.zeros((), jnp.float32))


def _weights(importance: PyTree | None, anchor: PyTree) -> PyTree:
    """Return the importance, or holes in the anchor's structure: a weight of 1 everywhere."""
    if importance is not None:
        check_form(importance, anchor)
        return importance
    return jax.tree.map(lambda _: None, anchor, is_leaf=holes)
