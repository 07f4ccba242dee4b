"""The reader of ONNX files: what is stored is read, what is cut short is refused."""

import numpy as np
import pytest

from sftjax.data.onnx_tensors import read_onnx
from sftjax.data.title_model import write_folder


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, array, kind, *, raw=True):
    shape = b"".join(varint(size) for size in array.shape)
    values = field(9, array.tobytes()) if raw else field(4, array.tobytes())
    return field(5, field(1, shape) + field(2, kind) + field(8, name.encode()) + values)


def model(*parts):
    return field(1, 8) + field(7, b"".join(parts))


NODE = field(1, field(1, b"x") + field(1, b"w") + field(3, b"/block/MatMul") + field(4, b"MatMul"))


def test_tensors_and_nodes_are_read(tmp_path):
    path, wide = tmp_path / "m.onnx", np.arange(300, dtype=np.int8).reshape(3, 100)
    few = np.array([1.5, -2.0], np.float32)
    path.write_bytes(
        model(NODE, tensor("w", wide, 3), tensor("f", few, 1), tensor("g", few, 1, raw=False))
    )
    graph = read_onnx(path)
    assert [(n.name, n.operation, n.inputs) for n in graph.nodes] == [
        ("/block/MatMul", "MatMul", ("x", "w"))
    ]
    for name, expected in (("w", wide), ("f", few), ("g", few)):
        np.testing.assert_array_equal(graph.tensors[name], expected)
        assert graph.tensors[name].dtype == expected.dtype


@pytest.mark.parametrize(("content", "message"), [
    (b"", "holds no graph"),
    (model(NODE)[:-3], "reaches past the end"),
    (field(7, tensor("w", np.ones(3, np.float32), 1)[:-1]), "reaches past the end"),
    (model(tensor("w", np.ones(3, np.float32), 16)), "element type 16"),
    (model(field(5, field(1, b"\x04") + field(2, 1) + field(8, b"w"))), "has 0 values"),
    (model(field(5, field(8, b"w") + field(13, b"there"))), "another file"),
    (b"\xff" * 11, "more than ten bytes"),
])  # fmt: skip
def test_a_damaged_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"m.onnx is not a whole ONNX model: .*{message}"):
        read_onnx(path)


def test_another_model_is_refused(tmp_path):
    for name in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / name).write_bytes(model(NODE))
    with pytest.raises(ValueError, match="holds no T5 of 32128 words"):
        write_folder(tmp_path)
