"""What `load` would give, in shapes: from a config and the headers of files, no weight read."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sftjax.adapters.quantize import fits
from sftjax.adapters.quantize import quantize as quantized
from sftjax.core import PyTree, map_with_path
from sftjax.hub.config import build_of, choose_head, read_config
from sftjax.hub.gguf_file import GgufFile
from sftjax.hub.gguf_model import config_of_gguf
from sftjax.hub.matching import match, new_without_file
from sftjax.hub.seq2seq_names import settled
from sftjax.hub.source import find_folder, lone_gguf
from sftjax.hub.weights import Weights, tensor_shapes
from sftjax.models import Head, Model


class Outline(NamedTuple):
    """A checkpoint as it would be loaded."""

    model: Model
    params: PyTree
    """`jax.ShapeDtypeStruct`s, and `Quantized` ones of them."""
    new: tuple[str, ...]
    """Paths of the leaves without a pretrained value."""


def outline(
    name_or_folder: str | os.PathLike[str],
    *,
    head: Head | str | None = None,
    labels: Sequence[str] = (),
    problem_type: str | None = None,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    quantize: str | None = None,
) -> Outline:
    """Return what `load` gives for the same arguments, in shapes.

    Read are the config.json and the headers of safetensors or GGUF files. Where there are none (a
    config alone is enough, and of a name on the Hub nothing else is fetched), the leaves are taken
    to be in the file that a checkpoint of the config's own class would have.

    Raises:
      FileNotFoundError: if there is no such folder or config.
      ValueError: as `load` does for the config and for tensors of other names and shapes.
    """
    gguf = lone_gguf(name_or_folder)
    folder = (
        pathlib.Path(name_or_folder) if gguf else find_folder(name_or_folder, config_alone=True)
    )
    config = config_of_gguf(GgufFile(gguf)) if gguf else read_config(folder)
    tensors = {} if gguf else tensor_shapes(folder)
    chosen = choose_head(config, head, labels, problem_type)
    if tensors:  # a head beside the word table counts as its own: nobody compares their values
        config = settled(config, {name: number for number, name in enumerate(tensors)})
    model = build_of(name_or_folder, config, chosen, dtype)
    labels_given = isinstance(head, Head) or bool(labels)
    if tensors:
        new = match(model, _hollow(folder, tensors), labels_given=labels_given).new
    else:
        new = new_without_file(model, labels_given=labels_given)
    how, _, double = (quantize or "").partition("-")

    def leaf(path: str, shape: jax.ShapeDtypeStruct) -> object:
        shape = jax.ShapeDtypeStruct(shape.shape, param_dtype)
        if how and path not in new and fits(path, shape):
            return quantized(shape, how, double=bool(double))  # type: ignore[arg-type]
        return shape

    return Outline(model, map_with_path(leaf, model.shapes()), new)


def _hollow(folder: pathlib.Path, tensors: dict[str, jax.ShapeDtypeStruct]) -> Weights:
    """Return weights of these shapes that take no memory: one zero, seen everywhere."""
    hollow = {
        name: np.broadcast_to(np.zeros((), shape.dtype), shape.shape)
        for name, shape in tensors.items()
    }
    return Weights("outline", (folder / "its headers",), hollow, lambda tensor: None, dict)
