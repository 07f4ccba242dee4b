"""GGUF, the file format of llama.cpp: metadata and tensors in few bits, read with care.

A file is a header, typed key-value pairs, a table of tensors, and their aligned bytes
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). It arrives from strangers, so every
number is checked against the file before a view is made. Tensors come out in float32: blocks of 32
or 256 entries share scales, in the layouts of ggml's `block_q4_0` and so on.
"""

import math
import mmap
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_LONGEST_NAME = 65535
_MOST_DIMENSIONS = 4


class Quantization(NamedTuple):
    """How one type of tensor is stored."""

    name: str
    entries: int
    """Of a block."""
    bytes: int
    """Of a block."""
    decode: Callable[[np.ndarray], np.ndarray]
    """`(blocks, bytes) uint8 -> (blocks, entries) float32`."""


class _Place(NamedTuple):
    shape: tuple[int, ...]
    kind: int
    start: int
    stop: int


class GgufFile(Mapping[str, np.ndarray]):
    """The metadata and tensors of a GGUF file; a tensor is dequantized when it is asked for."""

    path: pathlib.Path
    metadata: dict[str, Any]

    def __init__(self, path: str | os.PathLike[str]):
        """Map the file and read its header.

        Raises:
          ValueError: if it is no GGUF file of version 2 or 3, is cut short, or holds a tensor in a
            quantization that is not known here; names it.
        """
        self.path = pathlib.Path(path)
        with self.path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise _broken(self.path, "it is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, IndexError, KeyError, OverflowError,
                RecursionError) as error:  # fmt: skip
            raise _broken(self.path, f"its header cannot be read ({error!r})") from error

    def _read_header(self) -> None:
        if self._map[:4] != b"GGUF":
            raise _broken(self.path, f"it begins with {self._map[:4]!r} and not with b'GGUF'")
        self._at = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(
                f"{self.path} is GGUF version {version}; versions 2 and 3 are read here. Convert "
                "it with a current llama.cpp."
            )
        tensors, pairs = self._scalar("<Q"), self._scalar("<Q")
        self.metadata = {}
        for _ in range(pairs):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("<I"))
        table = []
        for _ in range(tensors):
            name, dimensions = self._string(), self._scalar("<I")
            if dimensions > _MOST_DIMENSIONS:
                raise _broken(self.path, f"{name!r} has {dimensions} dimensions")
            shape = tuple(self._scalar("<Q") for _ in range(dimensions))[::-1]
            table.append((name, shape, self._scalar("<I"), self._scalar("<Q")))
        unit = self.metadata.get("general.alignment", 32)
        if type(unit) is not int or not 0 < unit <= 1 << 20:
            raise _broken(self.path, f"its tensors are aligned to {unit!r} bytes")
        data = -(-self._at // unit) * unit
        unknown = {name: kind for name, _, kind, _ in table if kind not in QUANTIZATIONS}
        if unknown:
            name, kind = next(iter(unknown.items()))
            raise ValueError(
                f"{self.path}: {len(unknown)} tensors ({name} first) are stored as "
                f"{NAMES.get(kind, f'type {kind}')}, which is not read here; known: "
                f"{', '.join(q.name for q in QUANTIZATIONS.values())}. Take the same model in one "
                "of these."
            )
        self._places = {name: self._place(name, s, k, data + o) for name, s, k, o in table}

    def _place(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> _Place:
        how = QUANTIZATIONS[kind]
        if shape and shape[-1] % how.entries:
            raise _broken(
                self.path, f"{name!r} {shape} does not divide into blocks of {how.entries}"
            )
        stop = start + math.prod(shape) // how.entries * how.bytes
        if stop > len(self._map):
            raise _broken(self.path, f"{name!r} ends at byte {stop} of {len(self._map)}")
        return _Place(shape, kind, start, stop)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor in float32."""
        shape, kind, start, stop = self._places[name]
        how = QUANTIZATIONS[kind]
        raw = np.frombuffer(self._map, np.uint8, stop - start, start).reshape(-1, how.bytes)
        with np.errstate(all="ignore"):  # scales that are not finite give numbers that are not
            return how.decode(raw).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, rows first."""
        return self._places[name].shape

    def quantization(self, name: str) -> str:
        """Return how a tensor is stored, as `Q4_1`."""
        return QUANTIZATIONS[self._places[name].kind].name

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._map, self._at)
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        size = self._scalar("<Q")
        if size > len(self._map) - self._at:
            raise _broken(self.path, f"a text of {size} bytes starts at byte {self._at}")
        self._at += size
        return self._map[self._at - size : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        inner, count = self._scalar("<I"), self._scalar("<Q")
        if inner in _SCALARS:
            width = struct.calcsize(_SCALARS[inner])
            if count * width > len(self._map) - self._at:
                raise _broken(self.path, f"an array of {count} starts at byte {self._at}")
            found = np.frombuffer(self._map, _SCALARS[inner], count, self._at)
            self._at += count * width
            return found.tolist()
        if count > len(self._map) - self._at:
            raise _broken(self.path, f"an array of {count} starts at byte {self._at}")
        return [self._value(inner) for _ in range(count)]


def _broken(path: pathlib.Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is not a whole GGUF file: {reason}. Download or copy it again, and compare its "
        "size and sha256 with the source's."
    )


def _plain(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda raw: np.ascontiguousarray(raw).view(dtype).astype(np.float32)


def _half(raw: np.ndarray) -> np.ndarray:
    """Two bytes of each block as a column of float32."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """(blocks, n) bytes -> (blocks, 2 n): all low halves, then all high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=1)


def _fifth(raw: np.ndarray) -> np.ndarray:
    """(blocks, 4) bytes -> (blocks, 32) bits, lowest first, moved to place 4."""
    return np.unpackbits(raw, axis=1, bitorder="little") << 4


def _q4_0(raw: np.ndarray) -> np.ndarray:
    return _half(raw[:, :2]) * (_nibbles(raw[:, 2:]).astype(np.float32) - 8)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    return _half(raw[:, :2]) * _nibbles(raw[:, 4:]).astype(np.float32) + _half(raw[:, 2:4])


def _q5_0(raw: np.ndarray) -> np.ndarray:
    codes = (_nibbles(raw[:, 6:]) | _fifth(raw[:, 2:6])).astype(np.float32)
    return _half(raw[:, :2]) * (codes - 16)


def _q5_1(raw: np.ndarray) -> np.ndarray:
    codes = (_nibbles(raw[:, 8:]) | _fifth(raw[:, 4:8])).astype(np.float32)
    return _half(raw[:, :2]) * codes + _half(raw[:, 2:4])


def _q8_0(raw: np.ndarray) -> np.ndarray:
    return _half(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


def _six_bits(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, 12) bytes -> the 8 scales and 8 minima of a K block, 6 bits each."""
    low, high, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=1)
    return scales.astype(np.float32)[..., None], minima.astype(np.float32)[..., None]


def _q4_k(raw: np.ndarray) -> np.ndarray:
    scales, minima = _six_bits(raw[:, 4:16])
    codes = raw[:, 16:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(2, 1) & 15
    return _k_block(raw, scales, minima, codes.reshape(-1, 8, 32))


def _q5_k(raw: np.ndarray) -> np.ndarray:
    scales, minima = _six_bits(raw[:, 4:16])
    high = raw[:, 16:48, None].transpose(0, 2, 1) >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = raw[:, 48:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(2, 1) & 15
    return _k_block(raw, scales, minima, codes.reshape(-1, 8, 32) | high << 4)


def _k_block(
    raw: np.ndarray, scales: np.ndarray, minima: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    d, least = _half(raw[:, :2])[..., None], _half(raw[:, 2:4])[..., None]
    return (d * scales * codes.astype(np.float32) - least * minima).reshape(len(raw), -1)


def _q6_k(raw: np.ndarray) -> np.ndarray:
    low = raw[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(2, 1) & 15
    high = raw[:, 128:192].reshape(-1, 2, 1, 32)
    high = high >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    codes = low.reshape(-1, 8, 32) | high.reshape(-1, 8, 32) << 4
    scales = raw[:, 192:208].view(np.int8).astype(np.float32).reshape(-1, 16, 1)
    values = codes.astype(np.float32).reshape(-1, 16, 16) - 32
    return (_half(raw[:, 208:])[..., None] * scales * values).reshape(len(raw), -1)


QUANTIZATIONS: dict[int, Quantization] = {
    0: Quantization("F32", 1, 4, _plain("<f4")),
    1: Quantization("F16", 1, 2, _plain("<f2")),
    2: Quantization("Q4_0", 32, 18, _q4_0),
    3: Quantization("Q4_1", 32, 20, _q4_1),
    6: Quantization("Q5_0", 32, 22, _q5_0),
    7: Quantization("Q5_1", 32, 24, _q5_1),
    8: Quantization("Q8_0", 32, 34, _q8_0),
    12: Quantization("Q4_K", 256, 144, _q4_k),
    13: Quantization("Q5_K", 256, 176, _q5_k),
    14: Quantization("Q6_K", 256, 210, _q6_k),
    30: Quantization("BF16", 1, 2, _plain(ml_dtypes.bfloat16)),
}
"""ggml's number of a type -> how it is stored; those that are read here."""

NAMES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""ggml's numbers of types that are not."""
