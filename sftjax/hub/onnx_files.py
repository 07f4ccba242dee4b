"""Read the weights of an ONNX graph, without its runtime.

An ONNX file is a protocol buffer: numbered fields, each a number or a run of bytes. Of the graph
only the initializers are wanted, and of the nodes which matrix is whose: exporters give a linear
layer's matrix no name of its own, but the node that multiplies by it is called by its module's.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_DTYPES = {1: np.float32, 7: np.int64, 10: np.float16, 11: np.float64}
"""ONNX's numbers for the element types that weights have."""


class _Node(NamedTuple):
    operation: str
    name: str
    inputs: tuple[str, ...]


def read_onnx_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the weights of an ONNX graph by their names in torch.

    The matrix of a `MatMul` node `/encoder/layer.0/mlp/fc1/MatMul` is `encoder.layer.0.mlp.fc1.
    weight`, turned to torch's (out, in). A table of positions that the exporter cut into the class
    token's row and the patches' is put together again. A first segment that the embeddings' names
    begin with (`backbone.`) is taken off.

    Args:
      path: the file.

    Raises:
      ValueError: if the file is cut short, or a tensor lies outside it.
    """
    data = memoryview(path.read_bytes())
    try:
        (graph,) = [value for field, value in _fields(data) if field == _GRAPH]
        tensors, nodes = {}, []
        for field, value in _fields(graph):
            if field == _INITIALIZER:
                name, array = _tensor(value)
                tensors[name] = array
            elif field == _NODE:
                nodes.append(_node(value))
    except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a whole ONNX graph with its weights inside ({error}). If it was cut "
            "short or damaged, download or copy it again, and compare its size and sha256 with the "
            "source's"
        ) from error
    for node in nodes:
        if node.operation == "MatMul" and len(node.inputs) == 2 and node.inputs[1] in tensors:
            module = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
            tensors[f"{module}.weight"] = tensors.pop(node.inputs[1]).T
    tensors = _without_prefix(tensors)
    return _with_positions(tensors)


def _without_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ending = "embeddings.patch_embeddings.projection.weight"
    first = next((name for name in tensors if name.endswith(f".{ending}")), "")
    prefix = first.removesuffix(ending)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _with_positions(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    whole, token = "embeddings.position_embeddings", tensors.get("embeddings.cls_token")
    if whole in tensors or token is None:
        return tensors
    unnamed = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("onnx::") and tensor.ndim == 3 and tensor.shape[::2] == token.shape[::2]
    }
    rows = [name for name, tensor in unnamed.items() if tensor.shape[1] == 1]
    grids = [
        n
        for n, t in unnamed.items()
        if t.shape[1] > 1 and math.isqrt(t.shape[1]) ** 2 == t.shape[1]
    ]
    if len(rows) != 1 or len(grids) != 1:
        return tensors
    table = np.concatenate([tensors.pop(rows[0]), tensors.pop(grids[0])], axis=1)
    return tensors | {whole: table}


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    shape: list[int] = []
    name, kind, raw, floats = "", 0, None, None
    for field, value in _fields(data):
        if field == 1:
            shape += [value] if isinstance(value, int) else _integers(value)
        elif field == 2:
            kind = value
        elif field == 4:
            floats = value
        elif field == 8:
            name = bytes(value).decode()
        elif field == 9:
            raw = value
        elif field == 13:
            raise ValueError(
                f"the tensor {name} lies in another file; onnx.save(onnx.load(old), new) writes "
                "all into one"
            )
    if kind not in _DTYPES:  # strings, small integers: constants of the graph, no weights
        return name, np.zeros(0, np.int8)
    content = raw if raw is not None else floats if floats is not None else b""
    array = np.frombuffer(content, _DTYPES[kind])
    if array.size != math.prod(shape):
        # Numbers outside `raw_data` are listed one by one, and only for constants.
        if raw is None and kind != 1:
            return name, np.zeros(0, np.int8)
        raise ValueError(f"the tensor {name} has {array.size} numbers and the shape {shape}")
    return name, array.reshape(shape)


def _node(data: memoryview) -> _Node:
    inputs, name, operation = [], "", ""
    for field, value in _fields(data):
        if field == 1:
            inputs.append(bytes(value).decode())
        elif field == 3:
            name = bytes(value).decode()
        elif field == 4:
            operation = bytes(value).decode()
    return _Node(operation, name, tuple(inputs))


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    place = 0
    while place < len(data):
        tag, place = _number(data, place)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _number(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            value, place = data[place : place + length], place + length
        elif wire == 2:
            length, place = _number(data, place)
            value, place = data[place : place + length], place + length
        else:
            raise ValueError(f"a field of the unknown kind {wire}")
        if place > len(data):
            raise ValueError("it ends inside a field")
        yield field, value


def _integers(data: memoryview) -> list[int]:
    numbers, place = [], 0
    while place < len(data):
        number, place = _number(data, place)
        numbers.append(number)
    return numbers


def _number(data: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
        shift += 7
