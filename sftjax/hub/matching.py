"""Which tensor of a file is which leaf of a model, and everything that does not fit.

The config's word about the head decides what may be absent: a checkpoint that was saved with this
kind of head must have all of it, any other must have the encoder.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sftjax.core import flatten, matches
from sftjax.hub.config import LABELLED, stored_kind, stored_labels
from sftjax.hub.families import WEIGHT_MAPS
from sftjax.hub.fitting import can_fit
from sftjax.hub.names import Place, Placed, WeightMap, place_all, place_paths
from sftjax.hub.report import some
from sftjax.hub.tensor_files import FLOATS
from sftjax.hub.weights import Weights
from sftjax.models import Model

_SHARED = ("classifier/kernel", "classifier/bias")
"""Leaves whose names several kinds of head share: only the config tells whose they are."""


class Match(NamedTuple):
    """A file laid beside a model."""

    found: dict[str, Place]
    """Path of a leaf -> its tensor."""
    new: tuple[str, ...]
    """Paths of the leaves that the file does not have and may lack."""
    aliases: dict[str, str]
    """Tensor that repeats a leaf -> that leaf's path."""
    buffers: tuple[str, ...]
    unused: tuple[str, ...]
    """Tensors of other heads."""
    ignored: tuple[str, ...]
    """Unknown tensors that the caller allowed."""
    fitted: tuple[str, ...] = ()
    """Paths of leaves that were made for another input (see `fitting`)."""
    layout: str = "hub"
    """Whose names the file has."""


def match(
    model: Model, weights: Weights, *, labels_given: bool = False, ignore: Sequence[str] = ()
) -> Match:
    """Find each leaf's tensor, or refuse the file.

    Args:
      model: what is to be filled.
      weights: what there is.
      labels_given: whether the head's labels are the caller's and not the checkpoint's.
      ignore: patterns of tensor names (`/` for `.`) that may be unknown.

    Raises:
      ValueError: listing every tensor that is missing, unexpected, misshapen, quantized, or
        different from the one that it is tied to.
    """
    table = WEIGHT_MAPS[model.family]
    shapes: dict[str, jax.ShapeDtypeStruct] = flatten(model.shapes())
    tied = _tied(table, shapes)
    placed, layout = _placed(table, weights, shapes, tied)
    fresh = _fresh(model, table, weights, placed, shapes, labels_given)
    found = {path: p for path, p in placed.places.items() if path in shapes and path not in fresh}
    aliases = {
        name: path
        for name, path in placed.aliases.items()
        if model.head.kind in ("masked-lm", "seq2seq-lm", "causal-lm")
        and (tied or _equal(weights, name, found[path]))
    }
    fits = {
        path
        for path, spot in found.items()
        if (has := spot.ours(weights.tensors[spot.tensor]).shape) != shapes[path].shape
        and can_fit(path, table.pixels, has, shapes[path].shape)
    }
    ignored = tuple(name for name in placed.unknown if _allowed(name, ignore))
    absent = [path for path in shapes if path not in found]
    optional = fresh | _optional(model, table, shapes)
    missing = [path for path in absent if path not in optional]
    unexpected = [name for name in placed.unknown if name not in ignored]
    faults = [
        *_missing(missing),
        *_unexpected(unexpected),
        *_misshapen(weights, {p: spot for p, spot in found.items() if p not in fits}, shapes),
        *_quantized(weights, found),
        *_parted(weights, found, aliases),
    ]
    if faults:
        files = some([path.name for path in weights.files], 3)
        raise ValueError(
            f"the weights in {weights.files[0].parent} ({files}) do not fit a {model.family} with "
            f"a {model.head.kind!r} head. Tensors: {'; '.join(faults)}."
        )
    spoken_for = {p.tensor for p in found.values()} | {*aliases, *placed.buffers, *placed.unknown}
    unused = tuple(name for name in weights.tensors if name not in spoken_for)
    return Match(
        found, tuple(absent), aliases, placed.buffers, unused, ignored, tuple(sorted(fits)), layout
    )


def new_without_file(model: Model, *, labels_given: bool = False) -> tuple[str, ...]:
    """Return the leaves that a checkpoint of the config's own class does not have for a model.

    Args:
      model: what is to be filled.
      labels_given: whether the head's labels are the caller's and not the checkpoint's.
    """
    table, shapes = WEIGHT_MAPS[model.family], flatten(model.shapes())
    new = _optional(model, table, shapes)
    if labels_given and model.head.kind in LABELLED:
        new |= {path for path in shapes if matches(table.output[model.head.kind], path)}
    return tuple(path for path in shapes if path in new)


def _placed(
    table: WeightMap, weights: Weights, shapes: Mapping[str, Any], tied: bool
) -> tuple[Placed, str]:
    """Read the file's names by the layout that leaves the fewest names and leaves over."""
    if weights.format == "msgpack":
        return place_paths(table, weights.tensors), table.layout
    read = [(place_all(t, weights.tensors, tied=tied), t.layout) for t in (table, *table.others)]
    return min(read, key=lambda one: len(one[0].unknown) + len(shapes.keys() - one[0].places))


def _tied(table: WeightMap, shapes: Mapping[str, Any]) -> bool:
    rows = {row.tensor: row.path for row in table.rows}
    return not any(rows.get(alias) in shapes for alias, _ in table.ties)


def _fresh(
    model: Model,
    table: WeightMap,
    weights: Weights,
    placed: Placed,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    labels_given: bool,
) -> set[str]:
    """Leaves whose tensors in the file, if there are any, mean something else."""
    head, stored = model.head, stored_kind(model.config)
    if stored not in (head.kind, None):
        return {path for path in shapes if path in _SHARED}
    if head.kind not in LABELLED or not labels_given:
        return set()
    output = {path for path in shapes if matches(table.output[head.kind], path)}
    labels = stored_labels(model.config)
    placeholders = tuple(f"LABEL_{index}" for index in range(len(head.labels)))
    fits = all(
        weights.tensors[placed.places[path].tensor].size == math.prod(shapes[path].shape)
        for path in output & placed.places.keys()
    )
    return set() if head.labels == labels or (labels == placeholders and fits) else output


def _optional(model: Model, table: WeightMap, shapes: Mapping[str, Any]) -> set[str]:
    """Leaves that a checkpoint of another kind of head cannot be expected to hold."""
    if stored_kind(model.config) == model.head.kind:
        return set()
    if not table.trunk:  # its paths have no segment of their own
        return {path for path in shapes if matches(table.output[model.head.kind], path)}
    optional = {path for path in shapes if not matches(table.trunk, path)}
    if model.head.kind == "sequence":  # its pooler can be trained with the head; an embedding's not
        optional |= {path for path in shapes if matches(f"{table.trunk}/pooler", path)}
    return optional


def _allowed(name: str, ignore: Sequence[str]) -> bool:
    return any(matches(pattern.replace(".", "/"), name.replace(".", "/")) for pattern in ignore)


def _missing(paths: list[str]) -> list[str]:
    if not paths:
        return []
    return [
        f"{len(paths)} missing ({some(paths)}): the file is incomplete, or was not saved with this "
        "config"
    ]


def _unexpected(names: list[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{len(names)} unexpected ({some(names)}): if they are not needed, pass "
        f"ignore=[{names[0]!r}, ...]; patterns are allowed"
    ]


def _misshapen(
    weights: Weights,
    found: Mapping[str, Place],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> list[str]:
    lines = []
    for path, spot in found.items():
        shape = weights.tensors[spot.tensor].shape
        expected = spot.their_shape(shapes[path].shape)
        if shape != expected:
            lines.append(f"{spot.tensor} is {shape} and should be {expected}")
    if not lines:
        return []
    advice = "the config does not describe this file"
    if any("classifier" in line for line in lines):
        advice += "; for another number of classes pass head and labels, and the last layer is new"
    return [f"{len(lines)} misshapen ({some(lines)}): {advice}"]


def _quantized(weights: Weights, found: Mapping[str, Place]) -> list[str]:
    names = [spot.tensor for spot in found.values()]
    dtypes = {name: weights.tensors[name].dtype.name for name in names}
    lines = [f"{name} is {dtype}" for name, dtype in dtypes.items() if dtype not in FLOATS]
    if not lines:
        return []
    return [
        f"{len(lines)} quantized ({some(lines)}): their scales are not known here; load the "
        "checkpoint's unquantized original"
    ]


def _parted(weights: Weights, found: Mapping[str, Place], aliases: Mapping[str, str]) -> list[str]:
    pairs = [
        f"{name} and {found[path].tensor}"
        for name, path in aliases.items()
        if not _equal(weights, name, found[path])
    ]
    if not pairs:
        return []
    return [
        f"{len(pairs)} tied by the config but different in the file ({some(pairs)}): set "
        '"tie_word_embeddings": false in config.json if they were trained apart'
    ]


def _equal(weights: Weights, name: str, spot: Place) -> bool:
    one, other = weights.tensors[name], weights.tensors[spot.tensor]
    return one.shape == other.shape and one.dtype == other.dtype and np.array_equal(one, other)
