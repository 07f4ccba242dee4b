"""The weights of a model folder, whichever of the Hub's layouts they come in.

`model.safetensors`; `model.safetensors.index.json` with the shards it names; the old
`flax_model.msgpack`; torch's `pytorch_model.bin`, whole or in shards; or a single file of another
collection (see `foreign`). Written is always the first or, above a size, the second.
"""

import hashlib
import json
import mmap
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np

from sftjax.core import flatten
from sftjax.hub.foreign import READERS, sha256_of
from sftjax.hub.tensor_files import Later, TensorFile, write_tensor_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
TORCH = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
MSGPACK = "flax_model.msgpack"
MAX_SHARD_SIZE = 5_000_000_000
"""Bytes; what transformers wrote until version 5, and small enough to move around."""


class Weights(NamedTuple):
    """A folder's tensors, opened."""

    format: str
    """"safetensors", "sharded safetensors", "msgpack", "torch", "npz", "keras" or "onnx"."""
    files: tuple[pathlib.Path, ...]
    tensors: dict[str, np.ndarray]
    """Read-only views of the mapped files; of other formats, arrays in memory."""
    release: Callable[[str], None]
    """Say that a tensor has been copied and its memory may go."""
    digests: Callable[[], dict[str, str]]
    """File name -> sha256; reads the files through, so it is called when asked for."""


def open_weights(folder: str | os.PathLike[str]) -> Weights:
    """Open the weights of a folder, without reading them where the layout allows it.

    Raises:
      FileNotFoundError: if there are none, or a shard is missing.
      ValueError: if a file is damaged or the index contradicts the shards.
    """
    folder = pathlib.Path(folder)
    if (folder / SINGLE).is_file():
        return _join("safetensors", [TensorFile(folder / SINGLE)])
    if (folder / INDEX).is_file():
        return _open_sharded(folder / INDEX)
    if (folder / MSGPACK).is_file():
        return _open_msgpack(folder / MSGPACK)
    if (folder / TORCH).is_file():
        return open_file(folder / TORCH)
    if (folder / TORCH_INDEX).is_file():
        return _open_torch_shards(folder / TORCH_INDEX)
    present = sorted(path.name for path in folder.iterdir())
    known = [name for name in present if pathlib.Path(name).suffix in READERS]
    if len(known) == 1:
        return open_file(folder / known[0])
    if known:
        raise FileNotFoundError(
            f"{folder} holds several files of weights ({', '.join(known[:12])}); pass the path of "
            "the one that is meant"
        )
    raise FileNotFoundError(
        f"{folder} holds no weights: expected {SINGLE}, {INDEX} or {MSGPACK}, found "
        f"{', '.join(present[:12]) or 'nothing'}. Point at the folder that has them, or fetch the "
        "checkpoint again."
    )


def tensor_shapes(folder: str | os.PathLike[str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape and dtype of every tensor in a folder's safetensors files, by their headers.

    Empty where there are none: other formats say nothing before they are read.

    Raises:
      FileNotFoundError: if a shard is missing.
      ValueError: if a file is damaged.
    """
    folder = pathlib.Path(folder)
    files = [TensorFile(folder / SINGLE)] if (folder / SINGLE).is_file() else []
    if not files and (folder / INDEX).is_file():
        files = _shards(folder / INDEX)
    return {
        name: jax.ShapeDtypeStruct(extent.shape, extent.dtype)
        for file in files
        for name, extent in file.extents.items()
    }


def open_file(path: str | os.PathLike[str]) -> Weights:
    """Open a single file of weights, of any format that is read.

    Raises:
      ValueError: if the suffix is of no known format, or the file is damaged.
    """
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        return _join("safetensors", [TensorFile(path)])
    if path.suffix == ".msgpack":
        return _open_msgpack(path)
    if path.suffix not in READERS:
        known = ", ".join((".safetensors", ".msgpack", *READERS))
        raise ValueError(f"{path} has none of the suffixes of weight files: {known}")
    name, read = READERS[path.suffix]
    return _in_memory(name, {path: read(path)})


def _open_torch_shards(index_path: pathlib.Path) -> Weights:
    try:
        names = sorted(set(json.loads(index_path.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index_path} is not an index of shards ({error!r}): expected a JSON object with "
            "weight_map. Copy it again from where the weights came from."
        ) from error
    folder = index_path.parent
    if not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.bin", name) for name in names):
        raise ValueError(f"{index_path}: weight_map must name .bin files beside the index")
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{index_path} names {len(absent)} of {len(names)} shards that are not in the folder: "
            f"{', '.join(absent[:8])}. Fetch them from where the others came from."
        )
    _, read = READERS[".bin"]
    return _in_memory("torch", {folder / name: read(folder / name) for name in names})


def _in_memory(name: str, files: Mapping[pathlib.Path, dict[str, np.ndarray]]) -> Weights:
    tensors = {tensor: array for content in files.values() for tensor, array in content.items()}
    return Weights(
        format=name,
        files=tuple(files),
        tensors=tensors,
        release=lambda tensor: None,
        digests=lambda: {path.name: sha256_of(path) for path in files},
    )


def write_weights(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | Later],
    max_shard_size: int = MAX_SHARD_SIZE,
    *,
    write: bool = True,
) -> tuple[pathlib.Path, ...]:
    """Write tensors in the Hub's layout and remove the weights that they replace.

    Args:
      folder: an existing folder.
      tensors: name -> array, or what makes it; one is made and copied at a time.
      max_shard_size: bytes above which the weights are cut into several files with an index; a
        tensor is never cut.
      write: as of `write_tensor_file`.

    Returns:
      The weight files.
    """
    folder = pathlib.Path(folder)
    shards: list[dict[str, np.ndarray | Later]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_size:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    names = [SINGLE]
    if len(shards) > 1:
        total = len(shards)
        names = [f"model-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_tensor_file(folder / name, shard, write=write)
    if not write:
        return ()
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {
                tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
            },
        }
        write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
        names = [*names, INDEX]
    # A reader that found the last save's other layout first would open the wrong weights.
    for old in {folder / SINGLE, folder / INDEX, *folder.glob(SHARDS)}:
        if old.name not in names:
            old.unlink(missing_ok=True)
    return tuple(folder / name for name in names if name != INDEX)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a small file in one move."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Write a small file in one move."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open_sharded(index_path: pathlib.Path) -> Weights:
    return _join("sharded safetensors", _shards(index_path))


def _shards(index_path: pathlib.Path) -> list[TensorFile]:
    index: Any = None
    try:
        index = json.loads(index_path.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{index_path} is not an index of shards ({error!r}): expected a JSON object with "
            "weight_map. Copy it again from where the weights came from."
        ) from error
    if not isinstance(index, dict) or not index or not all(map(_plain, index.values())):
        raise ValueError(
            f"{index_path}: weight_map must name, for each tensor, a .safetensors file beside the "
            "index. Copy the index again from where the weights came from."
        )
    names = sorted(set(index.values()))
    absent = [name for name in names if not (index_path.parent / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{index_path} names {len(absent)} of {len(names)} shards that are not in the folder: "
            f"{', '.join(absent[:8])}. Fetch them from where the others came from."
        )
    files = {name: TensorFile(index_path.parent / name) for name in names}
    wrong = [tensor for tensor, name in index.items() if tensor not in files[name]]
    stray = [tensor for name, file in files.items() for tensor in file if index.get(tensor) != name]
    if wrong or stray:
        raise ValueError(
            f"{index_path} and its shards do not belong together: {len(wrong)} tensors are not in "
            f"the shard that the index names (such as {wrong[:3]}), {len(stray)} are in a shard "
            f"that it does not name (such as {stray[:3]}). Fetch index and shards again, together."
        )
    return list(files.values())


def _plain(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) is not None


def _join(kind: str, files: Iterable[TensorFile]) -> Weights:
    files = list(files)
    owner = {tensor: file for file in files for tensor in file}
    return Weights(
        format=kind,
        files=tuple(file.path for file in files),
        tensors={tensor: file[tensor] for tensor, file in owner.items()},
        release=lambda tensor: owner[tensor].release(tensor),
        digests=lambda: {file.path.name: file.sha256() for file in files},
    )


def _open_msgpack(path: pathlib.Path) -> Weights:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        # Mapped, because restoring copies every array out of what it is given.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tensors = flatten(flax.serialization.msgpack_restore(data))  # type: ignore[arg-type]
        if strange := [name for name, leaf in tensors.items() if not isinstance(leaf, np.ndarray)]:
            raise ValueError(f"{strange[0]!r} is no array")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OSError,
            RecursionError, OverflowError, MemoryError, EOFError) as error:  # fmt: skip
        raise ValueError(
            f"{path} is not a whole Flax checkpoint ({error!r}). Download or copy it again, and "
            "compare its size and sha256 with the source's."
        ) from error
    return Weights(
        format="msgpack",
        files=(path,),
        tensors=tensors,
        release=lambda tensor: tensors.update({tensor: np.empty(0)}),
        digests=lambda: {path.name: digest},
    )
