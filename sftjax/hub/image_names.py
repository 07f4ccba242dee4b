"""The weight maps of image models: the Hub's layout, and those of other collections.

Convolutions are (out, in, height, width) in torch and (height, width, in, out) here.
"""

from sftjax.hub.names import Row, WeightMap, batch_norm, convolution, dense, norm, parameter

COUNTER = "num_batches_tracked"
"""What torch keeps beside running statistics; a buffer, written as 0 where there was none."""


def moved(rows: tuple[Row, ...], theirs: str, ours: str) -> tuple[Row, ...]:
    """Give rows that were made for our names another collection's names.

    >>> moved(dense("vit.head"), "fc", "vit.head")[1]
    Row(tensor='fc.bias', path='vit/head/bias', axes=(), legacy='', part=(0, 1))
    """
    return tuple(row._replace(tensor=row.tensor.replace(ours, theirs, 1)) for row in rows)


def _counters(*norms: str) -> tuple[str, ...]:
    return tuple(f"{norm}.{COUNTER}" for norm in norms)


def _norms(rows: tuple[Row, ...]) -> tuple[str, ...]:
    ending = ".running_var"
    return tuple(row.tensor.removesuffix(ending) for row in rows if row.tensor.endswith(ending))


def _keras(stem: str, trunk: str, rows: tuple[Row, ...]) -> WeightMap:
    """Return the layout that Keras' reader gives: our own paths."""
    ours = tuple(Row(row.path.replace("/", "."), row.path) for row in rows)
    return WeightMap(stem, trunk, ours, layout="Keras")


DECODER = (
    *(row for level in range(4) for row in convolution(f"decoder.lateral_{level}_", bias=True)),
    *convolution("decoder.smooth", bias=True),
    *convolution("decoder.classifier", bias=True),
)


def _resnet() -> WeightMap:
    layer = "resnet.encoder.stages.{}.layers.{}"
    trunk = (
        *convolution("resnet.embedder.embedder.convolution"),
        *batch_norm("resnet.embedder.embedder.normalization"),
        *convolution(f"{layer}.layer.{{}}.convolution"),
        *batch_norm(f"{layer}.layer.{{}}.normalization"),
        *convolution(f"{layer}.shortcut.convolution"),
        *batch_norm(f"{layer}.shortcut.normalization"),
    )
    rows = (
        *moved(convolution("resnet.embedder.embedder.convolution"), "conv1",
               "resnet.embedder.embedder.convolution"),
        *moved(batch_norm("resnet.embedder.embedder.normalization"), "bn1",
               "resnet.embedder.embedder.normalization"),
        *moved(dense("classifier.1"), "fc", "classifier.1"),
    )  # fmt: skip
    for stage in range(4):
        ours, theirs = f"resnet.encoder.stages.{stage}.layers.{{}}", f"layer{stage + 1}.{{}}"
        pairs = [(f"{ours}.layer.{i}", f"conv{i + 1}", f"bn{i + 1}") for i in range(3)]
        pairs.append((f"{ours}.shortcut", "downsample.0", "downsample.1"))
        for module, conv, bn in pairs:
            window, normalization = f"{module}.convolution", f"{module}.normalization"
            rows += moved(convolution(window), f"{theirs}.{conv}", window)
            rows += moved(batch_norm(normalization), f"{theirs}.{bn}", normalization)
    torchvision = WeightMap(
        "ResNet", "resnet", rows, buffers=_counters(*_norms(rows)), layout="torchvision"
    )
    return WeightMap(
        stem="ResNet",
        trunk="resnet",
        rows=(*trunk, *dense("classifier.1"), *DECODER),
        buffers=_counters(*_norms(trunk)),
        output={"image": "classifier", "segment": "decoder/classifier"},
        others=(torchvision, _keras("ResNet", "resnet", (*trunk, *dense("classifier.1")))),
        pixels="resnet/embedder/embedder/convolution/kernel",
    )


def _efficientnet() -> WeightMap:
    block = "efficientnet.encoder.blocks.{}"
    theirs = "_blocks.{}"
    pairs = (
        ("efficientnet.embeddings.convolution", "_conv_stem", convolution),
        ("efficientnet.embeddings.batchnorm", "_bn0", batch_norm),
        (f"{block}.expansion.expand_conv", f"{theirs}._expand_conv", convolution),
        (f"{block}.expansion.expand_bn", f"{theirs}._bn0", batch_norm),
        (f"{block}.depthwise_conv.depthwise_conv", f"{theirs}._depthwise_conv", convolution),
        (f"{block}.depthwise_conv.depthwise_norm", f"{theirs}._bn1", batch_norm),
        (f"{block}.squeeze_excite.reduce", f"{theirs}._se_reduce", _biased),
        (f"{block}.squeeze_excite.expand", f"{theirs}._se_expand", _biased),
        (f"{block}.projection.project_conv", f"{theirs}._project_conv", convolution),
        (f"{block}.projection.project_bn", f"{theirs}._bn2", batch_norm),
        ("efficientnet.encoder.top_conv", "_conv_head", convolution),
        ("efficientnet.encoder.top_bn", "_bn1", batch_norm),
        ("classifier", "_fc", dense),
    )
    rows = tuple(row for ours, _, kind in pairs for row in kind(ours))
    other = tuple(row for ours, name, kind in pairs for row in moved(kind(ours), name, ours))
    lukemelas = WeightMap(
        "EfficientNet", "efficientnet", other, buffers=_counters(*_norms(other)),
        layout="EfficientNet-PyTorch",
    )  # fmt: skip
    return WeightMap(
        stem="EfficientNet",
        trunk="efficientnet",
        rows=(*rows, *DECODER),
        buffers=_counters(*_norms(rows)),
        output={"image": "classifier", "segment": "decoder/classifier"},
        others=(lukemelas, _keras("EfficientNet", "efficientnet", rows)),
        pixels="efficientnet/embeddings/convolution/kernel",
    )


def _biased(module: str) -> tuple[Row, ...]:
    return convolution(module, bias=True)


def _convnext() -> WeightMap:
    stage = "convnext.encoder.stages.{}"
    layer = f"{stage}.layers.{{}}"
    down = f"{stage}.downsampling_layer"
    pairs = (
        ("convnext.embeddings.patch_embeddings", "stem.0", _biased),
        ("convnext.embeddings.layernorm", "stem.1", norm),
        (f"{layer}.dwconv", "stages.{}.blocks.{}.conv_dw", _biased),
        (f"{layer}.layernorm", "stages.{}.blocks.{}.norm", norm),
        (f"{layer}.pwconv1", "stages.{}.blocks.{}.mlp.fc1", dense),
        (f"{layer}.pwconv2", "stages.{}.blocks.{}.mlp.fc2", dense),
        (f"{layer}.layer_scale_parameter", "stages.{}.blocks.{}.gamma", parameter),
        (f"{down}.0", "stages.{}.downsample.0", norm),
        (f"{down}.1", "stages.{}.downsample.1", _biased),
        ("convnext.layernorm", "head.norm", norm),
        ("classifier", "head.fc", dense),
    )
    rows = tuple(row for ours, _, kind in pairs for row in kind(ours))
    timm = tuple(row for ours, name, kind in pairs for row in moved(kind(ours), name, ours))
    return WeightMap(
        stem="ConvNext",
        trunk="convnext",
        rows=(*rows, *DECODER),
        output={"image": "classifier", "segment": "decoder/classifier"},
        others=(WeightMap("ConvNext", "convnext", timm, layout="timm"),),
        pixels="convnext/embeddings/patch_embeddings/kernel",
    )


VGG_DEPTHS = ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4))
"""Convolutions of each stage of VGG 11, 13, 16 and 19."""


def vgg_places(depths: tuple[int, ...], batch_norm: bool) -> list[int]:
    """Return where torchvision has each convolution among its layers.

    >>> vgg_places((1, 2), False)
    [0, 3, 5]
    """
    places, layer = [], 0
    for depth in depths:
        for _ in range(depth):
            places.append(layer)
            layer += 3 if batch_norm else 2
        layer += 1
    return places


def _vgg() -> WeightMap:
    block = "vgg.features.{}"
    rows = (
        *convolution(f"{block}.conv", bias=True),
        *batch_norm(f"{block}.norm"),
        *(row for i in (1, 2) for row in dense(f"vgg.dense.fc{i}_")),
        *dense("classifier"),
    )
    others = [_keras("VGG", "vgg", rows)]
    for depths in VGG_DEPTHS:
        for normed in (False, True):
            theirs: tuple[Row, ...] = ()
            for number, place in enumerate(vgg_places(depths, normed)):
                conv, bn = f"vgg.features.{number}.conv", f"vgg.features.{number}.norm"
                theirs += moved(convolution(conv, bias=True), f"features.{place}", conv)
                if normed:
                    theirs += moved(batch_norm(bn), f"features.{place + 1}", bn)
            for name, ours in (("0", "vgg.dense.fc1_"), ("3", "vgg.dense.fc2_")):
                theirs += moved(dense(ours), f"classifier.{name}", ours)
            theirs += moved(dense("classifier"), "classifier.6", "classifier")
            others.append(
                WeightMap("VGG", "vgg", theirs, buffers=_counters(*_norms(theirs)),
                          layout="torchvision")
            )  # fmt: skip
    return WeightMap(
        stem="VGG",
        trunk="vgg",
        rows=(*rows, *DECODER),
        buffers=_counters(*_norms(rows)),
        output={"image": "classifier", "segment": "decoder/classifier"},
        others=tuple(others),
        pixels="vgg/features/0/conv/kernel",
    )


def _tokens(trunk: str) -> tuple[tuple[str, str], ...]:
    names = (("cls_token", "cls_token"), ("position_embeddings", "pos_embed"))
    return (*names, ("distillation_token", "dist_token")) if trunk == "deit" else names


def _transformer(trunk: str, stem: str) -> WeightMap:
    dino = trunk == "dinov2"
    block, new = f"{trunk}.encoder.layer.{{}}", f"{trunk}.layers.{{}}"
    if dino:
        new = block
    before, after = ("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after")
    projection = f"{trunk}.embeddings.patch_embeddings.projection"
    # (our name, transformers 5's inside a file that was not written by it, timm's, rows)
    modules = [
        (f"{block}.attention.output.dense", f"{new}.attention.o_proj", "attn.proj", dense),
        (f"{block}.{before}", f"{new}.{before}", "norm1", norm),
        (f"{block}.{after}", f"{new}.{after}", "norm2", norm),
    ]
    if dino:
        modules += [
            (f"{block}.mlp.fc1", f"{new}.mlp.fc1", "mlp.fc1", dense),
            (f"{block}.mlp.fc2", f"{new}.mlp.fc2", "mlp.fc2", dense),
            (f"{block}.mlp.weights_in", f"{new}.mlp.weights_in", "mlp.w12", dense),
            (f"{block}.mlp.weights_out", f"{new}.mlp.weights_out", "mlp.w3", dense),
            *(
                (f"{block}.layer_scale{i}.lambda1", f"{new}.layer_scale{i}.lambda1",
                 f"ls{i}.gamma", parameter)
                for i in (1, 2)
            ),
        ]  # fmt: skip
    else:
        modules += [
            (f"{block}.intermediate.dense", f"{new}.mlp.fc1", "mlp.fc1", dense),
            (f"{block}.output.dense", f"{new}.mlp.fc2", "mlp.fc2", dense),
        ]
    ends = (
        *convolution(projection, bias=True),
        *(row for ours, _ in _tokens(trunk) for row in parameter(f"{trunk}.embeddings.{ours}")),
        *norm(f"{trunk}.layernorm"),
        *dense("classifier"),
        *dense("cls_classifier"),
        *dense("distillation_classifier"),
    )
    qkv = [f"{block}.attention.attention.{name}" for name in ("query", "key", "value")]
    rows = (
        *ends,
        *(row for name in qkv for row in dense(name)),
        *(row for ours, _, _, kind in modules for row in kind(ours)),
    )
    five = (
        *ends,
        *(
            row
            for name, short in zip(qkv, "qkv", strict=True)
            for row in moved(dense(name), f"{new}.attention.{short}_proj", name)
        ),
        *(row for ours, name, _, kind in modules for row in moved(kind(ours), name, ours)),
    )
    timm = (
        *moved(convolution(projection, bias=True), "patch_embed.proj", projection),
        *(
            row
            for ours, name in _tokens(trunk)
            for row in moved(
                parameter(f"{trunk}.embeddings.{ours}"), name, f"{trunk}.embeddings.{ours}"
            )
        ),
        *moved(norm(f"{trunk}.layernorm"), "norm", f"{trunk}.layernorm"),
        *moved(dense("classifier"), "head", "classifier"),
        *moved(dense("distillation_classifier"), "head_dist", "distillation_classifier"),
        *(
            row._replace(part=(number, 3))
            for number, ours in enumerate(qkv)
            for row in moved(dense(ours), "blocks.{}.attn.qkv", ours)
        ),
        *(
            row
            for ours, _, name, kind in modules
            for row in moved(kind(ours), f"blocks.{{}}.{name}", ours)
        ),
    )
    others = [WeightMap(stem, trunk, five, layout="transformers 5")]
    others.append(WeightMap(stem, trunk, timm, buffers=("mask_token",), layout="timm"))
    if not dino:
        others.append(WeightMap(stem, trunk, _augreg(trunk), layout="augreg"))
    return WeightMap(
        stem=stem,
        trunk=trunk,
        rows=(*rows, *dense(f"{trunk}.pooler.dense"), *DECODER),
        buffers=(f"{trunk}.embeddings.mask_token",),
        output={"image": "*classifier", "segment": "decoder/classifier"},
        others=tuple(others),
        pixels=f"{trunk}/embeddings/patch_embeddings/projection/kernel",
    )


def _augreg(trunk: str) -> tuple[Row, ...]:
    """Return the names of vision_transformer's .npz files; kernels are Flax's there too."""
    block, theirs = f"{trunk}/encoder/layer/{{}}", "Transformer.encoderblock.{}"
    attention = f"{theirs}.MultiHeadDotProductAttention_1"
    projection = f"{trunk}/embeddings/patch_embeddings/projection"
    pairs = [
        ("cls", f"{trunk}/embeddings/cls_token"),
        ("Transformer.posembed_input.pos_embedding", f"{trunk}/embeddings/position_embeddings"),
        *((f"embedding.{leaf}", f"{projection}/{leaf}") for leaf in ("kernel", "bias")),
        *((f"head.{leaf}", f"classifier/{leaf}") for leaf in ("kernel", "bias")),
    ]
    modules = [
        *(
            (f"{attention}.{name}", f"{block}/attention/attention/{name}")
            for name in ("query", "key", "value")
        ),
        (f"{attention}.out", f"{block}/attention/output/dense"),
        (f"{theirs}.MlpBlock_3.Dense_0", f"{block}/intermediate/dense"),
        (f"{theirs}.MlpBlock_3.Dense_1", f"{block}/output/dense"),
    ]  # fmt: skip
    norms = [
        ("Transformer.encoder_norm", f"{trunk}/layernorm"),
        (f"{theirs}.LayerNorm_0", f"{block}/layernorm_before"),
        (f"{theirs}.LayerNorm_2", f"{block}/layernorm_after"),
    ]
    pairs += [(f"{a}.{leaf}", f"{b}/{leaf}") for a, b in modules for leaf in ("kernel", "bias")]
    pairs += [(f"{a}.{leaf}", f"{b}/{leaf}") for a, b in norms for leaf in ("scale", "bias")]
    return tuple(Row(theirs, ours) for theirs, ours in pairs)


IMAGE_MODELS: dict[str, WeightMap] = {
    "resnet": _resnet(),
    "efficientnet": _efficientnet(),
    "convnext": _convnext(),
    "vgg": _vgg(),
    "vit": _transformer("vit", "ViT"),
    "deit": _transformer("deit", "DeiT"),
    "dinov2": _transformer("dinov2", "Dinov2"),
}
"""`model_type` of the config -> its table."""
