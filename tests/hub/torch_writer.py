"""Torch checkpoints written by hand, sound and unsound, for tests that have no torch."""

import io
import pathlib
import pickle
import struct
import zipfile

import numpy as np

KINDS = {"float32": "FloatStorage", "int64": "LongStorage", "float16": "HalfStorage"}


class Pickler(pickle._Pickler):  # type: ignore[misc]  # the one in Python, which can be told more
    """Writes arrays as torch writes tensors."""

    def __init__(self, file, protocol=2):
        super().__init__(file, protocol)
        self.storages = {}

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, np.ndarray):
            return self._tensor(obj)
        return super().save(obj, save_persistent_id)

    def _tensor(self, array):
        key = str(len(self.storages))
        self.storages[key] = array
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + pickle.MARK)
        super().save("storage")
        self.write(f"ctorch\n{KINDS[array.dtype.name]}\n".encode())
        for part in (key, "cpu", array.size):
            super().save(part)
        self.write(pickle.TUPLE + pickle.BINPERSID)
        super().save(0)
        super().save(array.shape)
        strides = np.zeros(array.shape, array.dtype).strides
        super().save(tuple(stride // array.itemsize for stride in strides))
        super().save(False)
        super().save(None)
        self.write(pickle.TUPLE + pickle.REDUCE)


def write_zip(path: pathlib.Path, content, pickled: bytes | None = None) -> None:
    """Write the layout of torch 1.6 and later."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer)
    pickler.dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled or buffer.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for key, array in pickler.storages.items():
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())


def write_legacy(path: pathlib.Path, content) -> None:
    """Write the layout of older ones."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer)
    pickler.dump(content)
    with path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
        pickle.dump(1001, file, 2)
        pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, file, 2)
        file.write(buffer.getvalue())
        pickle.dump(sorted(pickler.storages), file, 2)
        for key in sorted(pickler.storages):
            array = pickler.storages[key]
            file.write(struct.pack("<q", array.size) + np.ascontiguousarray(array).tobytes())
