"""Detectors of strange pictures on one model: fitted on normal rows, higher scores are stranger."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sftjax.core import Batch, PyTree
from sftjax.evaluate import (
    Gaussians,
    MemoryBank,
    Neighbours,
    energy_score,
    fit_gaussians,
    fit_memory_bank,
    fit_neighbours,
    knn_score,
    mahalanobis_score,
    msp_score,
    patch_distances,
    patch_features,
    picture_scores,
    predict,
    relative_mahalanobis_score,
)
from sftjax.models import ImageModel
from sftjax.recipes.streams import Stream
from sftjax.recipes.trunks import embedding, model_with

OF_LOGITS = ("energy", "msp")
"""Detectors that ask the model's own head."""


class Seen(NamedTuple):
    """What a model makes of rows; empty where no detector asks."""

    features: np.ndarray
    """(N, D)."""
    patches: np.ndarray
    """(N, h, w, D)."""
    logits: np.ndarray
    """(N, C)."""


class Detector(NamedTuple):
    """A fitted detector."""

    score: Callable[[Seen], np.ndarray]
    """-> (N,)."""
    state: Any
    """A pytree of arrays."""
    maps: Callable[[Seen], np.ndarray] | None = None
    """-> (N, h, w), where it knows places."""


def middle(stages: Sequence[str]) -> tuple[str, ...]:
    """Return two stages from the middle of a model: not the edges, not yet the task.

    >>> middle(("stem", "stage1", "stage2", "stage3", "stage4"))
    ('stage2', 'stage3')
    """
    own = [stage for stage in stages if stage != "stem"]
    last = len(own) - 1
    found = dict.fromkeys((own[round(last / 3)], own[round(2 * last / 3)]))
    return tuple(found)


class Viewer:
    """A model that looks at rows, for some detectors; compiled once."""

    def __init__(
        self, model: ImageModel, params: PyTree, methods: Sequence[str], stages: Sequence[str]
    ):
        """Take a model, and what will be asked of it.

        Raises:
          ValueError: if a stage is unknown, or a method asks a head that the model lacks.
        """
        self._params = params
        unknown = [stage for stage in stages if stage not in model.stages]
        if unknown:
            raise ValueError(
                f"this {model.family} has no stage {unknown[0]!r}; its stages are "
                f"{', '.join(model.stages)}"
            )
        asked = [name for name in methods if name in OF_LOGITS]
        if asked and model.head.kind != "image":
            raise ValueError(
                f"--methods {asked[0]} asks the model's own classes, and it has none; give a model "
                "that was tuned on the normal classes, or use knn"
            )
        runs: dict[str, Callable[[PyTree, Batch], Array]] = {}
        if any(name.endswith(("knn", "mahalanobis")) for name in methods):
            trunk = embedding(model)
            runs["features"] = lambda params, batch: trunk.apply(params, batch, None)
        if "patchcore" in methods:
            cuts = [model_with(model, "map", stage) for stage in stages]

            def patches(params: PyTree, batch: Batch) -> Array:
                found = [cut.apply(params, batch, None) for cut in cuts]
                return patch_features(*sorted(found, key=lambda m: -m.shape[1]))

            runs["patches"] = patches
        if asked:
            runs["logits"] = lambda params, batch: model.apply(params, batch, None)
        self._runs = {name: jax.jit(run) for name, run in runs.items()}

    def __call__(self, stream: Stream, rows: int) -> Seen:
        """Look at every row of one pass."""
        none = np.zeros((rows, 0), np.float32)
        found = {
            name: np.asarray(predict(run, self._params, stream, rows))
            for name, run in self._runs.items()
        }
        return Seen(*(found.get(name, none) for name in Seen._fields))


def fit_detector(
    method: str, seen: Seen, labels: np.ndarray, *, neighbours: int, coreset: float, seed: int
) -> Detector:
    """Fit one detector on normal rows.

    Args:
      method: see `anomaly_job.Detector`.
      seen: of the normal rows.
      labels: (N,) which normal class each is of.
      neighbours: of knn.
      coreset: share of patches kept.
      seed: of the coreset.

    Raises:
      ValueError: if there are too few rows for the method.
    """
    if method == "knn":
        if len(seen.features) < neighbours:
            raise ValueError(
                f"--neighbours {neighbours}: there are {len(seen.features)} normal pictures to be "
                "near to; ask for fewer"
            )
        return detector_of(method, fit_neighbours(seen.features), neighbours)
    if method in ("mahalanobis", "relative-mahalanobis"):
        if method.startswith("relative") and len(np.unique(labels)) < 2:
            raise ValueError(
                "relative-mahalanobis compares classes with all of them together; name two normal "
                "classes or more (--normal), or use mahalanobis"
            )
        # Few rows in many dimensions: the covariance is mostly a guess, and shrunk so.
        rows, width = seen.features.shape
        shrinkage = float(np.clip(width / (10 * rows), 1e-3, 0.5))
        fitted = fit_gaussians(seen.features, labels, shrinkage=shrinkage)
        return detector_of(method, fitted, neighbours)
    if method == "patchcore":
        return detector_of(method, fit_memory_bank(seen.patches, coreset, seed=seed), neighbours)
    return detector_of(method, {}, neighbours)


STATES: dict[str, Any] = {
    "knn": Neighbours,
    "mahalanobis": Gaussians,
    "relative-mahalanobis": Gaussians,
    "patchcore": MemoryBank,
}
"""Method -> what it keeps of normal rows; those of logits keep nothing."""


def detector_of(method: str, state: Any, neighbours: int) -> Detector:
    """Return the detector of a method that was fitted, here or in another run.

    Args:
      method: see `anomaly_job.Detector`.
      state: of the method's kind in `STATES`.
      neighbours: of knn.
    """
    if method == "knn":
        score = jax.jit(lambda x: knn_score(state, x, neighbours))
        return Detector(lambda new: _in_blocks(score, new.features), state)
    if method in ("mahalanobis", "relative-mahalanobis"):
        of = mahalanobis_score if method == "mahalanobis" else relative_mahalanobis_score
        gauge = jax.jit(lambda x: of(state, x))
        return Detector(lambda new: _in_blocks(gauge, new.features), state)
    if method == "patchcore":
        rate = jax.jit(lambda x: picture_scores(state, x))
        where = jax.jit(lambda x: patch_distances(state, x))
        return Detector(
            lambda new: _in_blocks(rate, new.patches),
            state,
            lambda new: _in_blocks(where, new.patches),
        )
    ask = energy_score if method == "energy" else msp_score
    return Detector(lambda new: np.asarray(ask(jnp.asarray(new.logits))), {})


def _in_blocks(run: Callable[[Array], Array], rows: np.ndarray, block: int = 64) -> np.ndarray:
    """Run over blocks of rows of one shape, for the memory that distances take."""
    size = min(block, len(rows))
    out = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        filled = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        out.append(np.asarray(run(jnp.asarray(filled)))[: len(part)])
    return np.concatenate(out)
