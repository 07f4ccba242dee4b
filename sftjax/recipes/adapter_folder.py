"""An adapter's folder: PEFT's layout where PEFT has the kind, else one of our own.

Ours is `adapter.safetensors`, tensors by our own paths (`adapter/...`, and `base/...` for what was
trained beside), and `adapter.json`, which says in `--adapter`'s words what they are and of which
base. PEFT does not read it.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sftjax.adapters import Plan, check_adapter, dequantize_tree, plan_of_words, side_branch
from sftjax.core import PyTree, flatten, map_with_path, unflatten
from sftjax.hub import (
    LoadReport,
    TensorFile,
    load_adapter,
    save_adapter,
    why_not_peft,
    write_tensor_file,
)
from sftjax.models import CausalModel, Head, ImageModel, Seq2SeqModel, TextEncoder
from sftjax.objectives import Apply
from sftjax.recipes.image_models import load_images_model
from sftjax.recipes.run_folder import write_json, write_text
from sftjax.recipes.text_models import load_encoder

OURS, TENSORS = "adapter.json", "adapter.safetensors"
PEFTS, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"


class Adapted(NamedTuple):
    """A base and the adapter that was loaded beside it."""

    model: Any
    apply: Apply
    params: PyTree
    report: LoadReport
    """Of the base; its folder has the tokenizer."""
    plan: Plan


def save_adapted(
    folder: pathlib.Path,
    model: TextEncoder | ImageModel | CausalModel | Seq2SeqModel,
    params: Any,
    plan: Plan,
    *,
    words: Sequence[str],
    report: LoadReport,
    trained: Sequence[str],
) -> str:
    """Write an adapter, and what was trained beside it.

    Args:
      folder: where to.
      model: of the base.
      params: `{"adapter", "base"}`, and `"initial"` where the kind has one.
      plan: theirs.
      words: of `--adapter`.
      report: of the base.
      trained: paths of the base's leaves that were trained too, new ones included.

    Returns:
      A sentence on the layout, for the report.
    """
    reason = why_not_peft(model, plan, trained)
    if not reason:
        whole = {**params, "base": dequantize_tree(params["base"])}
        save_adapter(folder, model, whole, plan, report=report, trained=trained)
        return "`adapter/` is in PEFT's layout, and opens there too (`PeftModel.from_pretrained`)."
    check_adapter(params["adapter"], plan, params["base"])
    base = flatten(params["base"])
    tensors = {f"base/{path}": np.asarray(base[path], np.float32) for path in trained}
    for name in ("adapter", "initial"):
        found = flatten(params.get(name, {}))
        tensors |= {f"{name}/{path}": np.asarray(leaf, np.float32) for path, leaf in found.items()}
    facts = {
        "layout": "sftjax",
        "adapter": list(words),
        "base": report.source,
        "base_sha256": report.sha256,
        "new": list(report.new),
        "head": model.head.kind,
        "labels": list(model.head.labels),
        "problem_type": model.head.problem_type,
        "why_not_peft": reason,
    }
    use = {"seq2seq-lm": 'generate THIS_FOLDER --text "..."'}
    command = use.get(model.head.kind, 'predict THIS_FOLDER --text "..."')
    folder.mkdir(parents=True, exist_ok=True)
    write_tensor_file(folder / TENSORS, tensors)
    write_json(folder / OURS, facts)
    write_text(
        folder / "README.md",
        f"# An adapter ({' '.join(words)}) for {report.source}\n\nIn sftjax's own layout, which "
        f"PEFT does not read: {reason}.\n\n    sftjax {command}\n",
    )
    return f"`adapter/` is in our own layout, which PEFT does not read: {reason}."


def is_adapter(folder: str) -> bool:
    """Tell whether a folder holds an adapter and no model."""
    return any((pathlib.Path(folder) / name).is_file() for name in (OURS, PEFTS))


def head_of(folder: str) -> Head | None:
    """Return the head that an adapter's folder names; None where it was not written by sftjax."""
    path = pathlib.Path(folder)
    if (path / OURS).is_file():
        about = json.loads((path / OURS).read_text("utf8"))
        labels = about["labels"]
    else:
        about = TensorFile(path / PEFT_TENSORS).metadata
        if "head" not in about:
            return None
        labels = json.loads(about["labels"])
    return Head(about["head"], tuple(labels), about["problem_type"])


def load_adapted(
    folder: str, base: str | None = None, load: Callable[..., Any] = load_encoder
) -> Adapted:
    """Load an adapter and its base.

    Args:
      folder: in either layout.
      base: where the base is; None for where it was.
      load: gives model, params and report of the base, and refuses other kinds of model.

    Raises:
      ValueError: if the base is another one, or the folder does not say what its head is.
      FileNotFoundError: if the base is not there.
    """
    path = pathlib.Path(folder)
    ours = (path / OURS).is_file()
    config = json.loads((path / (OURS if ours else PEFTS)).read_text("utf8"))
    where = base or config.get("base" if ours else "base_model_name_or_path")
    if not where:
        raise ValueError(
            f"{folder} does not say which base model it was trained on; give it with --base (a "
            "folder, a name on the Hub, or asset:NAME)"
        )
    head = head_of(folder)
    if head is None:
        raise ValueError(
            f"{folder} was not written by sftjax and does not name its classes; load it in Python "
            "(hub.load with labels=[...], then hub.load_adapter), which can save the merged model"
        )
    try:
        find = load_images_model if head.kind == "image" else load
        model, params, report, *_ = find(where, head=head)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the base of {folder} is not at {where}; say where it is with --base ({error})"
        ) from error
    if not ours:
        found = load_adapter(folder, model, params, report=report)
        plan = found.plan
        return Adapted(model, side_branch(model.apply, plan), found.params, report, plan)
    if config["base_sha256"] != report.sha256:
        raise ValueError(
            f"{folder} was trained on weights with sha256 {config['base_sha256'][:12]}..., and "
            f"{where} has {report.sha256[:12]}...; an adapter fits its own base alone, so give "
            "that one with --base"
        )
    plan = plan_of_words(config["adapter"], params, config["new"])
    joined = _joined(path / TENSORS, plan, params)
    return Adapted(model, side_branch(model.apply, plan), joined, report, plan)


def _joined(path: pathlib.Path, plan: Plan, params: PyTree) -> dict[str, PyTree]:
    file = TensorFile(path)
    tensors = {name: jnp.asarray(file[name]) for name in file}

    def below(name: str) -> dict[str, Any]:
        return {
            p.removeprefix(f"{name}/"): x for p, x in tensors.items() if p.startswith(f"{name}/")
        }

    adapter, initial, trained = (unflatten(below(name)) for name in ("adapter", "initial", "base"))
    check_adapter(adapter, plan, params)
    own = flatten(trained)
    base = map_with_path(lambda path, leaf: own.get(path, leaf), params)
    if not initial:
        return {"adapter": adapter, "base": base}
    taken = {
        f"{site.path}/{name}": leaf
        for site, kind in plan.sites
        if not kind.starts_at_base and kind.unmerge is not None
        for name, leaf in kind.unmerge(_at(initial, site.path), _at(base, site.path)).items()
    }
    rest = map_with_path(lambda path, leaf: taken.get(path, leaf), base)
    return {"adapter": adapter, "base": rest, "initial": initial}


def _at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
