"""A command of ours, run whole, and run again killed in the middle and resumed; imports once.

python tests/recipes/kill_command.py FOLDER OPTION...: FOLDER/whole and FOLDER/cut are the runs.
"""

import os
import pathlib
import signal
import sys
import time

import orbax.checkpoint  # noqa: F401  (slow, so before the forks; no device is touched yet)
import transformers  # noqa: F401
from orbax.checkpoint import v1  # noqa: F401

from sftjax.cli import main


def started(options: list[str], folder: pathlib.Path) -> int:
    """Run the command in a child."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        code = main([*options, "--output-dir", str(folder)])
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child and return its code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def any_whole(checkpoints: pathlib.Path) -> bool:
    """Return whether a checkpoint has its last name: orbax renames the folder when it is whole."""
    return any(folder.name.isdigit() for folder in checkpoints.glob("[1-9]*"))


def kill_and_resume(root: pathlib.Path, options: list[str]) -> None:
    """Run whole; run, kill when the first checkpoint is there, run again; then with SIGTERM."""
    assert ended(started(options, root / "whole")) == 0
    for name, number, code in (("cut", signal.SIGKILL, -9), ("asked", signal.SIGTERM, 75)):
        pid = started(options, root / name)
        deadline = time.monotonic() + 300
        while not any_whole(root / name / "checkpoints"):
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(pid, number)
        assert ended(pid) == code
        assert not (root / name / "metrics.json").exists()
        assert ended(started(options, root / name)) == 0


if __name__ == "__main__":
    kill_and_resume(pathlib.Path(sys.argv[1]), sys.argv[2:])
