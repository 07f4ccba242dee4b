"""`load`: a checkpoint's folder or name -> a model, its params, and an account of both."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from sftjax.adapters.quantize import fits
from sftjax.adapters.quantize import quantize as quantized
from sftjax.core import PyTree, ShardingOf, flatten, unflatten
from sftjax.hub.config import build_of, choose_head, read_config
from sftjax.hub.fitting import fitted
from sftjax.hub.matching import Match, match
from sftjax.hub.placing import put
from sftjax.hub.recognise import recognise
from sftjax.hub.report import LoadReport
from sftjax.hub.seq2seq_names import settled
from sftjax.hub.source import PROCESSOR, find_folder, tokenizer_files
from sftjax.hub.weights import Weights, open_file, open_weights
from sftjax.models import Head, Model
from sftjax.models.shapes import fresh


class Loaded(NamedTuple):
    """A pretrained model."""

    model: Model
    params: PyTree
    report: LoadReport


def load(
    name_or_folder: str | os.PathLike[str],
    *,
    config: Mapping[str, Any] | None = None,
    head: Head | str | None = None,
    labels: Sequence[str] = (),
    problem_type: str | None = None,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = jnp.float32,
    quantize: str | None = None,
    key: Array | None = None,
    ignore: Sequence[str] = (),
    sharding: ShardingOf | None = None,
) -> Loaded:
    """Load a checkpoint of the Hub's layout, leaf by leaf from the mapped file.

    A folder without a config.json, or a single file (`.pth`, `.bin`, `.npz`, `.onnx`, ...), is
    read where the names of its tensors say what it is: a ResNet or VGG of torchvision's, an
    EfficientNet of EfficientNet-PyTorch's, a ConvNeXt or vision transformer of timm's, an augreg
    ViT. No file is ever run: pickles are read by a reader that knows tensors and nothing else.

    Args:
      name_or_folder: a local folder, a file of weights (`.gguf` among them), or a repository on the
        Hub.
      config: fields that replace those of the config.json, or the whole of it where there is none.
        `{"num_channels": 1}` reads grey images with a trunk made for colour, and another
        `image_size` interpolates a transformer's positions once and for all.
      head: which head to put on the trunk: of text "sequence", "token", "masked-lm", "causal-lm",
        "seq2seq-lm", "pooled", "first", "mean", "hidden"; of images "image", "features", "map",
        "segment", "hidden"; a `Head`, or None for the one the checkpoint was saved with.
      labels: class names in id order. Where they are not those of the checkpoint's own head, its
        last layer is new; transformers' placeholders (`LABEL_0`) are simply given names.
      problem_type: "single_label_classification", "multi_label_classification" or "regression".
      dtype: what the model computes in.
      param_dtype: what the params are kept in; None for the file's own dtypes.
      quantize: keep wide matrices in few bits, each quantized as soon as it is read: "nf4", "int8",
        or "nf4-double", "int8-double" with quantized scales (see `adapters.quantize_base`).
      key: initialises the leaves without a pretrained value; `jax.random.key(0)` if None.
      ignore: patterns of tensor names (`/` for `.`) that may be in the file for no known reason.
      sharding: `(path, shape) -> Sharding`, such as `by_rules(mesh, ...)`: each device is given its
        own part of a leaf from the mapped file, and no leaf is ever whole on the host.

    Returns:
      The model, its params (a nested dict), and the report; `report.new` names what is new.

    Raises:
      FileNotFoundError: if there is no such folder, config or weights file.
      ValueError: if a file is damaged, or tensors are missing, unexpected or misshapen: all of them
        in one message; or if both `quantize` and `sharding` are given.
    """
    if quantize is not None and sharding is not None:
        raise ValueError(
            "quantize and sharding cannot be combined: a quantized matrix is packed as a whole and "
            "cannot be laid out over devices while it is read; leave one of them out"
        )
    file = pathlib.Path(name_or_folder).expanduser()
    alone = file.is_file() and file.suffix != ".gguf"  # which is turned into a folder first
    folder = file.parent if alone else find_folder(name_or_folder)
    weights = open_file(file) if alone else None
    if weights is None and not (folder / "config.json").is_file():
        weights = open_weights(folder)
    described, processor = _settle(folder, weights, config or {})
    chosen = choose_head(described, head, labels, problem_type)
    weights = weights or open_weights(folder)
    described = settled(described, weights.tensors)
    model = build_of(name_or_folder, described, chosen, dtype)
    labels_given = isinstance(head, Head) or bool(labels)
    matched = match(model, weights, labels_given=labels_given, ignore=ignore)
    report = LoadReport(
        source=os.fspath(name_or_folder),
        folder=folder,
        config=described,
        weights=weights,
        names={path: spot.tensor for path, spot in matched.found.items()},
        dtypes={p: weights.tensors[s.tensor].dtype.name for p, s in matched.found.items()},
        new=matched.new,
        unused=matched.unused,
        ignored=matched.ignored,
        aliases=matched.aliases,
        buffers=matched.buffers,
        tokenizer_files=tokenizer_files(folder),
        fitted=matched.fitted,
        layout=matched.layout,
        processor=processor,
    )
    keep = _keeper(quantize, param_dtype, sharding)
    params = _fill(model, weights, matched, key, param_dtype, keep, sharding)
    return Loaded(model, params, report)


def _settle(
    folder: pathlib.Path, weights: Weights | None, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the config and how images are prepared: as the files say, or the weights' names."""
    processor = None
    if (folder / PROCESSOR).is_file():
        try:
            processor = json.loads((folder / PROCESSOR).read_text("utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{folder / PROCESSOR} is not valid JSON: {error}. Mend it there, or copy the file "
                "again."
            ) from error
    if not (folder / "config.json").is_file() and weights is not None:
        known = recognise(weights.tensors)
        if known is not None and given.get("model_type") in (None, known.config["model_type"]):
            return {**known.config, **given}, processor or known.processor
        if "model_type" in given:
            return dict(given), processor
    return {**read_config(folder), **given}, processor


def _fill(
    model: Model,
    weights: Weights,
    matched: Match,
    key: Array | None,
    param_dtype: DTypeLike | None,
    keep: Callable[[str, np.ndarray], Any],
    sharding: ShardingOf | None,
) -> PyTree:
    leaves: dict[str, Any] = {}
    shapes = flatten(model.shapes()) if matched.fitted else {}
    if matched.new:

        @jax.jit  # compiled, so that the leaves which come from the file are never made
        def initialise(key: Array) -> dict[str, Array]:
            return fresh(model.init, key, matched.new)

        for path, leaf in initialise(jax.random.key(0) if key is None else key).items():
            leaf = leaf if param_dtype is None else leaf.astype(param_dtype)
            leaves[path] = leaf
            if sharding is not None:
                leaves[path] = jax.device_put(leaf, sharding(path, leaf.shape))
    underway: tuple[str, Any] | None = None
    for path, spot in matched.found.items():
        values = spot.ours(weights.tensors[spot.tensor])
        if path in matched.fitted:
            values = fitted(np.asarray(values), shapes[path].shape)
        leaves[path] = keep(path, values)
        _finish(weights, underway)
        underway = spot.tensor, leaves[path]
    _finish(weights, underway)
    return unflatten(leaves)


def _finish(weights: Weights, underway: tuple[str, Any] | None) -> None:
    """Let a tensor's pages go when its leaf is there; meanwhile the next is on its way already."""
    if underway is not None:
        tensor, leaf = underway
        jax.block_until_ready(leaf)  # copied in the background: pages let go before would come back
        weights.release(tensor)


def _keeper(
    how: str | None, dtype: DTypeLike | None, sharding: ShardingOf | None
) -> Callable[[str, np.ndarray], Any]:
    """Return what makes a leaf of the values read: an array, or its few bits."""
    if how is None:
        return lambda path, values: put(
            values, dtype, None if sharding is None else sharding(path, values.shape)
        )
    name, _, double = how.partition("-")
    if name not in ("nf4", "int8") or double not in ("", "double"):
        raise ValueError(f"quantize is {how!r}; it is one of nf4, nf4-double, int8, int8-double")

    def keep(path: str, values: np.ndarray) -> Any:
        if fits(path, values):
            whole = np.asarray(values, dtype=dtype, order="C")
            return quantized(whole, name, double=bool(double))
        return put(values, dtype)

    return keep
