"""Child-Tuning: let only a part of each weight matrix move, drawn anew or chosen once.

Xu et al., *Raise a Child in Large Language Model*, 2021, arXiv:2109.05687. The task-free variant F
draws a mask of elements at every update; the task-driven variant D keeps the elements with the
largest Fisher information. The authors' code lets decoupled weight decay move masked weights; here
a masked weight keeps its bits.
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from sftjax.core import PyTree, flatten, map_with_path
from sftjax.select.part import Part, named


class BernoulliState(NamedTuple):
    """What the draws depend on."""

    updates: ArrayLike
    """(), int32: updates made."""
    key: Array
    part: Part


class ElementsState(NamedTuple):
    """The mask is an argument of the compiled step, not one of its constants."""

    mask: PyTree
    """bool, of the params' shapes; holes where every element moves."""
    inner: optax.OptState
    part: Part


def bernoulli_gradients(keep: float, key: Array) -> optax.GradientTransformation:
    r"""Keep each element of the gradient with probability p: $g \leftarrow g\, m / p$ (variant F).

    The mask is drawn anew at every update, from the key, the number of the update and the leaf's
    path alone. Division by p keeps the gradient's expectation. Stands before Adam. Adam's moments
    remember earlier draws, so an element that is masked now may still move; the mask is noise on
    the gradient, not a freeze.

    Args:
      keep: p, in (0, 1]; the paper's best lie in 0.2 to 0.4.
      key: PRNG key.

    Raises:
      ValueError: if `keep` lies outside (0, 1].

    >>> tx = bernoulli_gradients(0.5, jax.random.key(0))
    >>> grads = {"w": jnp.ones(6)}
    >>> kept, _ = tx.update(grads, tx.init(grads))
    >>> sorted(set(kept["w"].tolist()))
    [0.0, 2.0]
    """
    _check_keep(keep)

    def init(params: PyTree) -> BernoulliState:
        part = Part(
            f"Child-Tuning F: {keep:.1%} of each gradient's elements, drawn anew at every update",
            dict.fromkeys(flatten(params), keep),
        )
        # A copy: the state is donated, and the caller's key would go with it.
        return BernoulliState(jnp.zeros((), jnp.int32), jnp.copy(key), part)

    def update(
        updates: PyTree, state: BernoulliState, params: PyTree | None = None
    ) -> tuple[PyTree, BernoulliState]:
        del params
        now = jax.random.fold_in(state.key, state.updates)

        def draw(path: str, grad: Array) -> Array:
            # crc32 and not hash(): the latter is salted, and another process would draw otherwise.
            mask = jax.random.bernoulli(
                jax.random.fold_in(now, zlib.crc32(path.encode())), keep, grad.shape
            )
            return jnp.where(mask, grad / keep, 0).astype(grad.dtype)

        following = state._replace(updates=optax.safe_increment(state.updates))
        return map_with_path(draw, updates), following

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def fisher_mask(importance: PyTree, keep: float) -> PyTree:
    """Choose the share `keep` of all scalars with the largest importance (variant D).

    Exactly `round(keep * N)` of the N scalars in all leaves together (at least one) are chosen;
    among equal ones at the edge, those that come first in the tree.

    Args:
      importance: Fisher information, finite and >= 0; holes stay holes (every element moves).
      keep: in (0, 1]; the paper uses 0.3.

    Returns:
      A tree of numpy bool arrays of the importance's shapes, for `only_elements`.

    Raises:
      ValueError: if `keep` lies outside (0, 1], there is no leaf, or an importance is negative or
        not finite; names the leaf.

    >>> mask = fisher_mask({"a": jnp.array([3.0, 1.0]), "b": jnp.array([[2.0], [5.0]])}, 0.5)
    >>> mask["a"].tolist(), mask["b"].tolist()
    ([True, False], [[False], [True]])
    """
    _check_keep(keep)
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(importance).items()}
    if not leaves:
        raise ValueError("the tree of importances is empty: there is nothing to choose from")
    for path, leaf in leaves.items():
        if not np.all(np.isfinite(leaf)) or np.any(leaf < 0):
            raise ValueError(
                f"the importance of {path} holds negative, infinite or NaN values; Fisher "
                "information is finite and >= 0: look at the loss it was taken from"
            )
    every = np.concatenate([leaf.ravel() for leaf in leaves.values()])
    chosen = max(1, round(keep * every.size))
    edge = np.partition(every, every.size - chosen)[every.size - chosen]
    taken = every > edge
    taken[np.flatnonzero(every == edge)[: chosen - int(taken.sum())]] = True
    cuts = np.cumsum([leaf.size for leaf in leaves.values()])[:-1]
    pieces = dict(zip(leaves, np.split(taken, cuts), strict=True))
    return map_with_path(lambda path, leaf: pieces[path].reshape(leaf.shape), importance)


def only_elements(
    tx: optax.GradientTransformation, mask: PyTree
) -> optax.GradientTransformationExtraArgs:
    """Let `tx` move only the elements where `mask` is true; the others keep their bits.

    Gradients are masked before `tx` (so that moments and a clipped norm know only what moves) and
    updates after it (so that decay and the pull toward an anchor do not move the rest).

    Args:
      tx: any optimizer, decay included.
      mask: bool arrays of the shapes of the trainable leaves; a leaf without one moves whole.

    Returns:
      A transform. The mask lies in its state: one byte for each masked scalar.

    Raises:
      ValueError: from `init`, if the mask names a leaf that does not move, has another shape than
        its leaf, or is not boolean.

    >>> tx = only_elements(optax.adamw(0.1), {"w": np.array([True, False]), "head": None})
    >>> w = {"w": jnp.ones(2), "head": jnp.ones(1)}
    >>> updates, _ = tx.update(w, tx.init(w), w)
    >>> w = optax.apply_updates(w, updates)
    >>> w["w"][1] == 1, w["head"][0] == 1
    (Array(True, dtype=bool), Array(False, dtype=bool))
    """
    inner = optax.with_extra_args_support(tx)
    masks = flatten(mask)

    def init(params: PyTree) -> ElementsState:
        leaves = flatten(params)
        if leaves:  # optax asks with a placeholder for the params; then there is nothing to check
            _check_mask(masks, leaves)
        held = map_with_path(
            lambda path, _: jnp.array(masks[path]) if path in masks else None, params
        )
        return ElementsState(held, inner.init(params), _part(masks, params))

    def update(
        updates: PyTree, state: ElementsState, params: PyTree | None = None, **extra: object
    ) -> tuple[PyTree, ElementsState]:
        held = flatten(state.mask)

        def keep(rest: float) -> Callable[[str, Array], Array]:
            return lambda path, leaf: (
                jnp.where(held[path], leaf, rest).astype(leaf.dtype) if path in held else leaf
            )

        grads = map_with_path(keep(0.0), updates)
        moved, following = inner.update(grads, state.inner, params, **extra)
        # -0.0 is what leaves every float as it is: adding 0.0 would turn a weight of -0.0 to 0.0.
        return map_with_path(keep(-0.0), moved), state._replace(inner=following)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def _check_keep(keep: float) -> None:
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep is {keep}; it is the share of elements that move, in (0, 1]")


def _part(masks: dict[str, Array], params: PyTree) -> Part:
    # A mask that is being traced has its values later, and cannot say how many it lets move.
    known = {path: piece for path, piece in masks.items() if not isinstance(piece, Tracer)}
    chosen = {path: int(np.count_nonzero(piece)) for path, piece in known.items()}
    size = sum(piece.size for piece in known.values())
    where = named([path for path in flatten(params) if path in masks], params)
    whole = named([path for path in flatten(params) if path not in masks], params)
    return Part(
        f"Child-Tuning D: {sum(chosen.values()):,} of {size:,} elements ({where}), chosen once"
        + (f"; {whole}: all elements" if whole else ""),
        {path: chosen[path] / piece.size for path, piece in known.items()},
    )


def _check_mask(masks: dict[str, Array], leaves: dict[str, Array]) -> None:
    for path, piece in masks.items():
        if path not in leaves:
            raise ValueError(
                f"the mask names {path}, which is not among the {len(leaves)} leaves that move; "
                "make the importance from the trainable leaves"
            )
        if piece.shape != leaves[path].shape or piece.dtype != np.bool_:
            raise ValueError(
                f"the mask of {path} is {piece.dtype}{list(piece.shape)}, the leaf has shape "
                f"{list(leaves[path].shape)}; a mask is a bool array of its leaf's shape"
            )
