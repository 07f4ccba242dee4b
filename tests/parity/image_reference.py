"""Small random checkpoints of image models, and images for them, from NumPy alone.

Weights are drawn tensor by tensor in the order of their sorted names, so the same seed gives the
same checkpoint to torch (which makes the goldens) and to a test that has no torch.
"""

import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from sftjax.hub import load

VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
DINO = {**VIT, "model_type": "dinov2", "mlp_ratio": 2, "layerscale_value": 0.5}


class Case(NamedTuple):
    """One checkpoint: transformers' class for it, its config, and the size of the images."""

    torch_class: str
    kind: str
    config: dict[str, Any]
    size: tuple[int, int] = (32, 32)
    labels: int = 0
    call: Mapping[str, Any] = MappingProxyType({})


CASES = {
    "resnet-basic": Case("ResNetForImageClassification", "image", {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24],
        "depths": [2, 1, 1], "layer_type": "basic"}, (33, 38), 3),
    "resnet-bottleneck": Case("ResNetForImageClassification", "image", {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 32],
        "depths": [2, 2], "layer_type": "bottleneck", "downsample_in_first_stage": True,
        "num_channels": 1}, (32, 40), 4),
    "resnet-v1-hidden": Case("ResNetModel", "hidden", {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 32],
        "depths": [1, 2], "layer_type": "bottleneck", "downsample_in_bottleneck": True,
        "hidden_act": "gelu"}),
    "efficientnet": Case("EfficientNetForImageClassification", "image", {
        "model_type": "efficientnet", "width_coefficient": 0.25, "depth_coefficient": 0.6,
        "hidden_dim": 320, "depthwise_padding": [3], "kernel_sizes": [3, 3, 5, 3]
        , "in_channels": [32, 16, 24, 40], "out_channels": [16, 24, 40, 80],
        "strides": [1, 2, 2, 2], "num_block_repeats": [1, 2, 2, 3],
        "expand_ratios": [1, 6, 6, 6]}, (37, 37), 3),
    "convnext": Case("ConvNextForImageClassification", "image", {
        "model_type": "convnext", "num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 1],
        "layer_scale_init_value": 0.5}, (24, 32), 3),
    "convnext-hidden": Case("ConvNextModel", "hidden", {
        "model_type": "convnext", "num_stages": 2, "hidden_sizes": [8, 8], "depths": [1, 1],
        "patch_size": 2, "hidden_act": "relu", "layer_scale_init_value": 0.0}),
    "vit": Case("ViTForImageClassification", "image", {
        **VIT, "model_type": "vit", "hidden_act": "gelu_new"}, (16, 16), 3),
    "vit-larger": Case("ViTModel", "hidden", {
        **VIT, "model_type": "vit", "qkv_bias": False}, (20, 12),
        call={"interpolate_pos_encoding": True}),
    "deit": Case("DeiTForImageClassification", "image", {**VIT, "model_type": "deit"},
        (16, 16), 3),
    "deit-teacher": Case("DeiTForImageClassificationWithTeacher", "image", {
        **VIT, "model_type": "deit"}, (24, 24), 3, {"interpolate_pos_encoding": True}),
    "dinov2": Case("Dinov2ForImageClassification", "image", DINO, (32, 24), 3),
    "dinov2-swiglu": Case("Dinov2Model", "hidden", DINO | {"use_swiglu_ffn": True}, (16, 16)),
    "dinov2-features": Case("Dinov2Model", "features", DINO, (8, 8)),
}  # fmt: skip


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Draw a checkpoint; norms lie around 1, variances above 0, kernels keep the scale."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in sorted(shapes):
        shape = shapes[name]
        draw = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("num_batches_tracked"):
            drawn[name] = np.asarray(7, np.int64)
        elif name.endswith("running_var"):
            drawn[name] = (0.5 + draw**2).astype(np.float32)
        elif len(shape) == 1:
            center = float(name.endswith(("weight", "lambda1", "layer_scale_parameter")))
            drawn[name] = (center + 0.2 * draw).astype(np.float32)
        else:
            drawn[name] = (draw * (1.5 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
    return drawn


def images(case: Case, seed: int = 1) -> np.ndarray:
    """Two images, (B, H, W, C)."""
    rng = np.random.default_rng(seed)
    shape = (2, *case.size, case.config.get("num_channels", 3))
    return rng.standard_normal(shape, dtype=np.float32)


def config_of(case: Case) -> dict[str, Any]:
    """Return the config.json that belongs to a case."""
    labels = {str(i): f"class {i}" for i in range(case.labels)}
    named = {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
    return {**case.config, "architectures": [case.torch_class], **(named if labels else {})}


def ours(case: Case, tensors: Mapping[str, np.ndarray], folder: pathlib.Path):
    """Write the checkpoint, load it as a user would, and return (model, params, report)."""
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(case)))
    model, params, report = load(folder, head=None if case.labels else case.kind)
    assert report.new == ()
    assert model.head.kind == case.kind
    return model, params, report
