"""Weights in other formats than the Hub's: of torch, NumPy, Keras and ONNX.

They are read into memory at once; what is written is always safetensors.
"""

import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np

from sftjax.core import read_npz
from sftjax.hub.keras_files import read_keras_file
from sftjax.hub.onnx_files import read_onnx_file
from sftjax.hub.torch_files import read_torch_file

Tensors = dict[str, np.ndarray]


def read_npz_file(path: pathlib.Path) -> Tensors:
    """Return the arrays of a `.npz` by name, with `.` where the archive has `/`.

    A block's number is set apart: `encoderblock_3` is `encoderblock.3`.

    Attention of vision_transformer's files is kept by heads there; it is flattened here.

    Raises:
      ValueError: if the archive is damaged, or holds objects, which are pickles and not read.
    """
    arrays = {_spelled(name): array for name, array in read_npz(path).items()}
    return {name: _without_heads(name, array) for name, array in arrays.items()}


def _spelled(name: str) -> str:
    return re.sub(r"encoderblock_(?=\d)", "encoderblock.", name.replace("/", "."))


def _without_heads(name: str, array: np.ndarray) -> np.ndarray:
    *_, module, leaf = ("", *name.split("."))
    if "MultiHeadDotProductAttention" not in name:
        return array
    if leaf == "kernel" and array.ndim == 3:
        return (
            array.reshape(-1, array.shape[-1])
            if module == "out"
            else array.reshape(array.shape[0], -1)
        )
    return array.reshape(-1) if leaf == "bias" else array


READERS: Mapping[str, tuple[str, Callable[[pathlib.Path], Tensors]]] = {
    ".pth": ("torch", read_torch_file),
    ".pt": ("torch", read_torch_file),
    ".bin": ("torch", read_torch_file),
    ".npz": ("npz", read_npz_file),
    ".onnx": ("onnx", read_onnx_file),
    ".h5": ("keras", read_keras_file),
    ".keras": ("keras", read_keras_file),
}
"""Suffix -> name of the format, and its reader."""


def sha256_of(path: pathlib.Path) -> str:
    """Return the sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
