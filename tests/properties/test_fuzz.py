"""Damaged and hostile files: a right answer or our own error; no crash, no code, no flood.

The long mode by hand: SFTJAX_FUZZ=3000 pytest tests/properties/test_fuzz.py (some minutes).
"""

import io
import json
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import flax.serialization
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sftjax.core import file_name, flatten, read_npz
from sftjax.data.dicom import read_dicom, read_series
from sftjax.data.files import read_file
from sftjax.data.image_arrays import read_idx
from sftjax.data.volumes import _cached, read_volume
from sftjax.hub import GgufFile
from sftjax.hub.config import choose_head, read_config
from sftjax.hub.onnx_files import read_onnx_file
from sftjax.hub.tensor_files import TensorFile, write_tensor_file
from sftjax.hub.torch_files import read_torch_file
from sftjax.hub.weights import open_file
from sftjax.models import build

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "hub"))
sys.path.insert(0, str(HERE.parent / "data"))

from fuzzing import harmless, mutated  # noqa: E402
from torch_writer import write_legacy, write_zip  # noqa: E402

EXAMPLES = int(os.environ.get("SFTJAX_FUZZ", "120"))
ROOM = 4_000_000
"""Bytes that any reader may take for itself: modules, buffers, messages."""
quick = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TENSORS = {
    "embeddings.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "layer.0.bias": np.arange(4, dtype=np.float32),
    "counter": np.array(3, np.int64),
}
CONFIG = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11,
    "max_position_embeddings": 12, "type_vocab_size": 2, "hidden_act": "gelu",
    "id2label": {"0": "no", "1": "yes"}, "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip


def gguf(path):
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 4)
    head += text("general.alignment") + struct.pack("<II", 4, 32)
    head += text("general.name") + struct.pack("<I", 8) + text("tiny")
    head += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    head += text("nested") + struct.pack("<IIQIQ2i", 9, 9, 1, 5, 2, 7, 8)
    head += text("plain") + struct.pack("<I2QIQ", 2, 4, 3, 0, 0)
    head += text("blocks") + struct.pack("<I2QIQ", 2, 32, 2, 8, 64)
    path.write_bytes(head + bytes(-len(head) % 32) + np.arange(12, dtype="<f4").tobytes()
                     + bytes(16) + bytes(range(68)))  # fmt: skip


def onnx(path):
    def field(number, payload):
        return bytes([number << 3 | 2, len(payload)]) + payload

    raw = np.arange(6, dtype=np.float32).tobytes()
    tensor = bytes([1 << 3, 2, 1 << 3, 3, 2 << 3, 1]) + field(8, b"w") + field(9, raw)
    node = field(1, b"x") + field(1, b"w") + field(3, b"/layer/fc/MatMul") + field(4, b"MatMul")
    path.write_bytes(field(7, field(1, node) + field(5, tensor)))


def compressed(path):
    np.savez_compressed(path, **{name.replace(".", "/"): array for name, array in TENSORS.items()})


def dicom(path):
    from dicom_writer import write

    write(path, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[40, 900], NumberOfFrames=1,
          WindowWidth=[400, 20], ImagePositionPatient=[0, 0, 1], InstanceNumber=1,
          ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[0.5, 0.25])  # fmt: skip


def nifti(path):
    import nibabel

    nibabel.save(
        nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)), path
    )


WRITERS = {
    ".safetensors": lambda path: write_tensor_file(path, TENSORS),
    ".pth": lambda path: write_zip(path, {"state_dict": TENSORS}),
    ".pt": lambda path: write_legacy(path, TENSORS),
    ".gguf": gguf,
    ".npz": lambda path: np.savez(path, **TENSORS),
    ".small.npz": compressed,
    ".msgpack": lambda path: path.write_bytes(flax.serialization.msgpack_serialize({"a": TENSORS})),
    ".onnx": onnx,
    ".idx": lambda path: path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)])),
    ".csv": lambda path: path.write_text('text,label\n"a, b",1\nc,0\n'),
    ".tsv": lambda path: path.write_text("text\tlabel\na b\t1\nc\t0\n"),
    ".jsonl": lambda path: path.write_text('{"text": "a", "label": 1}\n{"text": 2}\n'),
    ".json": lambda path: path.write_text(json.dumps(CONFIG)),
    ".dcm": dicom,
    ".nii": nifti,
}  # fmt: skip


def opened(path):
    """Read all that a file holds."""
    if path.suffix == ".gguf":
        file = GgufFile(path)
        return {name: file[name] for name in file}
    if path.suffix == ".idx":
        return {"idx": read_idx(path)}
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        return dict(read_file(path).columns)
    if path.suffix == ".json":
        config = read_config(path.parent)
        shapes = build(config, choose_head(config)).shapes()
        return {name: leaf.shape for name, leaf in flatten(shapes).items()}
    if path.suffix == ".dcm":
        return {"plane": read_dicom(path), "volume": read_series(path.parent).values}
    if path.suffix == ".nii":
        _cached.cache_clear()
        return {"volume": read_volume(path).values}
    weights = open_file(path)
    return {name: np.array(weights.tensors[name]) for name in weights.tensors}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound file of each kind, read once, so that lazy imports are done."""
    folder = tmp_path_factory.mktemp("sound")
    paths = {}
    for ending, write in WRITERS.items():
        name = "config" if ending == ".json" else "file"
        paths[ending] = (
            folder / ending.strip(".").replace(".", "-") / f"{name}.{ending.split('.')[-1]}"
        )
        paths[ending].parent.mkdir()
        write(paths[ending])
        assert opened(paths[ending])
    return paths


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.filterwarnings("ignore:.*names code of its own")
def test_a_mutated_file_gives_an_answer_or_our_error(ending, sound):
    path = sound[ending]
    whole = path.read_bytes()

    said = []

    @quick
    @given(mutated(whole))
    @example(b"")
    @example(whole[: len(whole) // 2])
    def one(data):
        path.write_bytes(data)
        with harmless(ROOM + 64 * len(data)):
            try:
                opened(path)
            except (ValueError, FileNotFoundError) as error:
                said.append(str(error))

    try:
        one()
    finally:
        path.write_bytes(whole)
    assert said
    assert all(said)


class Bomb:
    """What a hostile pickle asks for."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@quick
@given(
    function=st.sampled_from((os.system, eval, exec, print, open, __import__, os.remove)),
    argument=st.text(max_size=8), protocol=st.integers(0, 5), zipped=st.booleans(),
)  # fmt: skip
def test_no_pickle_runs(function, argument, protocol, zipped, tmp_path_factory):
    path = tmp_path_factory.mktemp("bomb") / "bomb.pth"
    bomb = pickle.dumps({"w": Bomb(function, argument)}, protocol)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", bomb)
    else:
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001)]
        path.write_bytes(b"".join(head) + pickle.dumps({"little_endian": True}, 2) + bomb)
    with harmless(ROOM), pytest.raises(ValueError, match=r"asks for|not a whole torch"):
        read_torch_file(path)


def test_small_files_cannot_ask_for_much_memory(tmp_path):
    """Hand-made floods: a header of a terabyte, views without end, archives that unpack."""
    npy = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        npy, {"descr": "<f4", "fortran_order": False, "shape": (1 << 38,)}
    )
    with zipfile.ZipFile(tmp_path / "header.npz", "w") as archive:
        archive.writestr("w.npy", npy.getvalue())
    with zipfile.ZipFile(tmp_path / "zeros.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(50_000_000))
    for name in ("header", "zeros"):
        with harmless(ROOM), pytest.raises(ValueError, match=r"does not fit|would unpack"):
            read_npz(tmp_path / f"{name}.npz")

    for name, write, read in (
        ("claims.npz", np.savez_compressed, read_npz),
        ("claims.pth", lambda path, w: write_zip(path, {"w": w}), read_torch_file),
    ):
        write(tmp_path / name, w=np.zeros((2, 3), np.float32))
        data = bytearray((tmp_path / name).read_bytes())
        entry = data.index(b"PK\x01\x02")  # of the archive's list; 20 bytes on is the packed size
        data[entry + 20 : entry + 24] = struct.pack("<I", 10 * ROOM)
        (tmp_path / name).write_bytes(data)
        with harmless(ROOM), pytest.raises(ValueError, match="claims 40,000,000 bytes"):
            read(tmp_path / name)

    write_zip(tmp_path / "views.pth", {"w": np.zeros((2, 3), np.float32)})
    data = (tmp_path / "views.pth").read_bytes()
    shape = b"K\x02K\x03\x86"  # BININT1 2, BININT1 3, TUPLE2
    assert data.count(shape) == 1
    big = b"J" + struct.pack("<i", 2**30)
    pickled = zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")
    pickled = pickled.replace(shape, big + b"K\x03\x86").replace(
        b"K\x03K\x01\x86", b"K\x00K\x00\x86"
    )
    write_zip(tmp_path / "views.pth", {"w": np.zeros((2, 3), np.float32)}, pickled)
    with harmless(ROOM), pytest.raises(ValueError, match="numbers, and it holds far fewer"):
        read_torch_file(tmp_path / "views.pth")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}})
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with harmless(ROOM), pytest.raises(ValueError, match="cut short"):
        TensorFile(path)


@quick
@given(st.text(max_size=200))
@example("../../etc/passwd")
@example("..")
@example("C:\\windows")
@example("\x00")
def test_no_name_becomes_a_path(text):
    name = file_name(text)
    assert 0 < len(name) <= 80
    assert pathlib.PurePosixPath(name).parts == (name,)
    assert pathlib.PureWindowsPath(name).parts == (name,)
    assert name not in (".", "..")
    assert name.isascii()
    assert "\x00" not in name
    assert file_name(name) == name


def test_code_of_a_checkpoint_is_never_run_and_never_passed_on(tmp_path):
    folder = tmp_path / "remote"
    folder.mkdir()
    config = {**CONFIG, "auto_map": {"AutoModel": "modeling_evil.EvilModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text("raise SystemExit('it was run')")
    with pytest.warns(UserWarning, match="auto_map.*never run"):
        found = read_config(folder)
    from sftjax.hub.config import describe

    kept = describe(found, choose_head(found), dtype="float32", mixed=False)
    assert "auto_map" not in kept


def test_onnx_and_torch_say_what_file_it_was(tmp_path):
    for name, read in (("a.onnx", read_onnx_file), ("a.pth", read_torch_file)):
        (tmp_path / name).write_bytes(b"\x80\x02nonsense")
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)
