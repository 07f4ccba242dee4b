"""`save`: a model folder in the Hub's layout, every untouched tensor as it came.

A tensor is untouched if its leaf still equals what the file gives in the leaf's dtype; then the
file's own bytes are written. Otherwise the leaf is written in the file's dtype where that loses
nothing, else in its own.

A leaf that is cut over devices is brought here when it is looked at and when it is written, and let
go after each: never is more than one of them on the host.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.core import PyTree, flatten, gathered, redact
from sftjax.hub.card import Card, card_of, render
from sftjax.hub.config import BARE, architecture, class_name, describe
from sftjax.hub.families import WEIGHT_MAPS
from sftjax.hub.image_names import COUNTER
from sftjax.hub.names import Place, WeightMap, fit, place, place_paths
from sftjax.hub.report import LoadReport, some
from sftjax.hub.source import PROCESSOR, companions, tokenizer_files
from sftjax.hub.tensor_files import FLOATS, Later
from sftjax.hub.weights import MAX_SHARD_SIZE, write_bytes, write_text, write_weights
from sftjax.models import Model


def save(
    folder: str | os.PathLike[str],
    model: Model,
    params: PyTree,
    *,
    report: LoadReport | None = None,
    tokenizer_from: str | os.PathLike[str] | None = None,
    card: Card | str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> pathlib.Path:
    """Write weights, config, tokenizer and model card so that the Hub's tools open the folder.

    Where leaves are cut over several processes, all of them call it: the first writes, and none
    goes on before it has. Else who calls it writes.

    Args:
      folder: where to; made if it is not there. Files of the same names are replaced.
      model: gives the config and the head.
      params: every leaf of the model.
      report: of the `load` that the params came from; gives names, dtypes, buffers, ties and, where
        the kind of head is the same, the tensors the model does not use.
      tokenizer_from: a folder whose tokenizer files (chat template and generation_config.json among
        them) are copied; `report.folder` if None.
      card: what the README says; a short one from the report if None.
      max_shard_size: bytes above which the weights are cut into several files.

    Returns:
      The folder.

    Raises:
      ValueError: if params are not the model's, or `tokenizer_from` has no tokenizer.
    """
    leaves = flatten(params)
    _check(model, leaves)
    origin = tokenizer_from if tokenizer_from is not None else report and report.folder
    copied = tokenizer_files(origin) if origin is not None else ()
    if tokenizer_from is not None and not copied:
        raise ValueError(
            f"{tokenizer_from} has no tokenizer files to copy. Pass the folder the tokenizer was "
            "loaded from, or leave tokenizer_from out."
        )
    tensors = _tensors(model, leaves, report)
    dtypes = {t.dtype for t in tensors.values() if t.dtype.name in FLOATS}
    config = describe(
        model.config,
        model.head,
        dtype=reduce(jnp.promote_types, dtypes).name,
        mixed=len(dtypes) > 1,
    )
    text = card if isinstance(card, str) else render(card or card_of(report), config)

    folder = pathlib.Path(folder)
    cut = any(isinstance(leaf, jax.Array) and not _here(leaf) for leaf in leaves.values())
    if cut and jax.process_index():
        write_weights(folder, tensors, max_shard_size, write=False)
        _meet()
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, tensors, max_shard_size)
    write_text(
        folder / "config.json", redact(json.dumps(config, indent=2, ensure_ascii=False)) + "\n"
    )
    beside = report.folder if report is not None else origin
    carried = [(origin, name) for name in copied]
    carried += [(beside, name) for name in (companions(beside) if beside is not None else ())]
    for home, name in carried:
        source = pathlib.Path(home or "") / name
        if source.resolve() != (folder / name).resolve():
            write_bytes(folder / name, source.read_bytes())
    if report is not None and report.processor is not None:
        write_text(folder / PROCESSOR, json.dumps(report.processor, indent=2) + "\n")
    write_text(folder / "README.md", redact(text))
    if cut:
        _meet()
    return folder


def _here(leaf: jax.Array) -> bool:
    return leaf.is_fully_addressable or leaf.is_fully_replicated


def _meet() -> None:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("a model is saved")


def _check(model: Model, leaves: dict[str, jax.Array]) -> None:
    shapes = flatten(model.shapes())
    absent = [path for path in shapes if path not in leaves]
    extra = [path for path in leaves if path not in shapes]
    misshapen = [p for p in shapes if p in leaves and leaves[p].shape != shapes[p].shape]
    if absent or extra or misshapen:
        raise ValueError(
            f"these params are not a whole {model.family} with a {model.head.kind!r} head: "
            f"{len(absent)} leaves absent ({some(absent)}), {len(extra)} too many ({some(extra)}), "
            f"{len(misshapen)} of another shape ({some(misshapen)}). Combine the trainable and the "
            "frozen half before saving, and merge adapters."
        )


def _tensors(
    model: Model, leaves: dict[str, jax.Array], report: LoadReport | None
) -> dict[str, np.ndarray | Later]:
    table = WEIGHT_MAPS[model.family]
    bare = model.head.kind in BARE
    # Another collection's names are read and never written: the Hub's tools know only its own.
    ours = report is not None and report.layout == table.layout
    same = report is not None and ours and _same_class(model, report)
    tensors: dict[str, np.ndarray | Later] = {}
    for path, leaf in leaves.items():
        spot = place(table, path)
        values = _later(spot, leaf)
        name = spelled(table, spot.tensor, bare)
        if report is not None and path in report.names:
            values = _as_stored(values, path, report)
            name = report.names[path] if same and report.mapped else name
        tensors[name] = values
    if report is not None and ours:
        carried: dict[str, np.ndarray | Later] = {
            name if same and report.mapped else spelled(table, name, bare): report.tensor(name)
            for name in report.buffers
        }
        if same:
            carried |= _other_heads(table, report, bare)
            carried |= {name: tensors[report.names[path]] for name, path in report.aliases.items()}
        tensors = carried | tensors  # a layer made anew replaces the one it was loaded beside
    return tensors | _untied(table, leaves, tensors) | _counters(tensors)


def _later(spot: Place, leaf: jax.Array) -> np.ndarray | Later:
    """Return a leaf as the file has it; one that is cut over devices when its turn comes."""
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
        return spot.theirs(np.asarray(leaf))
    return Later(
        np.dtype(leaf.dtype), spot.their_shape(leaf.shape), lambda: spot.theirs(gathered(leaf))
    )


def _counters(
    tensors: Mapping[str, np.ndarray | Later],
) -> dict[str, np.ndarray]:
    """The counters beside running statistics, 0 where the file had none; torch asks for them."""
    names = (name.removesuffix("running_var") + COUNTER for name in tensors
             if name.endswith(".running_var"))  # fmt: skip
    return {name: np.zeros((), np.int64) for name in names if name not in tensors}


def _same_class(model: Model, report: LoadReport) -> bool:
    stored = architecture(report.config)
    if stored is None:
        return not report.new
    return stored == class_name(model.config, model.head.kind)


def spelled(table: WeightMap, name: str, bare: bool) -> str:
    """A tensor's name as transformers' class for a bare encoder, or for one with a head, has it."""
    prefix = f"{table.trunk}."
    if bare:
        return name.removeprefix(prefix)
    patterns = (*(row.tensor for row in table.rows), *table.buffers)
    of_trunk = any(fit(pattern, prefix + name) is not None for pattern in patterns)
    return prefix + name if of_trunk else name


def _as_stored(values: np.ndarray | Later, path: str, report: LoadReport) -> np.ndarray | Later:
    stored = np.dtype(report.dtypes[path])
    now = values.read() if isinstance(values, Later) else values
    with np.errstate(over="ignore", invalid="ignore"):
        if report.mapped:
            original = report.tensor(report.names[path])
            if _identical(original.astype(now.dtype, copy=False), now):
                return original
        narrow = now.astype(stored, copy=False)
        if not _identical(narrow.astype(now.dtype, copy=False), now):
            return values
    if not isinstance(values, Later):
        return narrow
    return values._replace(dtype=stored, read=lambda: values.read().astype(stored, copy=False))


def _identical(one: np.ndarray, other: np.ndarray) -> bool:
    """Compare bytes: -0 is not 0 here, and a NaN is itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    word = np.dtype(f"u{one.dtype.itemsize}")
    return np.array_equal(
        np.ascontiguousarray(one).view(word), np.ascontiguousarray(other).view(word)
    )


def _other_heads(table: WeightMap, report: LoadReport, bare: bool) -> dict[str, np.ndarray]:
    names = (*report.unused, *report.ignored)
    if report.mapped:
        return {name: report.tensor(name) for name in names}
    known = place_paths(table, report.unused).places
    tensors = {}
    for path, spot in known.items():
        there = place(table, path)
        tensors[spelled(table, there.tensor, bare)] = there.theirs(report.tensor(spot.tensor))
    return tensors


def _untied(
    table: WeightMap, leaves: Mapping[str, jax.Array], tensors: Mapping[str, np.ndarray | Later]
) -> dict[str, np.ndarray | Later]:
    """The decoder's bias under its second name, which torch computes with when it is not tied."""
    rows = {row.tensor: row.path for row in table.rows}
    if not any(rows.get(alias) in leaves for alias, _ in table.ties):
        return {}
    return {
        alias: tensors[target]
        for alias, target in table.ties
        if alias.endswith(".bias") and alias not in rows and alias not in tensors
    }
