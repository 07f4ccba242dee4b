"""Adapters in PEFT's folder layout, in and out: what either side writes, the other loads.

`adapter_config.json` says what it is, `adapter_model.safetensors` holds the factors and, whole,
the modules that were trained beside them (`modules_to_save`: a new head, a resized embedding).
"""

import json
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.adapters import Plan, Planned, attach, check_adapter, merge_adapter
from sftjax.adapters.kind import tree_at
from sftjax.core import PyTree, flatten, map_with_path, nearest, redact, unflatten
from sftjax.hub.config import BARE
from sftjax.hub.families import WEIGHT_MAPS
from sftjax.hub.names import place, place_all
from sftjax.hub.peft_layout import (
    PARTS,
    PREFIX,
    as_plain,
    check_config,
    config_of,
    decode,
    encode,
    kind_of,
    site_of,
)
from sftjax.hub.report import LoadReport, some
from sftjax.hub.saving import spelled
from sftjax.hub.tensor_files import TensorFile, write_tensor_file
from sftjax.hub.weights import write_text
from sftjax.models import Model

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

TASKS = {
    "sequence": "SEQ_CLS",
    "token": "TOKEN_CLS",
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
}
"""Head kind -> PEFT's word for the task; without a head it is FEATURE_EXTRACTION."""


class LoadedAdapter(NamedTuple):
    """An adapter beside its base."""

    params: dict[str, PyTree]
    """`{"adapter": ..., "base": ...}` (and `"initial"`), as `side_branch` takes them."""
    plan: Plan
    trained: tuple[str, ...]
    """Paths of the base's leaves that came with the adapter (a head)."""
    config: Mapping[str, Any]
    """`adapter_config.json`."""

    def merged(self) -> PyTree:
        """Return params that do without the adapter, for `hub.save`."""
        return merge_adapter(self.params["base"], self.params["adapter"], self.plan)


def save_adapter(
    folder: str | os.PathLike[str],
    model: Model,
    params: Mapping[str, PyTree],
    plan: Plan,
    *,
    report: LoadReport | None = None,
    trained: Sequence[str] | None = None,
) -> pathlib.Path:
    """Write an adapter so that PEFT (and `load_adapter`) opens it beside the same base.

    A PiSSA or OLoRA is written as the plain LoRA of twice the rank that does the same beside the
    untouched base, as PEFT converts it.

    Args:
      folder: where to; made if it is not there.
      model: of the base.
      params: `{"adapter", "base"}`, and `"initial"` for kinds that do not start at the base.
      plan: theirs.
      report: of the base's `load`; gives its name and hash, which `load_adapter` compares.
      trained: paths of base leaves that were trained too: their modules are written whole. The
        report's new leaves if None.

    Returns:
      The folder.

    Raises:
      ValueError: if adapter and plan do not belong together, or PEFT's layout cannot hold them.
    """
    base, adapter = params["base"], params["adapter"]
    check_adapter(adapter, plan, base)
    if trained is None:
        trained = report.new if report is not None else ()
    modules = [_torch_name(model, f"{site.path}/{site.leaf}") for site, _ in plan.sites]
    config = config_of(plan, modules)
    tensors: dict[str, np.ndarray] = {}
    for module, planned in zip(modules, plan.sites, strict=True):
        site, kind = planned
        leaves = tree_at(adapter, site.path)
        if not kind.starts_at_base:
            leaves = as_plain(leaves, tree_at(params["initial"], site.path))
        kernel = tree_at(base, f"{site.path}/{site.leaf}")
        for end, tensor in encode(planned, leaves, kernel).items():
            tensors[f"{PREFIX}{module}.{end}"] = tensor
    whole, saved = _whole(model, base, plan, trained)
    config |= {
        "task_type": TASKS.get(model.head.kind, "FEATURE_EXTRACTION"),
        "base_model_name_or_path": report.source if report is not None else None,
        "modules_to_save": saved or None,
    }
    about = {
        "labels": json.dumps(list(model.head.labels)),
        "head": model.head.kind,
        "problem_type": model.head.problem_type,
        **({"base_sha256": report.sha256} if report is not None else {}),
    }
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensor_file(folder / TENSORS, tensors | whole, about)
    write_text(folder / CONFIG, redact(json.dumps(config, indent=2, sort_keys=True)) + "\n")
    write_text(folder / "README.md", redact(_card(config, model)))
    return folder


def why_not_peft(model: Model, plan: Plan, trained: Sequence[str] = ()) -> str:
    """Return why PEFT's layout cannot hold an adapter, "" if it can.

    Args:
      model: of the base.
      plan: where the adapters sit.
      trained: paths of base leaves that were trained too.
    """
    try:
        config_of(plan, [_torch_name(model, f"{site.path}/{site.leaf}") for site, _ in plan.sites])
        _saved_whole(model, plan, trained)
    except ValueError as error:
        return str(error)
    return ""


def load_adapter(
    folder: str | os.PathLike[str],
    model: Model,
    params: PyTree,
    *,
    report: LoadReport | None = None,
) -> LoadedAdapter:
    """Load an adapter that PEFT or `save_adapter` wrote, beside its base.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.
      model: of the base, with the head that the adapter was trained with.
      params: the base's; not changed.
      report: of the base's `load`: its hash is compared with the one the adapter was saved with.

    Returns:
      A `LoadedAdapter`.

    Raises:
      FileNotFoundError: if the folder has no such files.
      ValueError: if the adapter is of a type or setting that is not known here, of another base (a
        hash, a module or a shape differs), or incomplete.
    """
    folder = pathlib.Path(folder)
    config = _read_config(folder)
    file = _open(folder)
    _check_base(folder, file, report)
    found, whole, unknown = _sorted_names(file, model)
    if unknown:
        raise ValueError(
            f"{folder}: {len(unknown)} tensors belong to no module of this {model.family} with a "
            f"{model.head.kind!r} head ({some(sorted(unknown))}); load the base that the adapter "
            "was trained on, with the same head"
        )
    base = _with_whole(folder, params, file, whole)
    sites, parts = [], {}
    for path, (module, ends) in found.items():
        tensors = {end: file[name] for end, name in ends.items()}
        planned = Planned(site_of(path, base), kind_of(config, module, tensors))
        sites.append(planned)
        parts[planned.site.path] = tensors
    plan = Plan(tuple(sites))
    joined = _beside(plan, base, parts)
    check_adapter(joined["adapter"], plan, joined["base"])
    return LoadedAdapter(joined, plan, tuple(sorted(whole)), config)


def _beside(plan: Plan, base: PyTree, parts: Mapping[str, Any]) -> dict[str, PyTree]:
    leaves = {}
    for planned in plan.sites:
        path = planned.site.path
        kernel = tree_at(base, f"{path}/{planned.site.leaf}")
        for name, leaf in decode(planned, parts[path], kernel).items():
            leaves[f"{path}/{name}"] = leaf
    adapter = unflatten(leaves)
    if all(kind.starts_at_base for kind in plan.kinds):
        return {"adapter": adapter, "base": base}
    # A PiSSA or OLoRA that was saved as it is stands on what its start left of the base.
    initial, rest = attach(base, plan, jax.random.key(0))
    return {"adapter": adapter, "base": rest, "initial": initial}


def _sorted_names(
    file: TensorFile, model: Model
) -> tuple[dict[str, tuple[str, dict[str, str]]], dict[str, str], list[str]]:
    """Return adapter tensors by our path, whole tensors by our path, and names of neither."""
    known = flatten(model.shapes())
    found: dict[str, tuple[str, dict[str, str]]] = {}
    whole: dict[str, str] = {}
    unknown: list[str] = []
    for name in file:
        bare = name.removeprefix(PREFIX).removeprefix("base_model.")
        end = next((part for part in PARTS if bare.endswith(f".{part}")), None)
        module = bare.removesuffix(f".{end}")
        path = _our_path(model, f"{module}.weight" if end else bare, known)
        if path is None or path not in known:
            unknown.append(name)
        elif end is None:
            whole[path] = name
        else:
            found.setdefault(path, (module, {}))[1][end] = name
    return found, whole, unknown


def _our_path(model: Model, tensor: str, known: Collection[str]) -> str | None:
    """Return the leaf that a tensor is; that of the words, where this model's head is the words."""
    table, path = WEIGHT_MAPS[model.family], None
    for tied in (False, True):
        path = next(iter(place_all(table, [tensor], tied=tied).places), path)
        if path in known:
            break
    return path


def _with_whole(
    folder: pathlib.Path, params: PyTree, file: TensorFile, whole: Mapping[str, str]
) -> PyTree:
    leaves = flatten(params)

    def turned(path: str) -> Any:
        tensor = np.asarray(file[whole[path]])
        values = tensor.T if path.endswith("/kernel") else tensor
        if values.shape != leaves[path].shape:
            raise ValueError(
                f"{folder / TENSORS}: {whole[path]} gives {path} the shape {values.shape}, and the "
                f"model has {tuple(leaves[path].shape)}; load the base with the labels that the "
                "adapter was trained with, and grown by as many words (grow_words)"
            )
        return jnp.asarray(np.ascontiguousarray(values), leaves[path].dtype)

    return map_with_path(lambda path, leaf: turned(path) if path in whole else leaf, params)


def _whole(
    model: Model, base: PyTree, plan: Plan, trained: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the tensors of modules that are saved whole, and the modules' names."""
    leaves = flatten(base)
    table = WEIGHT_MAPS[model.family]
    for path in trained:
        if path not in leaves:
            raise ValueError(
                f"`trained` names {path!r}, and the base has no such leaf (nearest: "
                f"{', '.join(nearest(path, list(leaves)))}); name leaves of the base by their paths"
            )
    prefixes = _saved_whole(model, plan, trained)
    tensors: dict[str, np.ndarray] = {}
    for prefix in prefixes:
        for path, leaf in leaves.items():
            if path.startswith(f"{prefix}/"):
                spot = place(table, path)
                values = np.asarray(leaf, np.float32)
                name = spelled(table, spot.tensor, model.head.kind in BARE)
                tensors[PREFIX + name] = spot.theirs(values)
    names = [
        spelled(table, prefix.replace("/", "."), False).removeprefix(
            f"{table.trunk}." if model.head.kind in BARE else ""
        )
        for prefix in prefixes
    ]
    return tensors, names


def _saved_whole(model: Model, plan: Plan, trained: Sequence[str]) -> list[str]:
    """Return the modules that hold trained leaves; none of them may have an adapter."""
    trunk = WEIGHT_MAPS[model.family].trunk
    adapted = {site.path for site, _ in plan.sites}
    prefixes: dict[str, None] = {}
    for path in trained:
        if "/" not in path:
            raise ValueError(
                f"{path} was trained and belongs to no module, and PEFT's layout holds whole "
                "modules; save the merged model (hub.save of merge_adapter)"
            )
        inside = not trunk or path.startswith(f"{trunk}/")
        prefixes[path.rpartition("/")[0] if inside else path.partition("/")[0]] = None
    for prefix in prefixes:
        if prefix in adapted:
            raise ValueError(
                f"{prefix} has an adapter and was trained itself, which PEFT's layout cannot hold; "
                "save the merged model (hub.save of merge_adapter)"
            )
    return list(prefixes)


def _torch_name(model: Model, path: str) -> str:
    table = WEIGHT_MAPS[model.family]
    tensor = spelled(table, place(table, path).tensor, model.head.kind in BARE)
    return tensor.removesuffix(".weight")


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}; point at the folder PEFT wrote")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a JSON object; copy it again")
    check_config(config, str(path))
    return config


def _open(folder: pathlib.Path) -> TensorFile:
    path = folder / TENSORS
    if path.is_file():
        return TensorFile(path)
    if (folder / "adapter_model.bin").is_file():
        raise ValueError(
            f"{folder} holds the adapter as a torch pickle (adapter_model.bin), which can run code "
            "when opened and is not read here; load it once with PEFT and save it again, which "
            f"writes {TENSORS}"
        )
    raise FileNotFoundError(f"{folder} has no {TENSORS}; copy the adapter again")


def _check_base(folder: pathlib.Path, file: TensorFile, report: LoadReport | None) -> None:
    trained_on = file.metadata.get("base_sha256")
    if report is not None and trained_on is not None and trained_on != report.sha256:
        raise ValueError(
            f"{folder} was trained on weights with sha256 {trained_on[:12]}..., and "
            f"{report.source} has {report.sha256[:12]}...; an adapter fits its own base alone. "
            "Load that one (leave report out to try it on this one all the same)"
        )


def _card(config: Mapping[str, Any], model: Model) -> str:
    base = config["base_model_name_or_path"]
    front = {"library_name": "peft", "tags": ["jax", "sftjax"]}
    lines = [f"{name}: {json.dumps(value)}" for name, value in front.items()]
    rank = f", rank {config['r']}" if "r" in config else ""
    head = f"head={model.head.kind!r}, labels={list(model.head.labels)!r}"
    return "\n".join(
        [
            "---",
            *lines,
            "---",
            "",
            f"# An adapter ({config['peft_type']}{rank}) for {base or 'a ' + model.family}",
            "",
            f"It sits beside {len(config['target_modules'])} modules.",
            "",
            "    from sftjax.hub import load, load_adapter",
            "",
            f"    base = load({str(base)!r}, {head})",
            '    adapted = load_adapter("THIS FOLDER", *base[:2], report=base.report)',
            "",
            'or with PEFT: `PeftModel.from_pretrained(base, "THIS FOLDER")`.',
            "",
        ]
    )
