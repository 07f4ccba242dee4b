"""Read a torch checkpoint (`.pth`, `.pt`, `.bin`) without torch, and without running anything.

Such a file is a pickle, and a pickle is a program. Python's own unpickler calls whatever the
program names; here a small machine knows the few instructions that a dict of tensors needs, and a
name is no more than a word: an ordered dict, a rebuilt tensor, a storage of some dtype. Any other
instruction or name is refused before anything else happens, so that no code of the file's choosing
can run. Both layouts are read: the zip archive of torch 1.6 and later, and the legacy run of
pickles with the storages behind them.
"""

import io
import math
import mmap
import pathlib
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sftjax.core import zip_members

_STORAGES: Mapping[str, Any] = {
    "FloatStorage": np.float32, "HalfStorage": np.float16, "DoubleStorage": np.float64,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
_REBUILD = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_DICT = "collections OrderedDict"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_TIMES = 4
"""Tensors may share numbers (tied weights), but not grow without end from a few bytes."""
_STATE_DICTS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "params",
    "state_dict_ema",
)
"""Under which key a training checkpoint keeps its weights."""


class _Name(NamedTuple):
    """A global that the file names; never looked up."""

    words: str


class _Storage(NamedTuple):
    """A run of numbers, wherever it lies."""

    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Where a list of arguments begins on the stack."""


def read_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the tensors of a torch checkpoint by name, as copies in memory.

    A dict that holds the weights under a usual key (`state_dict`, `model`, ...) is opened, and the
    prefix `module.` that parallel training leaves is taken off.

    Args:
      path: the file.

    Raises:
      ValueError: if the file is cut short or damaged, asks for anything but tensors and plain
        containers (the name is told), or holds no dict of tensors.
    """
    with path.open("rb") as file:
        head = file.read(8)
        try:
            with warnings.catch_warnings():
                # Of escapes that Python does not know, in names that nobody here knows either.
                warnings.simplefilter("ignore", DeprecationWarning)
                content, numbers = _layout(head)(path)
            found = _state_dict(content)
            entries = sum(math.prod(tensor.shape) for tensor in found.values())
            if entries > _MOST_TIMES * path.stat().st_size:  # views that repeat a storage
                raise ValueError(f"its tensors have {entries:,} numbers, and it holds far fewer")
            return {name: _array(name, tensor, numbers) for name, tensor in found.items()}
        except _Refused as error:
            raise ValueError(
                f"{path} asks for {error}, and only tensors and plain containers are read here: "
                "nothing of it was run. If you trust where it comes from, open it once with torch "
                "and save its state dict with safetensors"
            ) from error
        except (ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, OSError,
                RuntimeError, zipfile.BadZipFile, OverflowError) as error:  # fmt: skip
            raise ValueError(
                f"{path} is not a whole torch checkpoint ({error}). If it was cut short or "
                "damaged, download or copy it again, and compare its size and sha256 with the "
                "source's"
            ) from error


class _Refused(Exception):
    """What a file asks for and does not get."""


def _layout(head: bytes) -> Callable[[pathlib.Path], tuple[Any, Callable[[_Storage], np.ndarray]]]:
    """Return what reads a file that begins so."""
    if head[:4] == b"PK\x03\x04":
        return _read_zip
    if head[:1] == b"\x80":
        return _read_legacy
    raise ValueError("it begins neither as a zip archive nor as a pickle; a torch file does")


def _read_zip(path: pathlib.Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    archive = zipfile.ZipFile(path)
    entries = {info.filename: info for info in zip_members(archive, path.stat().st_size)}
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"the archive holds {len(pickles)} entries data.pkl, and not one")
    root = pickles[0].removesuffix("data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise ValueError(
            "an entry of the archive is compressed, which torch never does; open it with torch and "
            "save it again with torch.save"
        )
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian; save it on a little-endian machine")
    content = _run(io.BytesIO(archive.read(pickles[0])))

    def numbers(storage: _Storage) -> np.ndarray:
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise ValueError(f"the storage {storage.key} is not in the archive")
        return np.frombuffer(archive.read(name), storage.dtype)

    return content, numbers


def _read_legacy(path: pathlib.Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if _run(data) != _MAGIC or _run(data) != _PROTOCOL:
            raise ValueError("it is a pickle, and not one of torch's")
        facts = _run(data)
        if not isinstance(facts, dict) or not facts.get("little_endian", False):
            raise ValueError("its numbers are big-endian; save it on a little-endian machine")
        storages: dict[str, _Storage] = {}
        content = _run(data, storages)
        keys = _run(data)
        if not isinstance(keys, list) or not all(key in storages for key in keys):
            raise ValueError("its list of storages and its tensors do not belong together")
        arrays: dict[str, np.ndarray] = {}
        for key in keys:
            dtype, count = storages[key].dtype, storages[key].length
            said = struct.unpack("<q", data.read(8))[0]
            if said != count:
                raise ValueError(f"the storage {key} holds {said} numbers and should hold {count}")
            arrays[key] = np.frombuffer(data.read(count * dtype.itemsize), dtype)
            if len(arrays[key]) != count:
                raise ValueError(f"it ends inside the storage {key}")
    return content, lambda storage: arrays[storage.key]


def _array(name: str, tensor: _Tensor, numbers: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    values = numbers(tensor.storage)
    spans = [(n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)]
    last = tensor.offset + sum(spans)
    empty = math.prod(tensor.shape) == 0
    sound = tensor.offset >= 0 and all(n >= 0 for n in (*tensor.shape, *tensor.strides))
    if not sound or (not empty and last >= len(values)):
        raise ValueError(f"the tensor {name} reaches beyond its storage of {len(values)} numbers")
    if empty:
        return np.zeros(tensor.shape, values.dtype)
    size = values.dtype.itemsize
    view = np.ndarray(
        tensor.shape, values.dtype, values, tensor.offset * size,
        tuple(stride * size for stride in tensor.strides),
    )  # fmt: skip
    return np.ascontiguousarray(view).reshape(tensor.shape)


def _state_dict(content: Any) -> dict[str, _Tensor]:
    for _ in range(3):
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, and not a dict of tensors")
        tensors = {k: v for k, v in content.items() if isinstance(v, _Tensor)}
        if tensors:
            names = [name for name in tensors if isinstance(name, str)]
            if len(names) < len(tensors):
                raise ValueError("a tensor's name is no string")
            return {name.removeprefix("module."): tensors[name] for name in names}
        inner = next((key for key in _STATE_DICTS if isinstance(content.get(key), dict)), None)
        if inner is None:
            raise ValueError(
                f"it holds no tensors under its keys {sorted(map(str, content))[:8]} nor under any "
                f"of {', '.join(_STATE_DICTS)}"
            )
        content = content[inner]
    raise ValueError("its weights lie deeper than three dicts")


def _run(file: Any, storages: dict[str, _Storage] | None = None) -> Any:
    """Run one pickle on the small machine, and return what it builds."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = max(i for i, item in enumerate(stack) if isinstance(item, _Mark))
        items = stack[place + 1 :]
        del stack[place:]
        return items

    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            stack.append(_Mark())
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            stack.append(argument)
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = tuple(stack[-count:])
            del stack[-count:]
            stack.append(items)
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            _of(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _of(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[_of(int, argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_of(int, argument)])
        elif name == "GLOBAL":
            stack.append(_known(_of(str, argument)))
        elif name == "STACK_GLOBAL":
            member, module = stack.pop(), stack.pop()
            stack.append(_known(f"{module} {member}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of a dict (`_metadata`), which are of no use here
            _of(dict, stack[-1])
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), storages))
        else:
            raise _Refused(f"the pickle instruction {name}")
    raise EOFError("a pickle without its end")


_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
}  # fmt: skip
_VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING",
)  # fmt: skip


def _known(words: str) -> _Name:
    module, _, name = words.partition(" ")
    if words in (_REBUILD, _PARAMETER, _DICT) or (module == "torch" and name in _STORAGES):
        return _Name(words)
    raise _Refused(f"{module}.{name}")


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise ValueError("it calls something that is no function")
    if function.words == _DICT:
        if arguments:
            pairs = [tuple(pair) for pair in _of(list, arguments[0])]
            return dict(pairs)
        return {}
    if function.words == _PARAMETER:
        return _of(_Tensor, arguments[0])
    if function.words == _REBUILD:
        storage, offset, shape, strides = arguments[:4]
        numbers = (offset, *_of(tuple, shape), *_of(tuple, strides))
        if not all(isinstance(number, int) for number in numbers):
            raise ValueError("a tensor's shape holds something that is no integer")
        return _Tensor(_of(_Storage, storage), offset, shape, strides)
    raise ValueError(f"it calls {function.words}")


def _storage(identity: Any, storages: dict[str, _Storage] | None) -> _Storage:
    kind, dtype, key, _, count, *view = _of(tuple, identity)
    if kind != "storage" or any(part is not None for part in view):
        raise ValueError(f"a storage is described as {kind!r}, in a way that is not known")
    name = _of(_Name, dtype).words.partition(" ")[2]
    if name not in _STORAGES or not isinstance(count, int) or count < 0:
        raise ValueError(f"a storage of {count!r} numbers of kind {name}")
    storage = _Storage(_of(str, key), np.dtype(_STORAGES[name]), count)
    if storages is not None:
        storages[storage.key] = storage
    return storage


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} stands where a {kind.__name__} should")
    return value
