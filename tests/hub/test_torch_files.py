"""Torch's files are read without torch; what is no tensor is refused, and nothing is run."""

import os
import pathlib
import pickle
import runpy
from types import SimpleNamespace

import numpy as np
import pytest

from sftjax.hub.torch_files import read_torch_file

writer = SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "torch_writer.py")))
WRITERS = {"zip": writer.write_zip, "legacy": writer.write_legacy}
TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.ones(2, np.float16),
    "a.num_batches_tracked": np.asarray(5, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


def assert_read(path, tensors=TENSORS):
    read = read_torch_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].shape == tensor.shape
        assert read[name].dtype == tensor.dtype
        assert np.array_equal(read[name], tensor)


@pytest.mark.parametrize("layout", WRITERS)
def test_tensors_come_back(tmp_path, layout):
    WRITERS[layout](tmp_path / "x.pth", TENSORS)
    assert_read(tmp_path / "x.pth")
    training = {"epoch": 3, "state_dict": {f"module.{name}": t for name, t in TENSORS.items()}}
    WRITERS[layout](tmp_path / "y.pth", training)
    assert_read(tmp_path / "y.pth")


class Runs:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path, layout, protocol):
    trace = tmp_path / "it-ran"
    file = tmp_path / "x.pth"
    if layout == "zip":
        writer.write_zip(file, {}, pickle.dumps({"a": Runs(trace)}, protocol))
    else:
        file.write_bytes(
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
            + pickle.dumps({"little_endian": True}, 2) + pickle.dumps({"a": Runs(trace)}, protocol)
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.mkdir.*nothing of it was run"):
        read_torch_file(file)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Runs(trace)))  # the file would have done it
    assert trace.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02cto\\Mrch\nload\n.",  # Python warns of this escape, and warnings are errors here
        b"\x80\x02(ibuiltins\neval\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02}c__main__\nX\n\x81.",
    ],
)
def test_any_other_name_or_instruction_is_refused(tmp_path, opcodes):
    writer.write_zip(tmp_path / "x.pth", {}, opcodes)
    with pytest.raises(ValueError, match="asks for"):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.parametrize("layout", WRITERS)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, layout):
    WRITERS[layout](tmp_path / "x.pth", TENSORS)
    whole = (tmp_path / "x.pth").read_bytes()
    for length in {*range(0, len(whole) - 1, 97), len(whole) - 1}:
        (tmp_path / "y.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole torch checkpoint"):
            read_torch_file(tmp_path / "y.pth")


def test_a_damaged_archive_is_refused(tmp_path):
    writer.write_zip(tmp_path / "x.pth", TENSORS)
    whole = bytearray((tmp_path / "x.pth").read_bytes())
    place = whole.index(TENSORS["a.weight"].tobytes())
    whole[place + 5] ^= 1
    (tmp_path / "x.pth").write_bytes(whole)
    with pytest.raises(ValueError, match=r"not a whole torch checkpoint.*CRC"):
        read_torch_file(tmp_path / "x.pth")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    big = {"a": np.zeros(4, np.float32)}
    writer.write_zip(tmp_path / "x.pth", big)
    whole = (tmp_path / "x.pth").read_bytes()
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        pickled = archive.read("archive/data.pkl").replace(b"K\x04\x85", b"K\x05\x85")
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", big["a"].tobytes())
    with pytest.raises(ValueError, match="the tensor a reaches beyond its storage"):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "a list, and not a dict"), ({"lr": 0.1}, "no tensors under its keys"),
     ({3: np.ones(2, np.float32)}, "name is no string")],
)  # fmt: skip
def test_what_holds_no_weights_is_refused(tmp_path, content, message):
    writer.write_zip(tmp_path / "x.pth", content)
    with pytest.raises(ValueError, match=message):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.torch
@pytest.mark.parametrize("new", [True, False])
def test_torch_s_own_files(tmp_path, new):
    torch = pytest.importorskip("torch")
    tensors = {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(10)[3:7],
        "brain": torch.ones(2, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
    }
    named = {**tensors, "parameter": torch.nn.Parameter(torch.ones(2))}
    torch.save(named, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    read = read_torch_file(tmp_path / "x.pth")
    assert read.keys() == named.keys()
    for name, tensor in named.items():
        expected = tensor.detach().to(torch.float64).numpy()
        assert np.array_equal(read[name].astype(np.float64), expected)
    torch.save(torch.nn.Linear(1, 1), tmp_path / "y.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match="asks for"):
        read_torch_file(tmp_path / "y.pth")
