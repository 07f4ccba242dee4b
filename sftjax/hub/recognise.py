"""What a bare weight file is, from the names and shapes of its tensors.

Collections other than the Hub hand out weights without a config.json: torchvision, timm,
EfficientNet-PyTorch, Keras, the .npz files of vision_transformer. Their layouts give depths and
widths away; what they do not show (strides, activations) is that of the published models.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sftjax.models import efficientnet

Shapes = Mapping[str, tuple[int, ...]]

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_CAFFE = {
    "image_mean": [123.68 / 255, 116.779 / 255, 103.939 / 255],
    "image_std": [1 / 255] * 3,
}
_LITE = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}
_B = (
    (1.0, 1.0, 224, 0.2), (1.0, 1.1, 240, 0.2), (1.1, 1.2, 260, 0.3), (1.2, 1.4, 300, 0.3),
    (1.4, 1.8, 380, 0.4), (1.6, 2.2, 456, 0.4), (1.8, 2.6, 528, 0.5), (2.0, 3.1, 600, 0.5),
)  # fmt: skip
"""Width, depth, image size and dropout of B0 to B7."""
_LITES = ((1.0, 1.0, 224, 0.2), (1.0, 1.1, 240, 0.2), (1.1, 1.2, 260, 0.3), (1.2, 1.4, 280, 0.3),
          (1.4, 1.8, 300, 0.3))  # fmt: skip


class Recognised(NamedTuple):
    """What a file without a config is."""

    config: dict[str, Any]
    """As a config.json would say it."""
    processor: dict[str, Any]
    """How its images are prepared, in the words of a preprocessor_config.json."""


def recognise(tensors: Mapping[str, np.ndarray]) -> Recognised | None:
    """Return the config of weights whose layout is known, or None.

    >>> names = {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 3, 3)}
    >>> names |= {"layer1.0.conv2.weight": (64, 64, 3, 3), "fc.weight": (10, 64)}
    >>> found = recognise({name: np.zeros(shape, np.int8) for name, shape in names.items()})
    >>> found.config["layer_type"], found.config["depths"], found.config["num_labels"]
    ('basic', [1], 10)
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for marks, read in _LAYOUTS:
        if all(mark in shapes for mark in marks):
            return read(shapes)
    return None


def _numbers(shapes: Iterable[str], pattern: str) -> list[int]:
    """Return the distinct numbers at the one group of a pattern."""
    found = {int(match[1]) for name in shapes if (match := re.fullmatch(pattern, name))}
    return sorted(found)


def _labelled(config: dict[str, Any], stem: str, shapes: Shapes, head: str) -> dict[str, Any]:
    """Say which head the weights have, and of how many classes."""
    if head not in shapes:
        return config | {"architectures": [f"{stem}Model"]}
    axis = -1 if head.endswith("kernel") else 0
    classes = {"num_labels": shapes[head][axis]}
    return config | {"architectures": [f"{stem}ForImageClassification"]} | classes


def _processor(side: int, numbers: Mapping[str, Any], resize: int | None = None) -> dict[str, Any]:
    return {
        "do_resize": True, "size": {"shortest_edge": resize or round(side / 0.875)}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, **numbers,
    }  # fmt: skip


def _efficientnet(shapes: Shapes) -> Recognised | None:
    pattern = r"_blocks\.(\d+)\._project_conv\.weight"
    return _efficientnet_of(
        shapes,
        [shapes[f"_blocks.{n}._project_conv.weight"][0] for n in _numbers(shapes, pattern)],
        lite=not any("._se_reduce." in name for name in shapes),
        channels=shapes["_conv_stem.weight"][1],
        head="_fc.weight",
    )


def _efficientnet_of(
    shapes: Shapes, widths: list[int], *, lite: bool, channels: int, head: str
) -> Recognised | None:
    """Return the variant whose blocks are so wide."""
    for width, depth, side, dropout in _LITES if lite else _B:
        config: dict[str, Any] = {
            "model_type": "efficientnet",
            "width_coefficient": width,
            "depth_coefficient": depth,
            "hidden_dim": 1280 if lite else efficientnet.rounded(1280 * width, 8),
            "image_size": side,
            "dropout_rate": dropout,
            "hidden_act": "relu6" if lite else "swish",
            "squeeze_expansion_ratio": 0 if lite else 0.25,
            "padding": "same",
            "fixed_stem_and_head": lite,
            "batch_norm_eps": 1e-3,
            "batch_norm_momentum": 0.99,
            "num_channels": channels,
        }
        if [block.outside for block in efficientnet.read(config).blocks] == widths:
            config = _labelled(config, "EfficientNet", shapes, head)
            return Recognised(config, _processor(side, _LITE if lite else _IMAGENET))
    return None


def _resnet(shapes: Shapes) -> Recognised:
    stages = _numbers(shapes, r"layer(\d)\.0\.conv1\.weight")
    depths = [len(_numbers(shapes, rf"layer{s}\.(\d+)\.conv1\.weight")) for s in stages]
    wide = "conv3" if "layer1.0.conv3.weight" in shapes else "conv2"
    config = {
        "model_type": "resnet",
        "num_channels": shapes["conv1.weight"][1],
        "embedding_size": shapes["conv1.weight"][0],
        "hidden_sizes": [shapes[f"layer{s}.0.{wide}.weight"][0] for s in stages],
        "depths": depths,
        "layer_type": "bottleneck" if wide == "conv3" else "basic",
        "hidden_act": "relu",
    }
    config = _labelled(config, "ResNet", shapes, "fc.weight")
    return Recognised(config, _processor(224, _IMAGENET))


def _vgg(shapes: Shapes) -> Recognised:
    normed = "features.1.running_mean" in shapes
    places = [
        place
        for place in _numbers(shapes, r"features\.(\d+)\.weight")
        if len(shapes[f"features.{place}.weight"]) == 4
    ]
    step, depths, sizes = 3 if normed else 2, [1], []
    for before, place in itertools.pairwise(places):
        # A pooling layer between two convolutions moves the second one on by one.
        if place == before + step:
            depths[-1] += 1
        else:
            sizes.append(shapes[f"features.{before}.weight"][0])
            depths.append(1)
    sizes.append(shapes[f"features.{places[-1]}.weight"][0])
    side = math.isqrt(shapes["classifier.0.weight"][1] // sizes[-1])
    config = {
        "model_type": "vgg",
        "num_channels": shapes["features.0.weight"][1],
        "hidden_sizes": sizes,
        "depths": depths,
        "batch_norm": normed,
        "dense_sizes": [shapes["classifier.0.weight"][0], shapes["classifier.3.weight"][0]],
        "pooled_size": side,
    }
    config = _labelled(config, "VGG", shapes, "classifier.6.weight")
    return Recognised(config, _processor(224, _IMAGENET))


def _convnext(shapes: Shapes) -> Recognised:
    stages = _numbers(shapes, r"stages\.(\d+)\.blocks\.0\.conv_dw\.weight")
    config = {
        "model_type": "convnext",
        "num_channels": shapes["stem.0.weight"][1],
        "patch_size": shapes["stem.0.weight"][2],
        "num_stages": len(stages),
        "hidden_sizes": [shapes[f"stages.{s}.blocks.0.conv_dw.weight"][0] for s in stages],
        "depths": [
            len(_numbers(shapes, rf"stages\.{s}\.blocks\.(\d+)\.conv_dw\.weight")) for s in stages
        ],
        "layer_norm_eps": 1e-6,
        "layer_scale_init_value": 1e-6,
    }
    config = _labelled(config, "ConvNext", shapes, "head.fc.weight")
    return Recognised(config, _processor(224, _IMAGENET))


def _transformer(
    family: str, shapes: Shapes, patch: tuple[int, ...], table: str, inner: int,
    layers: int, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return what the shapes of any vision transformer say; heads are 64 wide, as published."""
    _, tokens, width = shapes[table]
    side = math.isqrt(tokens - (2 if family == "deit" else 1))
    ratio = inner // width if inner % width == 0 else inner / width  # torch's config wants an int
    wide = {"mlp_ratio": ratio} if family == "dinov2" else {"intermediate_size": inner}
    return {
        "model_type": family,
        "num_channels": patch[1],
        "patch_size": patch[2],
        "image_size": side * patch[2],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(width // 64, 1),
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        **wide,
        **more,
    }


def _timm(shapes: Shapes) -> Recognised:
    dino, deit = "blocks.0.ls1.gamma" in shapes, "dist_token" in shapes
    family, stem = ("dinov2", "Dinov2") if dino else ("deit", "DeiT") if deit else ("vit", "ViT")
    swiglu = "blocks.0.mlp.w12.weight" in shapes
    inner = shapes["blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc1.weight"]
    layers = len(_numbers(shapes, r"blocks\.(\d+)\.norm1\.weight"))
    config = _transformer(
        family, shapes, shapes["patch_embed.proj.weight"], "pos_embed",
        inner[1] if swiglu else inner[0], layers,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes, use_swiglu_ffn=swiglu,
    )  # fmt: skip
    if swiglu:
        config["mlp_ratio"] = 4
    config = _labelled(config, stem, shapes, "head.weight")
    if "head_dist.weight" in shapes:
        config["architectures"] = ["DeiTForImageClassificationWithTeacher"]
    numbers = _IMAGENET if dino or deit else _HALVES
    return Recognised(config, _processor(224 if dino else config["image_size"], numbers))


def _hub_transformer(shapes: Shapes) -> Recognised:
    dino = "encoder.layer.0.norm1.weight" in shapes
    family, stem = ("dinov2", "Dinov2") if dino else ("vit", "ViT")
    wide = "mlp.fc1" if dino else "intermediate.dense"
    layers = len(_numbers(shapes, r"encoder\.layer\.(\d+)\.attention\.output\.dense\.weight"))
    config = _transformer(
        family, shapes, shapes["embeddings.patch_embeddings.projection.weight"],
        "embeddings.position_embeddings", shapes[f"encoder.layer.0.{wide}.weight"][0], layers,
    )  # fmt: skip
    config = _labelled(config, stem, shapes, "classifier.weight")
    numbers = _IMAGENET if dino else _HALVES
    return Recognised(config, _processor(224 if dino else config["image_size"], numbers))


def _augreg(shapes: Shapes) -> Recognised:
    height, _, channels, width = shapes["embedding.kernel"]
    layers = len(_numbers(shapes, r"Transformer\.encoderblock\.(\d+)\.LayerNorm_0\.scale"))
    config = _transformer(
        "vit", shapes, (width, channels, height, height),
        "Transformer.posembed_input.pos_embedding",
        shapes["Transformer.encoderblock.0.MlpBlock_3.Dense_0.kernel"][1], layers,
    )  # fmt: skip
    config = _labelled(config, "ViT", shapes, "head.kernel")
    return Recognised(config, _processor(config["image_size"], _HALVES))


def _keras_efficientnet(shapes: Shapes) -> Recognised | None:
    block = "efficientnet.encoder.blocks"
    pattern = rf"{block}\.(\d+)\.projection\.project_conv\.kernel"
    return _efficientnet_of(
        shapes,
        [
            shapes[f"{block}.{number}.projection.project_conv.kernel"][-1]
            for number in _numbers(shapes, pattern)
        ],
        lite=False,
        channels=shapes["efficientnet.embeddings.convolution.kernel"][2],
        head="classifier.kernel",
    )


def _keras_resnet(shapes: Shapes) -> Recognised:
    stage = "resnet.encoder.stages.{}.layers"
    last = stage + ".0.layer.2.convolution.kernel"
    config = {
        "model_type": "resnet",
        "num_channels": shapes["resnet.embedder.embedder.convolution.kernel"][2],
        "embedding_size": shapes["resnet.embedder.embedder.convolution.kernel"][3],
        "hidden_sizes": [shapes[last.format(s)][-1] for s in range(4)],
        "depths": [
            len(_numbers(shapes, rf"{stage.format(s)}\.(\d+)\.layer\.0\.convolution\.kernel"))
            for s in range(4)
        ],
        "layer_type": "bottleneck",
        "downsample_in_bottleneck": True,
        "hidden_act": "relu",
    }
    config = _labelled(config, "ResNet", shapes, "classifier.1.kernel")
    return Recognised(config, _processor(224, _CAFFE))


def _keras_vgg(shapes: Shapes) -> Recognised:
    kernel = "vgg.features.{}.conv.kernel"
    places = _numbers(shapes, r"vgg\.features\.(\d+)\.conv\.kernel")
    widths = [shapes[kernel.format(place)][-1] for place in places]
    dense = [shapes[name][-1] for i in (1, 2) if (name := f"vgg.dense.fc{i}_.kernel") in shapes]
    config: dict[str, Any] = {
        "model_type": "vgg",
        "num_channels": shapes[kernel.format(0)][2],
        "hidden_sizes": [64, 128, 256, 512, 512],
        "depths": [2, 2, 3, 3, 3] if len(places) == 13 else [2, 2, 4, 4, 4],
        "batch_norm": False,
        "dense_sizes": dense,
    }
    each = zip(config["hidden_sizes"], config["depths"], strict=True)
    if widths != [width for width, depth in each for _ in range(depth)]:
        raise ValueError(
            f"the weights hold {len(widths)} convolutions of widths {widths}, and neither VGG 16 "
            "nor VGG 19 of keras.applications has these; take one of the two"
        )
    if dense:
        flat = shapes["vgg.dense.fc1_.kernel"][0]
        config["pooled_size"] = math.isqrt(flat // widths[-1])
    config = _labelled(config, "VGG", shapes, "classifier.kernel")
    return Recognised(config, _processor(224, _CAFFE))


_LAYOUTS: tuple[tuple[tuple[str, ...], Callable[[Shapes], Recognised | None]], ...] = (
    (("_conv_stem.weight", "_blocks.0._depthwise_conv.weight"), _efficientnet),
    (("conv1.weight", "layer1.0.conv1.weight"), _resnet),
    (("features.0.weight", "classifier.0.weight", "classifier.3.weight"), _vgg),
    (("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"), _convnext),
    (("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed"), _timm),
    (
        ("embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings",
         "encoder.layer.0.attention.output.dense.weight"),
        _hub_transformer,
    ),
    (("embedding.kernel", "Transformer.posembed_input.pos_embedding"), _augreg),
    (("efficientnet.embeddings.convolution.kernel",), _keras_efficientnet),
    (("resnet.embedder.embedder.convolution.kernel",), _keras_resnet),
    (("vgg.features.0.conv.kernel",), _keras_vgg),
)  # fmt: skip
"""Names that a layout has -> how to read its sizes."""
