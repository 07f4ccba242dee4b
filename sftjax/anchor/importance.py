"""Importance weights of an anchor: scaled to be comparable, checked, saved and read back.

A Fisher is kept on disk as it was found, and scaled by `normalized` when it is used: how it is
scaled depends on which leaves are anchored in the run at hand.
"""

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.core import PyTree, count, flatten, map_with_path
from sftjax.core.importance import check_finite, check_form


class Facts(NamedTuple):
    """Where an importance comes from; written beside it."""

    weights: str
    """Hash of the weights it was found at, such as `LoadReport.sha256`."""
    rows: int
    """How many examples it is the mean over."""
    labels: str
    """Whose labels: "expected", "sampled" or "given" (`fisher`)."""


def normalized(importance: PyTree, *, cap: float | None = None) -> PyTree:
    r"""Scale an importance to a mean of 1 over all its scalars, so that a dose means what it says.

    $$ F_i \leftarrow \min(s F_i, c), \qquad s \text{ such that } \operatorname{mean} F = 1 $$

    A Fisher spans many orders of magnitude. Under a decoupled pull, a scalar with
    $\eta_t \lambda F_i > 1$ would overshoot its anchor; at the cap of `importance_cap` it is held
    at the anchor exactly, which is as much as can be held.

    Args:
      importance: float leaves >= 0, holes where there is none.
      cap: $c > 1$; `None` scales only.

    Returns:
      Float32 leaves of the same structure.

    Raises:
      ValueError: if all is zero, or so much is zero that no mean of 1 lies below the cap.

    >>> normalized({"w": jnp.array([1.0, 3.0]), "b": None})
    {'b': None, 'w': Array([0.5, 1.5], dtype=float32)}
    >>> normalized({"w": jnp.array([0.0, 1.0, 1.0, 98.0])}, cap=2.5)["w"]
    Array([0.  , 0.75, 0.75, 2.5 ], dtype=float32)
    """
    size = count(importance)
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), importance)
    largest = max((float(jnp.max(leaf)) for leaf in jax.tree.leaves(wide)), default=0.0)
    if not 0.0 < largest < float("inf"):
        raise ValueError(
            f"the largest importance is {largest}: there is nothing to scale to a mean of 1; "
            "`check_importance` names the leaf"
        )
    wide = jax.tree.map(lambda leaf: leaf / largest, wide)  # within float32, whatever its scale

    top = float("inf") if cap is None else cap
    sums = jax.jit(
        lambda wide, scale: [
            jnp.sum(jnp.minimum(scale * leaf, top)) for leaf in jax.tree.leaves(wide)
        ]
    )

    def mean(scale: float) -> float:
        return sum(map(float, sums(wide, scale))) / size

    scale = 1.0 / mean(1.0) if cap is None else _scale_below(cap, mean, wide, size)
    return jax.tree.map(lambda leaf: jnp.minimum(scale * leaf, top), wide)


def check_importance(importance: PyTree, anchor: PyTree, *, cap: float | None = None) -> None:
    """Refuse an importance that does not fit its anchor, before anything is compiled.

    Args:
      importance: to be checked.
      anchor: what it weighs: the same paths and shapes.
      cap: the largest allowed value, as `importance_cap` gives it; `None` allows any.

    Raises:
      ValueError: if a leaf is missing or too many, or has another shape, or holds a NaN, an
        infinity, a negative number or one above the cap. Names the path.

    >>> check_importance({"w": jnp.ones(3)}, {"w": jnp.zeros(3)})
    """
    check_form(importance, anchor)
    check_finite(importance)
    for path, leaf in flatten(importance).items():
        low, high = float(jnp.min(leaf)), float(jnp.max(leaf))
        if low < 0.0:
            raise ValueError(
                f"the importance of {path} is as low as {low:.3g}; a negative weight would push "
                "away from the anchor. A Fisher is never negative"
            )
        if cap is not None and high > cap * (1.0 + 1e-6):
            raise ValueError(
                f"the importance of {path} is as high as {high:.3g}, where the pull would "
                f"overshoot the anchor in one update (eta * lambda * F > 1); scale it with "
                f"normalized(importance, cap={cap:.4g}) or lower the dose"
            )


def save_importance(path: str | os.PathLike[str], importance: PyTree, facts: Facts) -> None:
    """Write an importance to one safetensors file, in one move: the old file or the new, no half.

    Args:
      path: where to; an existing file is replaced.
      importance: as `fisher` gives it; leaves are written in float32.
      facts: where it comes from, kept in the file's header.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "fisher.safetensors"
    >>> save_importance(path, {"w": jnp.ones(3), "b": None}, Facts("e3b0c4", 200, "expected"))
    >>> load_importance(path, {"w": jnp.zeros(3), "b": None}, weights="e3b0c4")
    ({'b': None, 'w': Array([1., 1., 1.], dtype=float32)},
     Facts(weights='e3b0c4', rows=200, labels='expected'))
    """
    from safetensors.numpy import save_file

    path = pathlib.Path(path)
    leaves = {name: np.asarray(leaf, np.float32) for name, leaf in flatten(importance).items()}
    if not leaves:
        raise ValueError("the importance has no leaf: there is nothing to save")
    text = {name: str(value) for name, value in facts._asdict().items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file({name: np.require(leaf, requirements="C") for name, leaf in leaves.items()},
                  partial, metadata=text)  # fmt: skip
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_importance(
    path: str | os.PathLike[str], like: PyTree, *, weights: str | None = None
) -> tuple[PyTree, Facts]:
    """Read an importance for the leaves of an anchor.

    Args:
      path: a file of `save_importance`.
      like: the anchor. A file may know more leaves than are anchored now; those stay in it.
      weights: hash of the weights of this run; must be the one in the file. `None` asks nothing.

    Returns:
      The importance, float32, holes where `like` has them; and the file's facts.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is broken or says nothing of where it comes from, belongs to other
        weights, or lacks a leaf or its shape.
    """
    from safetensors import SafetensorError, safe_open

    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; write it with save_importance")
    try:
        with safe_open(path, framework="np") as file:
            text = file.metadata() or {}
            known = set(file.keys())
            leaves = {name: file.get_tensor(name) for name in flatten(like) if name in known}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); write it again with save_importance"
        ) from error
    if not set(Facts._fields) <= text.keys():
        raise ValueError(
            f"{path} does not say where it comes from (needs {', '.join(Facts._fields)}); write it "
            "with save_importance"
        )
    facts = Facts(text["weights"], int(text["rows"]), text["labels"])
    if weights is not None and facts.weights != weights:
        raise ValueError(
            f"{path} is the importance of other weights: it was found at {facts.weights} and this "
            f"run starts at {weights}; find it again with `fisher`"
        )
    for name, leaf in flatten(like).items():
        if name not in leaves or leaves[name].shape != jnp.shape(leaf):
            has = leaves[name].shape if name in leaves else "nothing"
            raise ValueError(
                f"{path} has {has} for {name}, and the anchor has shape {jnp.shape(leaf)}; find it "
                "again with `fisher` for this selection"
            )
    return map_with_path(lambda name, _: jnp.asarray(leaves[name], jnp.float32), like), facts


def _scale_below(cap: float, mean: Callable[[float], float], wide: PyTree, size: int) -> float:
    """Find the scale at which the capped mean is 1: it grows with the scale, so halve a bracket."""
    if not cap > 1.0:
        raise ValueError(f"cap is {cap}; it must be above 1, the mean that the importance gets")
    nonzero = sum(int(jnp.sum(leaf > 0)) for leaf in jax.tree.leaves(wide))
    if nonzero * cap <= size:
        raise ValueError(
            f"only {nonzero} of {size} scalars have an importance above zero: capped at {cap:.4g} "
            f"their mean over all is at most {nonzero * cap / size:.3g}. Find it on more rows, "
            "leave out what the data never touches (word embeddings), or lower the dose"
        )
    low = high = 1.0 / mean(1.0)
    while mean(high) < 1.0:
        low, high = high, 4.0 * high
        if high == float("inf"):
            raise ValueError("the importance spans more than float32; raise the cap")
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if mean(middle) < 1.0 else (low, middle)
    return high
