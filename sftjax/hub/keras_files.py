"""Networks of keras.applications from Keras' HDF5 files, as arrays under our own names.

`.weights.h5` and `.keras` of Keras 3, and the `.h5` files that Keras 1 and 2 wrote and that its
collection hands out. What Keras does otherwise is undone here, so that the numbers are the same:

- its VGG and ResNet read blue, green, red: the first kernel's channels are turned around;
- its VGG flattens the last map by places, ours by channels, as torchvision does;
- its ResNet's convolutions have biases before a batch norm, which the norm's mean takes in, and
  an epsilon of 1.001e-5, of which the variance takes in what is above 1e-5.

Needs h5py (`pip install "sftjax[keras]"`). Only plain arrays inside the file are read: links to
other files, and shapes that promise more than the file holds, are refused.
"""

import io
import math
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sftjax.core import zip_members

Layers = dict[str, list[np.ndarray]]
"""Name of a layer -> its arrays, in Keras' order."""

_ENTRY = "model.weights.h5"
_LEAVES = {1: ("kernel",), 2: ("kernel", "bias"), 4: ("scale", "bias", "mean", "var")}
"""Number of a layer's arrays -> what they are; of a batch norm in Keras' order."""

_PARTS = {
    "expand_conv": "expansion.expand_conv",
    "expand_bn": "expansion.expand_bn",
    "dwconv": "depthwise_conv.depthwise_conv",
    "bn": "depthwise_conv.depthwise_norm",
    "se_reduce": "squeeze_excite.reduce",
    "se_expand": "squeeze_excite.expand",
    "project_conv": "projection.project_conv",
    "project_bn": "projection.project_bn",
}
"""Keras' name within a block of EfficientNet -> ours."""


def read_keras_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a VGG 16 or 19, ResNet 50 to 152 or EfficientNet B0 to B7.

    Returns:
      Name -> array, named as our paths with `.` for `/`, kernels in our layout.

    Raises:
      ImportError: if h5py is not installed.
      ValueError: if the file is damaged, points outside itself, or is of another network.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f'{path.name} is an HDF5 file of Keras, which h5py reads: pip install "sftjax[keras]"'
        ) from error
    try:
        with h5py.File(_open(path), "r") as file:
            layers = dict(_layers(file))
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a whole HDF5 file of Keras ({error}). If it was cut short or damaged, "
            "download or copy it again, and compare its size and sha256 with the source's"
        ) from error
    if "block1_conv1" in layers:
        return _vgg(path, layers)
    if "conv2_block1_1_conv" in layers and "conv2_block1_1_bn" in layers:
        return _resnet(path, layers)
    if "stem_conv" in layers and "block1a_project_conv" in layers:
        return _efficientnet(path, layers)
    raise ValueError(
        f"{path} holds layers {', '.join(list(layers)[:6]) or '(none)'}: of Keras' networks VGG, "
        "ResNet (not V2) and EfficientNet (not V2) are known"
    )


def _open(path: pathlib.Path) -> Any:
    if path.suffix != ".keras":
        return path
    with zipfile.ZipFile(path) as archive:
        size = path.stat().st_size
        zip_members(archive, size)
        entry = archive.getinfo(_ENTRY)
        if entry.file_size > 2 * size:  # Keras stores it as it is
            raise ValueError(
                f"{path}: {_ENTRY} would unpack to {entry.file_size:,} bytes, more than twice the "
                "file; it was not written by Keras"
            )
        return io.BytesIO(archive.read(entry))


def _layers(file: Any) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield every layer that has arrays, whichever Keras wrote the file."""
    root = _inside(file, "model_weights") if "model_weights" in file else file
    if "layer_names" in root.attrs:
        for name in map(_text, root.attrs["layer_names"]):
            group = _inside(root, name)
            names = [_text(each) for each in group.attrs["weight_names"]]
            if names:
                yield name, [_array(group, each) for each in names]
        return
    groups = _inside(root, "layers")
    for key in groups:
        group = _inside(groups, key)
        if "vars" not in group:
            continue
        values = _inside(group, "vars")
        if len(values):
            name = _text(values.attrs.get("name", key))
            yield name, [_array(values, str(index)) for index in range(len(values))]


def _text(name: Any) -> str:
    return name.decode("utf8") if isinstance(name, bytes) else str(name)


def _inside(group: Any, name: str) -> Any:
    """Follow a name part by part, through nothing but what lies in the file itself."""
    import h5py

    for part in name.split("/"):
        link = group.get(part, getlink=True)
        if link is None:
            raise KeyError(f"no {part} in {group.name}")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(
                f"{group.file.filename}: {group.name}/{part} points elsewhere "
                f"({type(link).__name__}), which is not followed"
            )
        group = group[part]
    return group


def _array(group: Any, name: str) -> np.ndarray:
    found = _inside(group, name)
    where = f"{group.file.filename}: {found.name}"
    if found.external or found.is_virtual:
        raise ValueError(f"{where} keeps its numbers in another file, which is not read")
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{where} is of {found.dtype}, and only numbers are read")
    if found.id.get_storage_size() < found.size * found.dtype.itemsize:
        raise ValueError(
            f"{where} says it has shape {found.shape}, and the file holds "
            f"{found.id.get_storage_size():,} bytes of it: damaged, compressed or never written"
        )
    return np.asarray(found[()])


def _named(path: pathlib.Path, layers: Layers, modules: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Give the arrays of the layers in `modules` our names; the rest must be the input's."""
    done = {}
    for layer, arrays in layers.items():
        if layer.startswith("normalization"):  # of the pixels: the processor's work
            continue
        if layer not in modules or len(arrays) not in _LEAVES:
            raise ValueError(
                f"{path} has a layer {layer} of {len(arrays)} arrays, which this network of "
                "keras.applications does not have"
            )
        for leaf, array in zip(_LEAVES[len(arrays)], arrays, strict=True):
            done[f"{modules[layer]}.{leaf}"] = array
    return done


def _vgg(path: pathlib.Path, layers: Layers) -> dict[str, np.ndarray]:
    convolutions = sorted(name for name in layers if re.fullmatch(r"block\d_conv\d", name))
    modules = {name: f"vgg.features.{index}.conv" for index, name in enumerate(convolutions)}
    modules |= {f"fc{i}": f"vgg.dense.fc{i}_" for i in (1, 2)} | {"predictions": "classifier"}
    done = _named(path, layers, modules)
    first, flat = "vgg.features.0.conv.kernel", "vgg.dense.fc1_.kernel"
    done[first] = done[first][:, :, ::-1]
    if flat in done:
        channels = done[f"vgg.features.{len(convolutions) - 1}.conv.kernel"].shape[-1]
        side = math.isqrt(done[flat].shape[0] // channels)
        places = done[flat].reshape(side, side, channels, -1)
        done[flat] = places.transpose(2, 0, 1, 3).reshape(done[flat].shape)
    return done


def _resnet(path: pathlib.Path, layers: Layers) -> dict[str, np.ndarray]:
    stem = "resnet.embedder.embedder"
    modules = {
        "conv1_conv": f"{stem}.convolution",
        "conv1_bn": f"{stem}.normalization",
        "predictions": "classifier.1",
    }
    for name in layers:
        match = re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)", name)
        if match:
            stage, block, place = int(match[1]) - 2, int(match[2]) - 1, int(match[3])
            inner = f"layer.{place - 1}" if place else "shortcut"
            kind = "convolution" if match[4] == "conv" else "normalization"
            modules[name] = f"resnet.encoder.stages.{stage}.layers.{block}.{inner}.{kind}"
    done = _named(path, layers, modules)
    for name in [name for name in done if name.endswith(".convolution.bias")]:
        norm = name.replace(".convolution.bias", ".normalization")
        done[f"{norm}.mean"] = done[f"{norm}.mean"] - done.pop(name)
        done[f"{norm}.var"] = done[f"{norm}.var"] + np.float32(1e-8)
    first = f"{stem}.convolution.kernel"
    done[first] = done[first][:, :, ::-1]
    return done


def _efficientnet(path: pathlib.Path, layers: Layers) -> dict[str, np.ndarray]:
    trunk = "efficientnet"
    modules = {
        "stem_conv": f"{trunk}.embeddings.convolution",
        "stem_bn": f"{trunk}.embeddings.batchnorm",
        "top_conv": f"{trunk}.encoder.top_conv",
        "top_bn": f"{trunk}.encoder.top_bn",
        "predictions": "classifier",
    }
    found = {name: re.fullmatch(r"block(\d+)([a-z])_(\w+)", name) for name in layers}
    blocks = sorted({(int(m[1]), m[2]) for m in found.values() if m})
    for name, match in found.items():
        if match and match[3] in _PARTS:
            number = blocks.index((int(match[1]), match[2]))
            modules[name] = f"{trunk}.encoder.blocks.{number}.{_PARTS[match[3]]}"
    done = _named(path, layers, modules)
    depthwise = ".depthwise_conv.depthwise_conv.kernel"
    return {  # (height, width, channels, 1) there
        name: array.transpose(0, 1, 3, 2) if name.endswith(depthwise) else array
        for name, array in done.items()
    }
