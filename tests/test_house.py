"""The house keeps its shape: floors, sizes, and an import that is quick and light."""

import ast
import pathlib
import subprocess
import sys

import pytest

import sftjax

ROOT = pathlib.Path(sftjax.__file__).parent
FLOORS = {
    "core": 0,
    **dict.fromkeys(("select", "anchor", "adapters", "objectives", "models"), 1),
    **dict.fromkeys(("train", "hub", "data", "evaluate"), 2),
    "recipes": 3,
    "cli": 4,
}
MODULES = sorted(ROOT.rglob("*.py"))


def imports_of(path):
    """Rooms that a module imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module or ""]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "sftjax" and rest:
                yield rest.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    assert room in FLOORS, f"{room} is not a room of the house"
    for other in imports_of(path):
        allowed = other == room or FLOORS[other] < FLOORS[room]
        assert allowed, f"{room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"
        if room == "train":
            assert other in ("core", "train"), "train knows core alone"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_one_idea(path):
    assert len(path.read_text("utf8").splitlines()) <= 400
    assert path.stem not in ("utils", "common", "base", "helpers", "misc")


def test_import_is_quick_and_free_of_torch_and_tensorflow():
    code = """
import sys, time
start = time.process_time()
import sftjax
used = time.process_time() - start
heavy = {"torch", "tensorflow", "tensorflow_datasets", "transformers", "matplotlib", "orbax"}
print(used, sorted(heavy & set(sys.modules)))
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    fastest = min(float(run.stdout.split(" ", 1)[0]) for run in runs)  # the first may write .pyc
    assert runs[0].stdout.split(" ", 1)[1].strip() == "[]"
    assert fastest < 3.0


def test_public_names_exist_and_are_documented():
    for name in sftjax.__all__:
        value = getattr(sftjax, name)
        assert value.__doc__, f"sftjax.{name} has no docstring"
