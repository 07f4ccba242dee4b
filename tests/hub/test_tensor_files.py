"""A safetensors file survives the round trip, and no header is believed."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from sftjax.hub import TensorFile, write_tensor_file
from sftjax.hub.tensor_files import DTYPES

SAFE = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]


@st.composite
def tensors(draw):
    """Some named arrays of any known dtype, empty ones and scalars among them."""
    found = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=8), max_size=5, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        dtype = DTYPES[draw(st.sampled_from(SAFE))]
        data = np.random.default_rng(len(name)).integers(0, 2, shape)
        found[name] = data.astype(dtype)
    found.pop("__metadata__", None)
    return found


@given(tensors())
def test_reading_what_was_written_is_the_identity(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    write_tensor_file(path, arrays)
    file = TensorFile(path)
    assert file.keys() == arrays.keys()
    assert file.metadata == {"format": "pt"}
    for name, array in arrays.items():
        assert (file[name].dtype, file[name].shape) == (array.dtype, array.shape)
        assert file[name].tobytes() == array.tobytes()
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    if arrays:  # the reference library reads it, and would have laid it out so
        reference = path.with_name("reference")
        safetensors.numpy.save_file(arrays, reference, metadata={"format": "pt"})
        assert reference.read_bytes() == path.read_bytes()


def test_reads_what_the_reference_library_writes(tmp_path):
    arrays = {
        "odd": np.arange(3, dtype=np.int8),
        "half": np.ones((2, 2), ml_dtypes.bfloat16),
        "eighth": np.ones((3,), ml_dtypes.float8_e4m3fn),
        "x": np.arange(6.0).reshape(2, 3),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    assert all(np.array_equal(file[name], array) for name, array in arrays.items())


def test_views_are_read_only_share_the_file_and_outlive_it(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensor_file(path, {"x": np.zeros(2000, np.float32)})
    file = TensorFile(path)
    assert not file["x"].flags.writeable
    assert not file["x"].flags.owndata
    old = file.sha256()
    write_tensor_file(path, {"x": np.ones(2000, np.float32)})
    file.release("x")
    assert file["x"].sum() == 0
    assert TensorFile(path).sha256() != old


def test_a_transposed_view_is_written_in_its_own_order(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_tensor_file(tmp_path / "a.safetensors", {"w": kernel.T})
    assert np.array_equal(TensorFile(tmp_path / "a.safetensors")["w"], kernel.T)


def test_the_old_file_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensor_file(path, {"x": np.zeros(2)})
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_tensor_file(path, {"x": np.ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def written(path: pathlib.Path, header, data: bytes = bytes(8)) -> pathlib.Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"x": 1, "x": 2}', "appears twice"),
        ({"x": 3}, "lacks a dtype"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "lacks a dtype"),
        ({"x": entry(dtype="F4")}, "'x' has dtype 'F4'"),
        ({"x": entry(dtype=["F32"])}, "'x' has dtype"),
        ({"x": entry(shape=(-2,))}, "'x' has shape"),
        ({"x": entry(shape=(True, 2))}, "'x' has shape"),
        ({"x": entry(shape=(2.0,))}, "'x' has shape"),
        ({"x": entry(shape=(1,) * 40)}, "'x' has shape"),
        ({"x": entry(offsets=(8, 0))}, "'x' has offsets"),
        ({"x": entry(offsets=(0, 8, 16))}, "'x' has offsets"),
        ({"x": entry(offsets=(-8, 0))}, "'x' has offsets"),
        ({"x": entry(shape=(3,))}, "needs 12 bytes and its offsets span 8"),
        ({"x": entry(shape=(2**40, 2**40))}, "'x' of shape"),
        ({"x": entry(shape=(4,), offsets=(0, 16))}, "'x' ends at byte .* cut short"),
        ({"x": entry(), "y": entry()}, "'y' starts at byte .* overlaps"),
        ({"x": entry(shape=(1,), offsets=(4, 8))}, "'x' starts at byte .* leaves a gap"),
        ({"x": entry(shape=(1,), offsets=(0, 4))}, "4 bytes at its end"),
        ({"__metadata__": [1], "x": entry()}, "metadata is not"),
    ],
)
def test_a_header_that_lies_is_refused_with_file_tensor_and_remedy(tmp_path, header, reason):
    path = written(tmp_path / "bad.safetensors", header)
    with pytest.raises(ValueError, match=rf"bad\.safetensors .*{reason}.*copy it again"):
        TensorFile(path)


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_without_a_header_is_refused(tmp_path, size):
    (tmp_path / "a.safetensors").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"it has {size} bytes"):
        TensorFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize("length", [2**63, 200_000_000, 100])
def test_a_header_longer_than_the_file_is_refused(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=f"claims {length} bytes"):
        TensorFile(tmp_path / "a.safetensors")


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensor_file(path, {"x": np.arange(6, dtype=np.int16), "y": np.ones(3, np.float32)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.safetensors is not a whole safetensors file"):
            TensorFile(path)


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    metadata = {f"word {number}": "ü\n" for number in range(8)}
    for name in ("one", "two"):
        write_tensor_file(tmp_path / name, {"a": np.ones(3, np.float32)}, metadata)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert TensorFile(tmp_path / "one").metadata == metadata | {"format": "pt"}
