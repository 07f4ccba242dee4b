r"""Train the difference to the pretrained weights, $w = w_0 + \delta$, instead of the weights.

Plain weight decay on $\delta$ is then decay toward the anchor, with the same strength and the same
dose; $w_0$ may stay in bfloat16 while $\delta$ and the moments are float32, so no small update is
rounded away; and a checkpoint is $\delta$ and the hash of what it stands on. A leaf without a base
(a fresh head) is trained as itself.

    delta = to_difference(params, anchor)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(strength, mask=anchored(anchor)),  # this is the anchor
        add_decayed_unanchored(0.01),  # a fresh head decays to zero
        optax.scale_by_learning_rate(learning_rate),
    )
    state, fixed = train.init(delta, trainable, tx, key, anchor=anchor)
    step = train.make_step(objective, tx, view=add_base)

With no fresh leaf, `optax.adamw(learning_rate, weight_decay=strength)` is all there is to say.
Transforms that subtract the anchor themselves (`add_decayed_difference`, and so `anchor.adamw`) do
not belong in this chain: they would subtract it twice.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sftjax.core import Fixed, PyTree, flatten, holes, nearest
from sftjax.core.paths import path_of


def to_difference(params: PyTree, anchor: PyTree) -> PyTree:
    r"""Return $\delta = w - w_0$ in float32 where there is an anchor, the leaf itself elsewhere.

    Args:
      params: the full params, or the trainable part of them.
      anchor: as `anchor_of` gives it; of the same structure, holes where a leaf has no base.

    Returns:
      The tree to give `train.init`: zeros, when `params` are the pretrained ones.

    Raises:
      ValueError: if the anchor is empty.

    >>> params = {"trunk": jnp.ones(2, jnp.bfloat16), "head": jnp.ones(2)}
    >>> to_difference(params, {"trunk": params["trunk"], "head": None})
    {'head': Array([1., 1.], dtype=float32), 'trunk': Array([0., 0.], dtype=float32)}
    """
    _require(anchor)

    def subtract(value: Array | None, origin: Array | None) -> Array | None:
        if value is None or origin is None:
            return value
        return _wide(value) - _wide(origin)

    return jax.tree.map(subtract, params, anchor, is_leaf=holes)


def materialize(delta: PyTree, base: PyTree) -> PyTree:
    r"""Return $w = w_0 + \delta$: the base where nothing was trained, the leaf where no base is.

    Args:
      delta: the trained differences, holes where nothing was trained.
      base: the anchor, or the full pretrained params; holes where `delta` holds the leaf itself.

    Returns:
      The weights; sums are float32 whatever the base is.

    >>> materialize({"a": jnp.ones(1), "b": None}, {"a": jnp.ones(1), "b": jnp.zeros(1)})
    {'a': Array([2.], dtype=float32), 'b': Array([0.], dtype=float32)}
    """

    def add(change: Array | None, origin: Array | None) -> Array | None:
        if change is None:
            return origin
        return change if origin is None else _wide(origin) + _wide(change)

    return jax.tree.map(add, delta, base, is_leaf=holes)


def add_base(trainable: PyTree, fixed: Fixed, key: Array | None = None) -> PyTree:
    """Return the weights that trained differences stand for: the `View` of this parameterisation.

    Pass it to `train.make_step(view=add_base)`, and call it before evaluating or saving a model.

    Raises:
      ValueError: when tracing, if there is no anchor to add.

    >>> fixed = Fixed({"w": None}, {}, anchor={"w": jnp.ones(2)})
    >>> add_base({"w": jnp.full(2, 0.5)}, fixed)
    {'w': Array([1.5, 1.5], dtype=float32)}
    """
    del key
    _require(fixed.anchor)
    return materialize(trainable, fixed.anchor)


def anchored(anchor: PyTree) -> PyTree:
    """Return the bool tree of the leaves that have an anchor: where decay is the anchor.

    >>> anchored({"trunk": jnp.ones(2), "head": None})
    {'head': False, 'trunk': True}
    """
    return jax.tree.map(lambda origin: origin is not None, anchor, is_leaf=holes)


def tree_sha256(tree: PyTree) -> str:
    """Return the hash of a tree's leaves: their paths (sorted), dtypes, shapes and bytes.

    >>> a, b = tree_sha256({"w": np.zeros(2)}), tree_sha256({"w": np.zeros(2), "b": None})
    >>> a == b, a == tree_sha256({"w": np.zeros((2, 1))})
    (True, False)
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        array = np.asarray(leaf, order="C")
        digest.update(f"{path}\0{array.dtype}\0{array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_difference(
    path: str | os.PathLike[str],
    delta: PyTree,
    base: PyTree,
    *,
    base_sha256: str | None = None,
) -> None:
    """Write a safetensors file of the trained leaves alone, with the hash of what they stand on.

    Args:
      path: replaced whole or not at all.
      delta: the trained differences (`state.trainable`).
      base: the anchor or, better, all the pretrained leaves (`combine(fixed.anchor,
        fixed.frozen)`), so that the frozen ones are checked too; holes where `delta` holds the
        leaf itself.
      base_sha256: `tree_sha256(base)`, if it is known from an earlier save.

    Raises:
      ValueError: if nothing was trained.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "difference.safetensors"
    >>> base = {"trunk": jnp.ones(2), "head": None}
    >>> save_difference(path, {"trunk": jnp.full(2, 0.5), "head": jnp.ones(1)}, base)
    >>> delta, base = load_difference(path, {"trunk": jnp.ones(2), "head": jnp.zeros(1)})
    >>> materialize(delta, base)
    {'head': Array([1.], dtype=float32), 'trunk': Array([1.5, 1.5], dtype=float32)}
    """
    from safetensors.numpy import save_file

    leaves = {name: np.asarray(_wide(leaf), order="C") for name, leaf in flatten(delta).items()}
    if not leaves:
        raise ValueError("there is no trained leaf to save: every leaf of the difference is a hole")
    based = flatten(base)
    metadata = {
        "format": "difference",
        "base_sha256": base_sha256 or tree_sha256(base),
        "whole": json.dumps([name for name in leaves if name not in based]),
    }
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    save_file(leaves, partial, metadata=metadata)
    partial.replace(path)


def load_difference(path: str | os.PathLike[str], params: PyTree) -> tuple[PyTree, PyTree]:
    """Read differences back, after checking that `params` are the weights they stand on.

    Args:
      path: a file of `save_difference`.
      params: the pretrained params; what they hold where the file has a whole leaf (a fresh head)
        does not matter.

    Returns:
      `(delta, base)`, both of the structure of `params`; `materialize(delta, base)` are the
      fine-tuned params.

    Raises:
      ValueError: if the file is no such file, or stands on other weights or another structure.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            leaves = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}); write it again"
        ) from None
    if facts.get("format") != "difference":
        raise ValueError(
            f"{path} holds no difference (its metadata says {facts or 'nothing'}); it may be a "
            "whole model, which hub.load reads"
        )
    whole = set(json.loads(facts["whole"]))
    found: dict[str, Array | None] = {}

    def origin(keys: tuple[Any, ...], leaf: Array | None) -> Array | None:
        name = path_of(keys)
        found[name] = leaf
        return None if name in whole else leaf

    base = jax.tree_util.tree_map_with_path(origin, params, is_leaf=holes)
    for name, leaf in leaves.items():
        if name not in found:
            raise ValueError(
                f"{path} has a leaf at {name!r} and the params have none there; nearest: "
                f"{nearest(name, list(found))}. Load the model with the head it was trained with."
            )
        if (there := found[name]) is not None and there.shape != leaf.shape:
            raise ValueError(
                f"{name} has shape {leaf.shape} in {path} and {there.shape} in the params; load "
                "the model with the same head and vocabulary"
            )
    if (seen := tree_sha256(base)) != facts["base_sha256"]:
        raise ValueError(
            f"{path} stands on weights with sha256 {facts['base_sha256']}, and these params have "
            f"{seen}: load the very checkpoint (and dtype) that was fine-tuned"
        )
    delta = jax.tree_util.tree_map_with_path(
        lambda keys, _: jnp.asarray(leaves[path_of(keys)]) if path_of(keys) in leaves else None,
        params,
        is_leaf=holes,
    )
    return delta, base


def _wide(leaf: Array) -> Array:
    """Return a leaf in float32, or wider if it is."""
    return jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))


def _require(anchor: PyTree | None) -> None:
    if anchor is None or not jax.tree.leaves(anchor):
        raise ValueError(
            "a difference needs the weights it is the difference to: pass "
            "anchor=anchor_of(params, trainable), with at least one pretrained leaf that moves"
        )
