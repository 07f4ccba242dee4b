"""Read the weights of an ONNX file, and which node reads which, without the onnx package.

An ONNX file is one protobuf message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto): a
model holds a graph (field 7), a graph nodes (1) and initializers (5). Everything else is passed by.
The file is untrusted: each length is checked against what holds it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 11: np.float64}
_VALUES = {4: np.float32, 5: np.int32, 7: np.int64}  # fields with values outside of raw_data
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


class Node(NamedTuple):
    """One operation of the graph."""

    name: str
    operation: str
    inputs: tuple[str, ...]


class Graph(NamedTuple):
    """What is read of a file."""

    tensors: dict[str, np.ndarray]
    """Initializers by name; views of the file's bytes where they are stored raw."""
    nodes: tuple[Node, ...]


def read_onnx(path: Path) -> Graph:
    """Read initializers and nodes.

    Raises:
      ValueError: if the file is cut short or no ONNX model; names it.
    """
    data = memoryview(path.read_bytes())
    try:
        graphs = [value for field, value in _fields(data) if field == 7]
        if len(graphs) != 1:
            raise ValueError("it holds no graph")
        tensors, nodes = {}, []
        for field, value in _fields(_bytes(graphs[0])):
            if field == 1:
                nodes.append(_node(_bytes(value)))
            elif field == 5:
                name, tensor = _tensor(_bytes(value))
                tensors[name] = tensor
    except ValueError as error:
        raise ValueError(f"{path} is not a whole ONNX model: {error}") from error
    return Graph(tensors, tuple(nodes))


def _node(data: memoryview) -> Node:
    inputs, name, operation = [], "", ""
    for field, value in _fields(data):
        if field == 1:
            inputs.append(_text(value))
        elif field == 3:
            name = _text(value)
        elif field == 4:
            operation = _text(value)
    return Node(name, operation, tuple(inputs))


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    shape: list[int] = []
    name, kind, raw = "", 0, None
    values: list[np.ndarray] = []
    for field, value in _fields(data):
        if field == 1:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field in _VALUES:
            values.append(_values(field, value))
        elif field == 8:
            name = _text(value)
        elif field == 9:
            raw = _bytes(value)
        elif field in (13, 14) and value:
            raise ValueError(f"tensor {name!r} lies in another file")
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise ValueError(f"tensor {name!r} has element type {kind}, not one of {[*_DTYPES]}")
    flat = np.concatenate(values or [np.zeros(0)]) if raw is None else np.frombuffer(raw, dtype)
    if flat.size != math.prod(shape):
        raise ValueError(f"tensor {name!r} of shape {shape} has {flat.size} values")
    return name, flat.astype(dtype, copy=False).reshape(shape)


def _values(field: int, value: int | memoryview) -> np.ndarray:
    if isinstance(value, int):
        return np.array([value], _VALUES[field])
    if field == 4:
        return np.frombuffer(value, np.float32)
    return np.array(_varints(value)).astype(_VALUES[field])


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Iterate over a message: field number and a number or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_EIGHT, _FOUR):
            size = 8 if wire == _EIGHT else 4
        else:
            raise ValueError(f"unknown wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"a field of {size} bytes reaches past the end")
        yield field, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number reaches past the end")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            # Negative numbers are written as 64 bits of two's complement.
            return value - (1 << 64) if value >= 1 << 63 else value, at
    raise ValueError("a number has more than ten bytes")


def _varints(value: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")
