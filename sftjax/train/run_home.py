"""A folder belongs to one run: what identifies it, and what to do when that has changed."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from sftjax.core import redact

RUN_FILE = "run.json"
CHANGED = "changed"
"""Under which name the run file lists changes that were accepted."""


def claim(
    folder: str | os.PathLike[str], run: Mapping[str, Any], *, accept_changes: bool = False
) -> bool:
    """Make `folder` the home of a run, or check that it already is.

    Args:
      folder: made if it does not exist.
      run: JSON facts that identify the run: data, base weights, selection, hyperparameters, seed.
      accept_changes: go on with facts that differ from those the run began with; the run file then
        lists what changed.

    Returns:
      Whether the folder held this very run before.

    Raises:
      ValueError: if it holds another run (the facts that differ are listed), or other files.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "run"
    >>> claim(folder, {"seed": 0}), claim(folder, {"seed": 0})
    (False, True)
    >>> claim(folder, {"seed": 1}, accept_changes=True), identity_of(folder)
    (True, {'seed': 1})
    """
    folder = pathlib.Path(folder)
    path = folder / RUN_FILE
    if path.exists():
        found = _read(path)
        changed = found.pop(CHANGED, [])
        differ = differences(found, run)
        if differ and not accept_changes:
            raise ValueError(
                f"{folder} holds another run ({differ}). Choose another output folder, repeat the "
                "command that made this one to resume it, or remove the folder. If the change is "
                "meant, say --on-change accept (`accept_changes=True`): the run goes on from its "
                "last checkpoint with what there is now, and notes that it changed."
            )
        if differ:
            _write(path, {**run, CHANGED: [*changed, differ]})
        return True
    if folder.exists() and any(folder.iterdir()):
        names = ", ".join(sorted(item.name for item in folder.iterdir())[:5])
        raise ValueError(
            f"{folder} is not empty and holds no {RUN_FILE}, so it is not a run folder of ours "
            f"({names}, ...). Choose an empty or new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, run)
    return False


def identity_of(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the facts that identify the run of a folder; None where nobody has claimed it.

    >>> identity_of("/nowhere") is None
    True
    """
    path = pathlib.Path(folder) / RUN_FILE
    if not path.exists():
        return None
    found = _read(path)
    found.pop(CHANGED, None)
    return found


def changes_of(folder: str | os.PathLike[str]) -> list[str]:
    """Return the changes that were accepted since the run began, oldest first."""
    path = pathlib.Path(folder) / RUN_FILE
    return list(_read(path).get(CHANGED, [])) if path.exists() else []


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return in words how two sets of facts differ, "" if they do not.

    >>> differences({"seed": 0, "rows": "ab"}, {"seed": 1, "rows": "ab"})
    'seed: 0 there, 1 now'
    """
    wanted = json.loads(redact(json.dumps(dict(wanted))))
    differ = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    return "; ".join(f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} now" for k in differ)


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not whole JSON ({error}), so it cannot be said which run this folder "
            "holds. Restore the file, or choose another output folder."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} holds a JSON {type(found).__name__}, not the facts of a run. Restore the "
            "file, or choose another output folder."
        )
    return found


def _write(path: pathlib.Path, run: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(redact(json.dumps(dict(run), indent=2, sort_keys=True)) + "\n", "utf8")
    partial.replace(path)
