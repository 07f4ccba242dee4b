"""A command's model: by a name of `sftjax.data.ASSETS` too, and of the kind the command takes."""

import os
import pathlib
from typing import Any, TypeVar

from sftjax.core import PyTree
from sftjax.data import ASSETS, fetch
from sftjax.hub import LoadReport, load
from sftjax.models import Model
from sftjax.recipes.startup import part

M = TypeVar("M", bound=Model)


def folder_of(name: str | os.PathLike[str]) -> str:
    """Return where a model is: `asset:NAME`, or NAME alone, is fetched; else it is as it says.

    A folder of that name goes before the asset, unless `asset:` is said.

    Raises:
      ValueError: if there is no asset of that name.

    >>> folder_of("runs/a/model")
    'runs/a/model'
    """
    name = os.fspath(name)
    kind, _, asset = name.rpartition(":")
    if kind != "asset":
        return str(fetch(name)) if name in ASSETS and not pathlib.Path(name).exists() else name
    if asset not in ASSETS:
        raise ValueError(f"there is no asset {asset!r}; there are: {', '.join(ASSETS)}")
    return str(fetch(asset))


def load_as(
    kind: type[M], takes: str, name: str | os.PathLike[str], **how: Any
) -> tuple[M, PyTree, LoadReport]:
    """Load a checkpoint of one kind of model; `hub.load` says how.

    Args:
      kind: the class of the model.
      takes: what the command does with which kind, for the error.
      name: as `folder_of` takes it.
      **how: arguments of `hub.load`.

    Raises:
      ValueError: if the checkpoint is of another kind of model.
    """
    with part("load"):
        model, params, report = load(folder_of(name), **how)
    if not isinstance(model, kind):
        raise ValueError(f"{name} is a {model.family}, and this command {takes}")
    return model, params, report
