"""Keras' networks give Keras' own answers here, and its files are read and nothing beside them."""

import json
import pathlib
import runpy
import zipfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sftjax.data import processor_of
from sftjax.hub import load, save
from sftjax.hub.foreign import READERS
from sftjax.models import Head

h5py = pytest.importorskip("h5py")
HERE = pathlib.Path(__file__).parent
again = SimpleNamespace(**runpy.run_path(str(HERE / "keras_layers.py")))


@pytest.fixture(scope="module")
def goldens():
    with np.load(HERE / "keras_goldens.npz") as stored:
        return json.loads(str(stored["layers"])), {k: stored[k] for k in stored if k != "layers"}


def arrays_of(layers):
    for layer, shapes in layers.items():
        if layer.startswith("normalization"):
            yield layer, [np.zeros(shape, np.float32) for shape in shapes]
        else:
            yield layer, again.drawn(layer, shapes)


def write_old(path, layers):
    """As Keras 2 and `model.save("x.h5")` do."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, arrays in arrays_of(layers):
            group = root.create_group(layer)
            names = [f"{layer}/{index}:0" for index in range(len(arrays))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, arrays, strict=True):
                group.create_dataset(name, data=array)


def write_new(path, layers):
    """As Keras 3's `save_weights` does."""
    with h5py.File(path, "w") as file:
        for number, (layer, arrays) in enumerate(arrays_of(layers)):
            group = file.create_group(f"layers/layer_{number}/vars")
            group.attrs["name"] = layer
            for index, array in enumerate(arrays):
                group.create_dataset(str(index), data=array)


def write_zip(path, layers):
    write_new(path.with_suffix(".inner"), layers)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".inner"), "model.weights.h5")
    path.with_suffix(".inner").unlink()


CASES = {
    "VGG16": ("net.h5", write_old, Head("features")),
    "ResNet50": ("net.weights.h5", write_new, None),
    "EfficientNetB0": ("net.keras", write_zip, None),
}


@pytest.mark.parametrize("name", CASES)
def test_it_answers_as_keras_does(name, goldens, tmp_path):
    layers, answers = goldens
    file, write, head = CASES[name]
    folder = tmp_path / "keras"
    folder.mkdir()
    write(folder / file, layers[name])
    model, params, report = load(folder) if head is None else load(folder, head=head)
    assert report.layout == "Keras"
    assert report.processor is not None
    pixels = again.pixels().astype(np.uint8)
    batch = {"pixel_values": processor_of(report.processor).normalize(pixels)}
    ours = np.asarray(jax.jit(model.apply)(params, batch))
    scale = np.abs(answers[name]).max()
    np.testing.assert_allclose(ours, answers[name], atol=1e-4 * scale)
    if head is None:  # and in the Hub's layout it is the same
        save(tmp_path / "saved", model, params, report=report)
        saved = load(tmp_path / "saved")
        np.testing.assert_array_equal(
            np.asarray(jax.jit(saved.model.apply)(saved.params, batch)), ours
        )


def read(path):
    return READERS[".h5"][1](path)


def test_dense_layers_of_a_vgg_read_the_map_as_ours_do(goldens, tmp_path):
    layers = dict(goldens[0]["VGG16"])
    layers |= {"fc1": [[4 * 512, 2], [2]], "fc2": [[2, 2], [2]], "predictions": [[2, 3], [3]]}
    write_old(tmp_path / "net.h5", layers)
    found = read(tmp_path / "net.h5")["vgg.dense.fc1_.kernel"]
    theirs = again.drawn("fc1", layers["fc1"])[0].reshape(2, 2, 512, 2)
    np.testing.assert_array_equal(found.reshape(512, 2, 2, 2), theirs.transpose(2, 0, 1, 3))


def small(path):
    write_new(path, {"block1_conv1": [[3, 3, 3, 4], [4]]})
    return h5py.File(path, "r+")


def test_what_points_elsewhere_is_not_followed(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["0"] = np.ones((3, 3, 3, 4), np.float32)
    for link in (h5py.ExternalLink("secret.h5", "/0"), h5py.SoftLink("/layers")):
        with small(tmp_path / "net.h5") as file:
            del file["layers/layer_0/vars/0"]
            file["layers/layer_0/vars/0"] = link
        with pytest.raises(ValueError, match="points elsewhere"):
            read(tmp_path / "net.h5")
    (tmp_path / "raw").write_bytes(bytes(432))
    with small(tmp_path / "net.h5") as file:
        group = file["layers/layer_0/vars"]
        del group["0"]
        group.create_dataset("0", (3, 3, 3, 4), "f4", external=[(str(tmp_path / "raw"), 0, 432)])
    with pytest.raises(ValueError, match="in another file"):
        read(tmp_path / "net.h5")


def test_no_more_memory_than_the_file_holds(tmp_path):
    with small(tmp_path / "net.h5") as file:
        group = file["layers/layer_0/vars"]
        del group["0"]
        group.create_dataset("0", (3, 3, 3, 1 << 30), "f4", chunks=(3, 3, 3, 64))
    with pytest.raises(ValueError, match="the file holds 0 bytes of it"):
        read(tmp_path / "net.h5")
    with zipfile.ZipFile(tmp_path / "net.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(1 << 20))
    with pytest.raises(ValueError, match="would unpack to"):
        READERS[".keras"][1](tmp_path / "net.keras")


def test_what_is_no_network_of_the_collection(tmp_path):
    (tmp_path / "net.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))
    with pytest.raises(ValueError, match="not a whole HDF5 file"):
        read(tmp_path / "net.h5")
    write_new(tmp_path / "net.h5", {"conv2d": [[3, 3, 3, 4], [4]]})
    with pytest.raises(ValueError, match="layers conv2d: of Keras' networks VGG"):
        read(tmp_path / "net.h5")
    write_old(tmp_path / "net.h5", {"block1_conv1": [[3, 3, 3, 4], [4]], "mine": [[4, 2]]})
    with pytest.raises(ValueError, match="has a layer mine of 1 arrays"):
        read(tmp_path / "net.h5")
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file["layers/a/vars/0"] = np.array([b"text"])
    with pytest.raises(ValueError, match="only numbers are read"):
        read(tmp_path / "net.h5")
