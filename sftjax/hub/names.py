"""A weight map is a table: the tensor's name in torch, the leaf's path here, and how to turn it.

The same rows are read from left to right by `load` and from right to left by `save`. `{}` stands
for a block's number; a number that is written out stands for itself. A row carries the values
over as they are, or with their axes in another order, because torch keeps a linear layer as
(out, in) and Flax as (in, out), or takes one of several equal parts, because some layouts keep
query, key and value in one tensor.

>>> dense("bert.pooler.dense")[0]
Row(tensor='bert.pooler.dense.weight', path='bert/pooler/dense/kernel', axes=(1, 0), legacy='',
    part=(0, 1))
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
    part: tuple[int, int] = (0, 1)
    """Which of how many equal parts of the tensor's first axis the leaf is."""


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
    """Tensors that are not weights; kept, and written back. `{}` stands for a block's number."""
    output: Mapping[str, str] = {}
    """Head kind -> the layer whose size is the number of labels, or that of the vocabulary."""
    classes: Mapping[str, str] = {}
    """Head kind -> how the name of its class ends, where that is not the usual ending."""
    layout: str = "hub"
    """What the table is called; only the Hub's own is written."""
    others: "tuple[WeightMap, ...]" = ()
    """Other layouts of the same family's files, which are read."""
    pixels: str = ""
    """Path of the kernel that reads the images, (H, W, C, D)."""


class Place(NamedTuple):
    """Where a leaf's values lie in a file."""

    tensor: str
    axes: tuple[int, ...] = ()
    part: tuple[int, int] = (0, 1)

    def ours(self, values: np.ndarray) -> np.ndarray:
        """Return a tensor's values as the leaf has them, a view."""
        number, count = self.part
        if count > 1:
            length = values.shape[0] // count
            values = values[number * length : (number + 1) * length]
        return values.transpose(self.axes) if self.axes else values

    def theirs(self, values: np.ndarray) -> np.ndarray:
        """Return a leaf's values as the tensor (or its part) has them, a view."""
        return values.transpose(np.argsort(self.axes)) if self.axes else values

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tensor's shape for a leaf's."""
        theirs = tuple(shape[axis] for axis in np.argsort(self.axes)) if self.axes else shape
        return (theirs[0] * self.part[1], *theirs[1:]) if self.part[1] > 1 else theirs


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


def convolution(module: str, *, bias: bool = False) -> tuple[Row, ...]:
    """Rows of a convolution of images: (out, in, height, width) <-> (height, width, in, out)."""
    path = module.replace(".", "/")
    rows = (Row(f"{module}.weight", f"{path}/kernel", axes=(2, 3, 1, 0)),)
    return (*rows, Row(f"{module}.bias", f"{path}/bias")) if bias else rows


def batch_norm(module: str) -> tuple[Row, ...]:
    """Rows of a batch norm, running statistics and all; its counter is a buffer."""
    path = module.replace(".", "/")
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return tuple(Row(f"{module}.{theirs}", f"{path}/{ours}") for theirs, ours in names.items())


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
    Place(tensor='bert.encoder.layer.11.output.dense.weight', axes=(1, 0), part=(0, 1))
    """
    for row in weights.rows:
        if (numbers := fit(row.path, path)) is not None:
            return Place(row.tensor.format(*numbers), row.axes, row.part)
    raise KeyError(path)


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
                                              axes=(), part=(0, 1))}
    """
    rows = {row.tensor: row for row in weights.rows}
    ties = {a: rows[b].path for a, b in weights.ties if tied or a not in rows}
    known = _Index((row.tensor, row) for row in weights.rows)
    known.extend((row.legacy, row) for row in weights.rows if row.legacy)
    buffered = _Index((buffer, Row(buffer, "")) for buffer in weights.buffers)
    places: dict[str, Place] = {}
    aliases: dict[str, str] = {}
    buffers: list[str] = []
    unknown: list[str] = []
    for name in tensors:
        names = (name, f"{weights.trunk}.{name}")
        full = next((n for n in names if n in ties), None)
        found = known.find(names)
        if full in ties:
            aliases[name] = ties[full]
        elif buffered.find(names):
            buffers.append(name)
        elif not found or any(path in places for path, _ in found):
            unknown.append(name)
        else:
            places.update((path, Place(name, row.axes, row.part)) for path, row in found)
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
    {'bert/pooler/dense/kernel': Place(tensor='pooler/dense/kernel', axes=(), part=(0, 1))}
    """
    known = _Index((row.path, row) for row in weights.rows)
    places: dict[str, Place] = {}
    unknown: list[str] = []
    for name in paths:
        found = known.find((name, f"{weights.trunk}/{name}"))
        if not found or found[0][0] in places:
            unknown.append(name)
        else:
            places[found[0][0]] = Place(name)
    return Placed(places, {}, (), tuple(unknown))


def fit(pattern: str, name: str) -> list[str] | None:
    """Return the numbers that stand for the `{}` of a pattern, or None if it is another name.

    >>> fit("layer.{}.conv.1", "layer.4.conv.1"), fit("layer.{}.conv.1", "layer.4.conv.2")
    (['4'], None)
    """
    expression = re.escape(pattern).replace(r"\{\}", r"(\d+)")
    found = re.fullmatch(expression, name)
    return None if found is None else list(found.groups())


class _Index:
    """Rows by their names, with the numbers that stand in both left out."""

    def __init__(self, rows: Iterable[tuple[str, Row]]):
        self._rows: dict[str, list[tuple[str, Row]]] = {}
        self.extend(rows)

    def extend(self, rows: Iterable[tuple[str, Row]]) -> None:
        for pattern, row in rows:
            self._rows.setdefault(_template(pattern), []).append((pattern, row))

    def find(self, names: Iterable[str]) -> list[tuple[str, Row]]:
        """Return (path, row) of every row for the first of the names that is known."""
        for name in names:
            found = [
                (row.path.format(*numbers), row)
                for pattern, row in self._rows.get(_template(name), ())
                if (numbers := fit(pattern, name)) is not None
            ]
            if found:
                return found
        return []


def _template(name: str) -> str:
    return _NUMBER.sub("{}", name)
