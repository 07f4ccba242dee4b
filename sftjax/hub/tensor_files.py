"""One safetensors file: a memory-mapped reader that trusts nothing, and a writer that replaces.

A safetensors file is eight bytes of length, a JSON header, and one run of little-endian bytes that
the tensors share without gaps (https://huggingface.co/docs/safetensors). It arrives from strangers,
so every number in the header is checked against the file before a view is made.
"""

import hashlib
import json
import math
import mmap
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
"""The format's words for element types, and ours."""

FLOATS = ("float64", "float32", "bfloat16", "float16")
"""The dtypes that hold weights as they are, not quantized."""

_ORDER = (
    "U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E4M3", "F8_E5M2",
    "I8", "U8", "BOOL",
)  # fmt: skip
"""Wide types first, so that every tensor is aligned; as the reference implementation has them."""
_LENGTH = 8
_LONGEST_HEADER = 100_000_000  # the limit of the reference implementation


class Extent(NamedTuple):
    """Where one tensor lies."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the file."""
    stop: int
    """One past the last byte."""


class Later(NamedTuple):
    """A tensor to be written that is made when its turn comes, and let go after it."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    """Gives the tensor; in every process at once where it is cut over them."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of a safetensors file by name: read-only views of the mapped file, no copy made.

    The views stay valid when the file on disk is replaced or removed.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> write_tensor_file(path, {"weight": np.ones((2, 3), np.float32)})
    >>> TensorFile(path)["weight"].sum()
    np.float32(6.0)
    """

    path: pathlib.Path
    extents: dict[str, Extent]
    metadata: dict[str, str]

    def __init__(self, path: str | os.PathLike[str]):
        """Map the file and check its header.

        Args:
          path: a `.safetensors` file.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is cut short or its header contradicts it; names the file, the tensor,
            and what to do.
        """
        self.path = pathlib.Path(path)
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _LENGTH:
                raise _broken(self.path, f"it has {size} bytes, fewer than the header's length")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.extents, self.metadata = _read_header(self.path, self._map, size)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a read-only view of a tensor."""
        dtype, shape, start, _ = self.extents[name]
        return np.ndarray(shape, dtype, buffer=self._map, offset=start)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of their bytes."""
        return iter(self.extents)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.extents)

    def release(self, name: str) -> None:
        """Drop a tensor's pages from this process; the next look at it reads them again.

        Mapped pages count as resident memory, so a loader that copies a tensor and moves on would
        otherwise seem to hold the file twice.
        """
        _, _, start, stop = self.extents[name]
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (stop - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if whole > 0 and hasattr(self._map, "madvise"):  # absent on Windows
            self._map.madvise(mmap.MADV_DONTNEED, first, whole)

    def sha256(self) -> str:
        """Return the hash of the whole file, as `sha256sum` prints it."""
        digest = hashlib.sha256()
        view = memoryview(self._map)
        for start in range(0, len(view), 1 << 24):
            digest.update(view[start : start + (1 << 24)])
        return digest.hexdigest()


def write_tensor_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | Later],
    metadata: Mapping[str, str] | None = None,
    *,
    write: bool = True,
) -> None:
    """Write a safetensors file, in one move: a reader sees the old file or the new one, never half.

    Args:
      path: where to; an existing file is replaced, views of it stay valid.
      tensors: any numpy arrays, or what makes them. One at a time is made, copied where it is not
        contiguous, written, and let go.
      metadata: the header's text; `{"format": "pt"}` is what transformers wants to see.
      write: False makes every tensor in its turn and writes nothing: the part of a process that is
        not the first, where tensors are cut over several.

    Raises:
      ValueError: for a dtype that the format does not have.
    """
    words = {dtype: word for word, dtype in DTYPES.items()}
    if odd := [name for name, tensor in tensors.items() if tensor.dtype not in words]:
        raise ValueError(f"a safetensors file holds no {tensors[odd[0]].dtype} ({odd[0]!r})")
    order = sorted(tensors, key=lambda name: (_ORDER.index(words[tensors[name].dtype]), name))
    if not write:
        for name in order:
            _made(tensors[name])
        return
    header: dict[str, Any] = {
        "__metadata__": dict(sorted(({"format": "pt"} | dict(metadata or {})).items()))
    }
    stop = 0
    for name in order:
        tensor, start = tensors[name], stop
        stop += tensor.nbytes
        header[name] = {
            "dtype": words[tensor.dtype], "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }  # fmt: skip
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _LENGTH) * _LENGTH)
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(_LENGTH, "little") + text)
            for name in order:
                file.write(_made(tensors[name]).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _made(tensor: np.ndarray | Later) -> np.ndarray:
    """Return a tensor's values, contiguous."""
    values = tensor.read() if isinstance(tensor, Later) else tensor
    if (values.dtype, values.shape) != (tensor.dtype, tensor.shape):
        raise ValueError(f"{values.dtype} {values.shape} came instead of what was announced")
    return np.require(values, requirements="C")


def _read_header(
    path: pathlib.Path, data: mmap.mmap, size: int
) -> tuple[dict[str, Extent], dict[str, str]]:
    length = int.from_bytes(data[:_LENGTH], "little")
    if length > _LONGEST_HEADER:
        raise _broken(path, f"its header claims {length} bytes, more than the format allows")
    if _LENGTH + length > size:
        raise _broken(path, f"its header claims {length} bytes and the file has {size}")
    try:
        header = json.loads(
            data[_LENGTH : _LENGTH + length].decode("utf-8"), object_pairs_hook=_without_repeats
        )
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _broken(path, "its metadata is not a JSON object")
    base = _LENGTH + length
    extents = {name: _extent(path, name, entry, base) for name, entry in header.items()}
    ordered = dict(sorted(extents.items(), key=lambda item: item[1][2:]))
    expected = base
    for name, extent in ordered.items():
        if extent.stop > size:
            raise _broken(
                path,
                f"tensor {name!r} ends at byte {extent.stop} and the file has {size}: "
                "it was cut short",
            )
        if extent.start != expected:
            fault = "overlaps the tensor before it" if extent.start < expected else "leaves a gap"
            raise _broken(path, f"tensor {name!r} starts at byte {extent.start} and {fault}")
        expected = extent.stop
    if expected != size:
        raise _broken(path, f"{size - expected} bytes at its end belong to no tensor")
    return ordered, metadata


def _extent(path: pathlib.Path, name: str, entry: Any, base: int) -> Extent:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _broken(path, f"tensor {name!r} lacks a dtype, a shape or its offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _broken(path, f"tensor {name!r} has dtype {entry['dtype']!r}; known: {list(DTYPES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _sizes(shape) or len(shape) > 32:
        raise _broken(path, f"tensor {name!r} has shape {shape!r}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(path, f"tensor {name!r} has offsets {offsets!r}")
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise _broken(
            path,
            f"tensor {name!r} of shape {tuple(shape)} and dtype {entry['dtype']} needs "
            f"{math.prod(shape) * dtype.itemsize} bytes and its offsets span "
            f"{offsets[1] - offsets[0]}",
        )
    return Extent(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} appears twice")
    return found


def _broken(path: pathlib.Path, what: str) -> ValueError:
    return ValueError(
        f"{path} is not a whole safetensors file: {what}. Download or copy it again, and compare "
        "its size and sha256 with the source's."
    )
