"""Models by the names of `sftjax.data.ASSETS`, in every command."""

import os
import pathlib

from sftjax.data import ASSETS, fetch


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
