"""Execute notebooks in place, and keep of their outputs what belongs into the repository.

    python notebooks/run.py                     # all, as a user runs them
    python notebooks/run.py 01 07 --small       # two of them with few rows and updates

Each runs in a folder of its own that is thrown away. A notebook that writes to stderr (a warning),
shows a path of this machine or grows past 400 kB is refused, and left as it was.
"""

import argparse
import base64
import contextlib
import io
import os
import pathlib
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = pathlib.Path(__file__).parent
SMALL = "SFTJAX_NOTEBOOK_SMALL"
MOST_BYTES = 400_000
"""Of a notebook with its pictures."""
WIDEST = 800
"""Pixels of a picture's width."""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def paths_of(names: list[str]) -> list[pathlib.Path]:
    """Return the notebooks whose names begin so; all of them where none is named.

    >>> [path.name for path in paths_of(["01"])]
    ['01_sentiment.ipynb']
    """
    found = sorted(HERE.glob("*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            raise ValueError(
                f"no notebook begins with {name!r}; there are {[p.name for p in found]}"
            )
    return [path for path in found if not names or path.name.startswith(tuple(names))]


def execute(path: pathlib.Path, *, small: bool, timeout: float = 3600) -> nbformat.NotebookNode:
    """Run a notebook top to bottom in an empty folder, with the environment of this process.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell raises; says which, and how.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder, _environment(small):
        where = {"metadata": {"path": folder}}
        NotebookClient(
            notebook, timeout=timeout, startup_timeout=300, kernel_name="python3", resources=where,
            record_timing=False, coalesce_streams=True,
        ).execute()  # fmt: skip
    return clean(notebook)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out what differs from machine to machine and means nothing to a reader."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                output.data["image/png"] = smaller(picture)
    return notebook


def smaller(picture: str) -> str:
    """Return a PNG, in base64 as it came, as wide as shown and of at most 256 colours."""
    content = io.BytesIO()
    drawn = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    if drawn.width > WIDEST:
        drawn = drawn.resize((WIDEST, round(drawn.height * WIDEST / drawn.width)))
    drawn.quantize(256).save(content, "png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what a notebook must not have, in words; nothing where all is well."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("its cells were not executed once each, in order")
    own = [str(pathlib.Path.home()), str(HERE.parent.resolve()), tempfile.gettempdir(), sys.prefix]
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            text = nbformat.writes(nbformat.v4.new_notebook(cells=[_alone(output)]))
            if output.output_type == "error":
                found.append(f"cell {number} raised {output.ename}: {output.evalue}")
            if output.get("name") == "stderr":
                found.append(f"cell {number} wrote to stderr: {output.text[:200]!r}")
            found += [f"cell {number} shows the path {path}" for path in own if path in text]
    if (size := len(nbformat.writes(notebook).encode())) > MOST_BYTES:
        found.append(f"it has {size:,} bytes, more than {MOST_BYTES:,}")
    return found


def _alone(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a cell of one output without its pictures, in whose letters anything may occur."""
    shown = nbformat.from_dict(output)
    if "data" in shown:
        shown = nbformat.from_dict({**output, "data": {**output.data}})
        shown.data = {kind: v for kind, v in shown.data.items() if not kind.startswith("image/")}
    return nbformat.v4.new_code_cell(outputs=[shown])


@contextlib.contextmanager
def _environment(small: bool):
    """Say to the kernel, which inherits the environment, whether it runs in small mode."""
    before = os.environ.pop(SMALL, None)
    if small:
        os.environ[SMALL] = "1"
    try:
        yield
    finally:
        os.environ.pop(SMALL, None)
        if before is not None:
            os.environ[SMALL] = before


def main() -> int:
    """Run what the command line names; return 1 if a notebook was refused."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("names", nargs="*", help="how their names begin (01 07); all if left out")
    options.add_argument("--small", action="store_true", help=f"few rows and updates ({SMALL}=1)")
    options.add_argument("--check", action="store_true", help="run, but write nothing")
    given = options.parse_args()
    refused = 0
    for path in paths_of(given.names):
        start, before = time.monotonic(), os.times().children_user
        notebook = execute(path, small=given.small)
        wrong = faults(notebook)
        spent = os.times().children_user - before
        took = f"{time.monotonic() - start:.0f} s, {spent:.0f} s of processors"
        print(f"{path.name}: {took}", *wrong, sep="\n  ", flush=True)
        refused += bool(wrong)
        if not wrong and not given.check:
            nbformat.write(notebook, path)
    return int(bool(refused))


if __name__ == "__main__":
    raise SystemExit(main())
