"""`load`: a checkpoint's folder or name -> a model, its params, and an account of both."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from sftjax.adapters.quantize import fits
from sftjax.adapters.quantize import quantize as quantized
from sftjax.core import PyTree, flatten, unflatten
from sftjax.hub.config import choose_head, read_config
from sftjax.hub.matching import Match, match
from sftjax.hub.placing import ShardingOf, put
from sftjax.hub.report import LoadReport
from sftjax.hub.source import find_folder, tokenizer_files
from sftjax.hub.weights import Weights, open_weights
from sftjax.models import Head, Model, build


class Loaded(NamedTuple):
    """A pretrained model."""

    model: Model
    params: PyTree
    report: LoadReport


def load(
    name_or_folder: str | os.PathLike[str],
    *,
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

    Args:
      name_or_folder: a local folder, a repository on the Hub, or a `.gguf` file.
      head: which head to put on the trunk: "sequence", "token", "masked-lm", "causal-lm", "pooled",
        "first", "mean", "hidden", a `Head`, or None for the one the checkpoint was saved with.
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
            "a leaf in few bits is packed as a whole and cannot be laid out over devices while it "
            "is read; leave out quantize or sharding"
        )
    folder = find_folder(name_or_folder)
    config = read_config(folder)
    chosen = choose_head(config, head, labels, problem_type)
    model = build(config, chosen, dtype=dtype)
    weights = open_weights(folder)
    labels_given = isinstance(head, Head) or bool(labels)
    matched = match(model, weights, labels_given=labels_given, ignore=ignore)
    report = LoadReport(
        source=os.fspath(name_or_folder),
        folder=folder,
        config=config,
        weights=weights,
        names={path: spot.tensor for path, spot in matched.found.items()},
        dtypes={p: weights.tensors[s.tensor].dtype.name for p, s in matched.found.items()},
        new=matched.new,
        unused=matched.unused,
        ignored=matched.ignored,
        aliases=matched.aliases,
        buffers=matched.buffers,
        tokenizer_files=tokenizer_files(folder),
    )
    params = _fill(model, weights, matched, key, param_dtype, _keeper(quantize), sharding)
    return Loaded(model, params, report)


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
    if matched.new:
        # Compiled, so that the leaves which come from the file are never made.
        initialise = jax.jit(lambda key: {p: flatten(model.init(key))[p] for p in matched.new})
        for path, leaf in initialise(jax.random.key(0) if key is None else key).items():
            leaf = leaf if param_dtype is None else leaf.astype(param_dtype)
            leaves[path] = leaf
            if sharding is not None:
                leaves[path] = jax.device_put(leaf, sharding(path, leaf.shape))
    for path, spot in matched.found.items():
        values = spot.ours(weights.tensors[spot.tensor])
        if sharding is not None:
            leaves[path] = put(values, param_dtype, sharding(path, values.shape))
        else:
            leaves[path] = keep(path, np.asarray(values, dtype=param_dtype, order="C"))
        weights.release(spot.tensor)
    return unflatten(leaves)


def _keeper(how: str | None) -> Callable[[str, np.ndarray], Any]:
    """Return what makes a leaf of the values read: an array, or its few bits."""
    if how is None:
        # `may_alias=False`: an array that aliased the mapped file could be donated, and written to.
        return lambda path, values: jax.device_put(values, may_alias=False)
    name, _, double = how.partition("-")
    if name not in ("nf4", "int8") or double not in ("", "double"):
        raise ValueError(f"quantize={how!r}; known: nf4, nf4-double, int8, int8-double")

    def keep(path: str, values: np.ndarray) -> Any:
        if fits(path, values):
            return quantized(values, name, double=bool(double))  # type: ignore[arg-type]
        return jax.device_put(values, may_alias=False)

    return keep
