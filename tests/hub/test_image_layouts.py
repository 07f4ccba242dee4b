"""Files of other collections are read by their names, and saved in the Hub's layout."""

import json
import pathlib
import runpy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.core import flatten
from sftjax.hub import TensorFile, load, save
from sftjax.hub.families import WEIGHT_MAPS
from sftjax.hub.names import place
from sftjax.models import Head, build

writer = SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "torch_writer.py")))
VIT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
       "intermediate_size": 48, "image_size": 16, "patch_size": 4,
       "layer_norm_eps": 1e-6}  # fmt: skip
CASES = {
    "resnet-torchvision": ("resnet", "torchvision", {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "layer_type": "basic"}),
    "resnet-bottleneck": ("resnet", "torchvision", {
        "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]}),
    "efficientnet": ("efficientnet", "EfficientNet-PyTorch", {
        "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280,
        "squeeze_expansion_ratio": 0.25, "padding": "same"}),
    "convnext-timm": ("convnext", "timm", {
        "num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 1], "layer_norm_eps": 1e-6}),
    "vgg": ("vgg", "torchvision", {
        "hidden_sizes": [4, 4, 8, 8, 8], "depths": [1, 1, 2, 2, 2], "dense_sizes": [16, 16],
        "batch_norm": True, "pooled_size": 2}),
    "vit-timm": ("vit", "timm", VIT),
    "deit-timm": ("deit", "timm", VIT),
    "dinov2-timm": ("dinov2", "timm", VIT | {"mlp_ratio": 2}),
    "vit-augreg": ("vit", "augreg", VIT),
}  # fmt: skip


def made(name):
    """Return a model with random params, and its tensors under the layout's names."""
    family, layout, config = CASES[name]
    architectures = {"vit": "ViT", "deit": "DeiT"}.get(family, family)
    model = build(
        {"model_type": family, "architectures": [f"{architectures}ForImageClassification"],
         **config}, Head("image", ("a", "b", "c")),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.abs(0.3 * rng.standard_normal(leaf.shape, np.float32)), model.shapes()
    )
    tensors = {}
    leaves = flatten(params)
    tables = [table for table in WEIGHT_MAPS[family].others if table.layout == layout]
    for table in tables:
        known = {row.path for row in table.rows}
        if "vgg/features/7/conv/kernel" in known and "vgg/features/8/conv/kernel" not in known:
            if not any("norm" in path for path in known):
                continue
            tables = [table]
    (table,) = tables
    parts = {}
    for path, leaf in leaves.items():
        spot = place(table, path)
        parts.setdefault(spot.tensor, {})[spot.part[0]] = spot.theirs(np.asarray(leaf))
    for tensor, pieces in parts.items():
        tensors[tensor] = (
            np.concatenate([pieces[i] for i in sorted(pieces)]) if len(pieces) > 1 else pieces[0]
        )
    return model, params, tensors


def written(folder, name, tensors):
    if name.endswith("augreg"):
        shaped = {}
        for key, tensor in tensors.items():
            heads = "MultiHead" in key
            if heads and key.endswith("out.kernel"):
                tensor = tensor.reshape(2, -1, tensor.shape[1])
            elif heads:
                tensor = (
                    tensor.reshape(*tensor.shape[:-1], 2, -1)
                    if (not key.endswith("out.bias"))
                    else tensor
                )
            key = key.replace("encoderblock.", "encoderblock_")
            shaped[key.replace(".", "/")] = tensor
        np.savez(folder / "x.npz", **shaped)
        return folder / "x.npz"
    writer.write_legacy(folder / "x.pth", tensors)
    return folder / "x.pth"


@pytest.mark.parametrize("name", CASES)
def test_a_bare_file_is_recognised(tmp_path, name):
    _, layout, config = CASES[name]
    model, params, tensors = made(name)
    file = written(tmp_path, name, tensors)
    loaded = load(file)
    assert loaded.report.layout == layout
    assert loaded.report.new == ()
    said = {key: loaded.model.config[key] for key in config.keys() & loaded.model.config.keys()}
    assert said == {key: config[key] for key in said}
    assert len(loaded.model.head.labels) == 3
    ours, theirs = flatten(loaded.params), flatten(params)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)
    assert loaded.report.processor["do_normalize"]

    save(tmp_path / "hub", loaded.model, loaded.params, report=loaded.report)
    again = load(tmp_path / "hub")
    assert again.report.layout == "hub"
    assert again.report.processor == loaded.report.processor
    assert all(np.array_equal(leaf, theirs[p]) for p, leaf in flatten(again.params).items())
    file = TensorFile(tmp_path / "hub" / "model.safetensors")
    counters = [tensor for tensor in file if tensor.endswith("num_batches_tracked")]
    assert len(counters) == len(model.statistics) // 2


def test_a_torch_folder_of_the_hub_s(tmp_path):
    model, params, _ = made("resnet-torchvision")
    save(tmp_path / "hub", model, params)
    tensors = dict(TensorFile(tmp_path / "hub" / "model.safetensors"))
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "config.json").write_bytes((tmp_path / "hub/config.json").read_bytes())
    writer.write_zip(tmp_path / "torch" / "pytorch_model.bin", tensors)
    loaded = load(tmp_path / "torch")
    assert (loaded.report.format, loaded.report.layout) == ("torch", "hub")
    assert all(np.array_equal(a, b) for a, b in zip(
        flatten(loaded.params).values(), flatten(params).values(), strict=True))  # fmt: skip
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-{number:05}-of-00002.bin"
        writer.write_legacy(tmp_path / "torch" / shard, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    (tmp_path / "torch" / "pytorch_model.bin").unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "torch" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    again = load(tmp_path / "torch")
    assert len(again.report.weights.files) == 2
    assert flatten(again.params).keys() == flatten(params).keys()


def test_another_layout_is_refused_with_its_names(tmp_path):
    _, _, tensors = made("resnet-torchvision")
    renamed = {f"odd.{name}": tensor for name, tensor in tensors.items()}
    file = written(tmp_path, "resnet", renamed)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load(file)
    config = {"model_type": "resnet", **CASES["resnet-torchvision"][2]}
    with pytest.raises(ValueError, match=r"missing.*unexpected \(odd\."):
        load(file, config=config, head="image", labels=("a", "b", "c"))


@pytest.mark.parametrize("channels", [1, 4])
def test_a_colour_stem_reads_other_channels(tmp_path, channels):
    model, params, tensors = made("resnet-torchvision")
    file = written(tmp_path, "resnet", tensors)
    loaded = load(file, config={"num_channels": channels})
    assert loaded.report.fitted == ("resnet/embedder/embedder/convolution/kernel",)
    assert "made for another input" in str(loaded.report)
    grey = jax.random.normal(jax.random.key(3), (2, 32, 32, 1))
    if channels == 1:  # a grey image gives what its three equal channels gave
        ours = jax.jit(loaded.model.apply)(loaded.params, {"pixel_values": grey})
        colour = jax.jit(model.apply)(params, {"pixel_values": jnp.repeat(grey, 3, 3)})
        np.testing.assert_allclose(ours, colour, rtol=1e-5)
    else:
        kernel = loaded.params["resnet"]["embedder"]["embedder"]["convolution"]["kernel"]
        whole = params["resnet"]["embedder"]["embedder"]["convolution"]["kernel"]
        assert kernel.shape[2] == 4
        np.testing.assert_allclose(kernel[:, :, 3], whole[:, :, 0] * 3 / 4, rtol=1e-6)


def test_positions_are_interpolated_once_or_at_every_call(tmp_path):
    _, _, tensors = made("vit-timm")
    file = written(tmp_path, "vit", tensors)
    at_call = load(file)
    once = load(file, config={"image_size": 24})
    assert once.report.fitted == ("vit/embeddings/position_embeddings",)
    assert once.params["vit"]["embeddings"]["position_embeddings"].shape == (1, 37, 64)
    images = {"pixel_values": jax.random.normal(jax.random.key(3), (2, 24, 24, 3))}
    one, other = (jax.jit(x.model.apply)(x.params, images) for x in (at_call, once))
    np.testing.assert_allclose(one, other, atol=1e-5)


def field(number, payload):
    def varint(value):
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def test_an_onnx_graph_s_weights(tmp_path):
    """Matrices have their module's names again, and positions are one table."""
    from sftjax.hub.onnx_files import read_onnx_file

    def tensor(name, array):
        dims = b"".join(field(1, size) for size in array.shape)
        return field(5, dims + field(2, 1) + field(8, name.encode()) + field(9, array.tobytes()))

    rng = np.random.default_rng(0)
    arrays = {
        "net.embeddings.patch_embeddings.projection.weight": rng.normal(size=(4, 3, 2, 2)),
        "net.embeddings.cls_token": rng.normal(size=(1, 1, 4)),
        "onnx::Concat_1": rng.normal(size=(1, 1, 4)),
        "onnx::Reshape_2": rng.normal(size=(1, 9, 4)),
        "onnx::MatMul_3": rng.normal(size=(4, 6)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    node = b"".join(field(1, name.encode()) for name in ("x", "onnx::MatMul_3"))
    node += field(3, b"/net/encoder/layer.0/mlp/fc1/MatMul") + field(4, b"MatMul")
    graph = field(1, node) + b"".join(tensor(name, array) for name, array in arrays.items())
    whole = field(1, 8) + field(7, graph)
    (tmp_path / "x.onnx").write_bytes(whole)
    read = read_onnx_file(tmp_path / "x.onnx")
    assert read.keys() == {
        "embeddings.patch_embeddings.projection.weight", "embeddings.cls_token",
        "encoder.layer.0.mlp.fc1.weight", "embeddings.position_embeddings",
    }  # fmt: skip
    assert np.array_equal(read["encoder.layer.0.mlp.fc1.weight"], arrays["onnx::MatMul_3"].T)
    assert read["embeddings.position_embeddings"].shape == (1, 10, 4)
    for length in (0, 5, len(whole) // 2, len(whole) - 3):
        (tmp_path / "x.onnx").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole ONNX graph"):
            read_onnx_file(tmp_path / "x.onnx")


def test_an_archive_with_objects_or_cut_short_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"code": 1}], dtype=object))
    with pytest.raises(ValueError, match="not a whole archive of plain arrays"):
        load(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=np.ones(100))
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a whole archive"):
        load(tmp_path / "x.npz")
