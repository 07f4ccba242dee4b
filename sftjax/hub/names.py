"""A weight map is a table: the tensor's name in torch, the leaf's path here, and how to turn it.

The same rows are read from left to right by `load` and from right to left by `save`. `{}` stands
for a block's number. A row carries the values over as they are, or with their axes in another
order, because torch keeps a linear layer as (out, in) and Flax as (in, out).

>>> dense("bert.pooler.dense")[0]
Row(tensor='bert.pooler.dense.weight', path='bert/pooler/dense/kernel', axes=(1, 0), legacy='')
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

_NUMBER = re.compile(r"(?<![^./])\d+(?![^./])")


class Row(NamedTuple):
    """One line of the table."""

    tensor: str
    """Torch's name, `{}` for a block's number."""
    path: str
    """Ours, with the same `{}`."""
    axes: tuple[int, ...] = ()
    """The tensor's axes in our order; empty where that is theirs."""
    legacy: str = ""
    """The tensor's name in files written before 2019 (`gamma`, `beta`)."""


class WeightMap(NamedTuple):
    """Everything that is known about how one family's checkpoints are named."""

    stem: str
    """How the names of its classes begin in transformers: `Bert`."""
    trunk: str
    """The first segment of the encoder's paths, which checkpoints of a bare encoder leave out."""
    rows: tuple[Row, ...]
    ties: tuple[tuple[str, str], ...] = ()
    """(alias, tensor that it repeats when the config ties them)."""
    buffers: tuple[str, ...] = ()
    """Tensors that are not weights; kept, and written back."""
    output: Mapping[str, str] = {}
    """Head kind -> the layer whose size is the number of labels, or that of the vocabulary."""
    classes: Mapping[str, str] = {}
    """Head kind -> how the name of its class ends, where that is not the usual ending."""


class Place(NamedTuple):
    """Where a leaf's values lie in a file."""

    tensor: str
    axes: tuple[int, ...] = ()

    def ours(self, values: np.ndarray) -> np.ndarray:
        """Return a tensor's values as the leaf has them, a view."""
        return values.transpose(self.axes) if self.axes else values

    def theirs(self, values: np.ndarray) -> np.ndarray:
        """Return a leaf's values as the tensor has them, a view."""
        return values.transpose(np.argsort(self.axes)) if self.axes else values

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tensor's shape for a leaf's."""
        return tuple(shape[axis] for axis in np.argsort(self.axes)) if self.axes else shape


class Placed(NamedTuple):
    """A file's tensor names, sorted by what they are."""

    places: dict[str, Place]
    """Our path -> its tensor."""
    aliases: dict[str, str]
    """Name of a tensor that repeats another one -> the path of the leaf that both are."""
    buffers: tuple[str, ...]
    unknown: tuple[str, ...]
    """Names the table does not have, or that name a leaf a second time."""


def dense(module: str) -> tuple[Row, ...]:
    """Rows of a linear layer: `weight` <-> `kernel` transposed, `bias` <-> `bias`."""
    path = module.replace(".", "/")
    return (
        Row(f"{module}.weight", f"{path}/kernel", axes=(1, 0)),
        Row(f"{module}.bias", f"{path}/bias"),
    )


def norm(module: str) -> tuple[Row, ...]:
    """Rows of a norm: `weight` (once `gamma`) <-> `scale`, `bias` (once `beta`) <-> `bias`."""
    path = module.replace(".", "/")
    return (
        Row(f"{module}.weight", f"{path}/scale", legacy=f"{module}.gamma"),
        Row(f"{module}.bias", f"{path}/bias", legacy=f"{module}.beta"),
    )


def embedding(module: str) -> tuple[Row, ...]:
    """Row of an embedding table: `weight` <-> `embedding`."""
    return (Row(f"{module}.weight", module.replace(".", "/") + "/embedding"),)


def parameter(tensor: str) -> tuple[Row, ...]:
    """Row of an array that stands by itself."""
    return (Row(tensor, tensor.replace(".", "/")),)


def place(weights: WeightMap, path: str) -> Place:
    """Return the tensor's full name for one of our paths, and the order of its axes.

    Raises:
      KeyError: if the table has no such path.

    >>> table = WeightMap("Bert", "bert", dense("bert.encoder.layer.{}.output.dense"))
    >>> place(table, "bert/encoder/layer/11/output/dense/kernel")
    Place(tensor='bert.encoder.layer.11.output.dense.weight', axes=(1, 0))
    """
    template, numbers = _template(path)
    row = {row.path: row for row in weights.rows}[template]
    return Place(row.tensor.format(*numbers), row.axes)


def place_all(weights: WeightMap, tensors: Iterable[str], *, tied: bool = True) -> Placed:
    """Sort a torch checkpoint's names by what they are.

    Names without the trunk's prefix and names from before 2019 are understood. Of two tensors that
    are one leaf, the one that torch computes with is the leaf's and the other is its alias.

    Args:
      weights: the family's table.
      tensors: the names in the file.
      tied: whether the output embedding is the input embedding.

    >>> table = WeightMap("Bert", "bert", norm("bert.embeddings.LayerNorm"))
    >>> place_all(table, ["embeddings.LayerNorm.gamma"]).places
    {'bert/embeddings/LayerNorm/scale': Place(tensor='embeddings.LayerNorm.gamma',
                                              axes=())}
    """
    rows = {row.tensor: row for row in weights.rows}
    ties = {a: rows[b].path for a, b in weights.ties if tied or a not in rows}
    rows |= {row.legacy: row for row in weights.rows if row.legacy}
    places: dict[str, Place] = {}
    aliases: dict[str, str] = {}
    buffers: list[str] = []
    unknown: list[str] = []
    for name in tensors:
        known = (name, f"{weights.trunk}.{name}")
        full = next((n for n in known if n in ties or n in weights.buffers), None)
        row, numbers = _row(rows, known)
        if full in ties:
            aliases[name] = ties[full]
        elif full is not None:
            buffers.append(name)
        elif row is None or (path := row.path.format(*numbers)) in places:
            unknown.append(name)
        else:
            places[path] = Place(name, row.axes)
    for name, path in list(aliases.items()):
        # An untied decoder computes with its own bias, and `predictions.bias` is the idle copy.
        if not tied or path not in places:
            del aliases[name]
            if path in places:
                aliases[places[path].tensor] = path
            places[path] = Place(name)
    return Placed(places, aliases, tuple(buffers), tuple(unknown))


def place_paths(weights: WeightMap, paths: Iterable[str]) -> Placed:
    """Sort the paths of an old Flax checkpoint, which are ours but for the trunk's prefix.

    >>> table = WeightMap("Bert", "bert", dense("bert.pooler.dense"))
    >>> place_paths(table, ["pooler/dense/kernel"]).places
    {'bert/pooler/dense/kernel': Place(tensor='pooler/dense/kernel', axes=())}
    """
    rows = {row.path: row for row in weights.rows}
    places: dict[str, Place] = {}
    unknown: list[str] = []
    for name in paths:
        row, numbers = _row(rows, (name, f"{weights.trunk}/{name}"))
        if row is None or (path := row.path.format(*numbers)) in places:
            unknown.append(name)
        else:
            places[path] = Place(name)
    return Placed(places, {}, (), tuple(unknown))


def _row(rows: Mapping[str, Row], names: Iterable[str]) -> tuple[Row | None, list[str]]:
    for name in names:
        template, numbers = _template(name)
        if template in rows:
            return rows[template], numbers
    return None, []


def _template(name: str) -> tuple[str, list[str]]:
    return _NUMBER.sub("{}", name), _NUMBER.findall(name)
