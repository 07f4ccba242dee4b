"""Real weights on real photographs: EfficientNet-lite0's classes, DINOv2's hidden states."""

import pathlib

import jax
import numpy as np
import pytest

from sftjax.hub import load, save

PALACE = 698  # in ImageNet's order
STAGES = ((3, 1, 1, 1), (3, 2, 6, 2), (5, 2, 6, 2), (3, 2, 6, 3), (5, 1, 6, 3), (5, 2, 6, 4),
          (3, 1, 6, 1))  # fmt: skip
"""Window, stride, expansion and repeats, as published."""

pytestmark = pytest.mark.assets


def photographs():
    """scikit-learn's two pictures, cut to 224 x 224 and normalised as lite0 wants them."""
    image = pytest.importorskip("PIL.Image")
    datasets = pytest.importorskip("sklearn.datasets")
    rows = []
    for pixels in datasets.load_sample_images().images:
        picture = image.fromarray(pixels)
        scale = 256 / min(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], image.BICUBIC)
        left, top = ((side - 224) // 2 for side in picture.size)
        cut = picture.crop((left, top, left + 224, top + 224))
        rows.append((np.asarray(cut, np.float32) - 127) / 128)
    return np.stack(rows)


def lite0_in_torch(torch, file, pixels):
    """Write the published network down once more, with torch's functions."""
    functional = torch.nn.functional
    tensors = torch.load(file, weights_only=True)

    def norm(x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(tensors[f"{name}.{part}"] for part in parts), eps=1e-3)

    def conv(x, name, stride=1, groups=1):
        weight = tensors[f"{name}.weight"]
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=groups)

    x = functional.relu6(norm(conv(pixels, "_conv_stem", 2), "_bn0"))
    number = 0
    for _, stride, expand, repeats in STAGES:
        for repeat in range(repeats):
            block, before = f"_blocks.{number}.", x
            if expand > 1:
                x = functional.relu6(norm(conv(x, f"{block}_expand_conv"), f"{block}_bn0"))
            step = 1 if repeat else stride
            x = conv(x, f"{block}_depthwise_conv", step, x.shape[1])
            x = functional.relu6(norm(x, f"{block}_bn1"))
            x = norm(conv(x, f"{block}_project_conv"), f"{block}_bn2")
            x = x + before if repeat else x
            number += 1
    x = functional.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return (x @ tensors["_fc.weight"].T + tensors["_fc.bias"]).numpy()


def test_lite0_sees_the_palace_and_agrees_with_torch(asset_folder):
    folder = asset_folder("efficientnet-lite0")
    model, params, report = load(folder)
    assert (report.format, report.layout) == ("torch", "EfficientNet-PyTorch")
    assert (report.new, report.unused, len(model.head.labels)) == ((), (), 1000)
    pixels = photographs()
    logits = np.asarray(jax.jit(model.apply)(params, {"pixel_values": pixels}))
    assert logits[0].argmax() == PALACE
    torch = pytest.importorskip("torch")
    file = next(pathlib.Path(folder).glob("*.pth"))
    theirs = lite0_in_torch(torch, file, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert np.abs(logits - theirs).max() <= 1e-4


@pytest.mark.torch
def test_dinov2_agrees_with_torch(asset_folder, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    file = next(pathlib.Path(asset_folder("dinov2-small")).glob("*.onnx"))
    with pytest.raises(ValueError, match=r"unexpected \(decoder\.upconv1"):
        load(file)
    model, params, report = load(file, head="hidden", ignore=["decoder"])
    assert report.format == "onnx"
    assert all(name.startswith("decoder.") for name in report.ignored)
    save(tmp_path, model, params, report=report)
    theirs = transformers.Dinov2Model.from_pretrained(tmp_path).eval()
    pixels = np.random.default_rng(0).standard_normal((1, 112, 140, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    ours = np.asarray(jax.jit(model.apply)(params, {"pixel_values": pixels}))
    assert ours.shape == (1, 81, 384)
    assert np.abs(ours - expected).max() <= 1e-4


LAST_HIDDEN = b"/backbone/layernorm/Add_1_output_0"
"""What the file's graph calls the hidden states after the last norm."""


def giving(model: bytes, tensor: bytes) -> bytes:
    """Return an ONNX model that gives one more tensor.

    Protocol buffers merge a message that stands twice in a file, so that a second graph (field 7 of
    a model), with nothing in it but a named output (field 12, whose field 1 is the name), adds it.
    """
    output = b"\x0a" + bytes([len(tensor)]) + tensor
    graph = b"\x62" + bytes([len(output)]) + output
    return model + b"\x3a" + bytes([len(graph)]) + graph


def test_dinov2_agrees_with_onnxruntime(asset_folder):
    """The file as its own runtime reads it, every operation of it."""
    runtime = pytest.importorskip("onnxruntime")
    file = next(pathlib.Path(asset_folder("dinov2-small")).glob("*.onnx"))
    session = runtime.InferenceSession(giving(file.read_bytes(), LAST_HIDDEN))
    pixels = np.random.default_rng(1).standard_normal((1, 224, 224, 3)).astype(np.float32)
    feed = {"input_image": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
    (expected,) = session.run([LAST_HIDDEN.decode()], feed)
    model, params, _ = load(file, head="hidden", ignore=["decoder"])
    ours = np.asarray(jax.jit(model.apply)(params, {"pixel_values": pixels}))
    assert ours.shape == expected.shape == (1, 257, 384)
    assert np.abs(ours - expected).max() <= 1e-4
