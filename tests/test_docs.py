"""The pages: tables are what the code says, links lead somewhere, and what is told is tried out."""

import importlib.util
import pathlib
import re
import runpy
import sys

import pytest

import sftjax
from sftjax.adapters import ADAPTERS
from sftjax.cli import Command
from sftjax.hub import WEIGHT_MAPS
from sftjax.models import FAMILIES
from sftjax.recipes.methods import METHODS
from sftjax.recipes.supported import COMMANDS, Supported, families_of, kind_of, supported

ROOT = pathlib.Path(sftjax.__file__).parent.parent
DOCS = ROOT / "docs"
REGISTRIES = (ADAPTERS, FAMILIES, METHODS, WEIGHT_MAPS)

spec = importlib.util.spec_from_file_location("build_docs", DOCS / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def test_generated_tables_are_what_the_code_says():
    assert build.stale() == [], "run python docs/build.py --write"
    assert "<!-- generated: supported -->" in (ROOT / "README.md").read_text("utf-8")


def test_links_lead_somewhere():
    assert build.dead_links() == []
    named = build._in_order()  # raises where the index leaves a page out
    assert len(named) == len({*named}) == len([*DOCS.glob("*.md")])


def test_a_dead_link_is_found(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# A\n\n[x](#a) [y](#b) [z](gone.md) [u](https://x.org)\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert build.dead_links() == ["README.md: #b", "README.md: gone.md"]


def test_every_command_and_family_is_told_of(capsys):
    commands = {part.__metadata__[0].name for part in Command.__args__}
    without_a_model = {"demo", "replay", "supported"}
    assert commands - without_a_model == {*COMMANDS}
    assert {family for command in COMMANDS for family in families_of(command)} == {*FAMILIES}
    supported(Supported())
    told = capsys.readouterr().out
    assert all(f"`{family}`" in told for family in FAMILIES)
    assert kind_of("vgg") == "images"


def files_of(page):
    """The files that a page tells to write, and the commands that it tells to run."""
    text = page.read_text("utf-8")
    files = dict(re.findall(r"^```python\n# file: (\S+)\n(.*?)^```$", text, re.M | re.S))
    commands = re.findall(r"^```bash\npython (\S+)\n```$", text, re.M)
    return files, commands


@pytest.mark.parametrize("page", ["add_a_family", "add_an_anchor", "add_an_adapter"])
def test_how_to_extend_to_the_letter(page, tmp_path, monkeypatch):
    files, commands = files_of(DOCS / f"{page}.md")
    assert files
    assert commands
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
    before = [dict(registry) for registry in REGISTRIES]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        for command in commands:
            runpy.run_path(command)
    finally:
        for registry, content in zip(REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(content)
        for name in files:
            sys.modules.pop(name.removesuffix(".py"), None)
