"""The pages: tables are what the code says, links lead somewhere, and what is told is tried out."""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import re
import runpy
import sys
import typing

import pytest

from sftjax.adapters import ADAPTERS
from sftjax.cli import Command, main
from sftjax.hub import WEIGHT_MAPS
from sftjax.models import FAMILIES
from sftjax.recipes.methods import METHODS
from sftjax.recipes.supported import COMMANDS, Supported, families_of, kind_of, supported

ROOT = pathlib.Path(__file__).parents[1]
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


@contextlib.contextmanager
def written(page, folder, monkeypatch):
    """Write a page's files into a folder and go there; the registries are then as they were."""
    files, commands = files_of(DOCS / f"{page}.md")
    for name, content in files.items():
        (folder / name).write_text(content, "utf-8")
    before = [dict(registry) for registry in REGISTRIES]
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    try:
        yield files, commands
    finally:
        for registry, content in zip(REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(content)
        for name in files:
            sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.parametrize("page", ["add_a_family", "add_an_anchor", "add_an_adapter"])
def test_how_to_extend_to_the_letter(page, tmp_path, monkeypatch):
    with written(page, tmp_path, monkeypatch) as (files, commands):
        assert files
        assert commands
        for command in commands:
            runpy.run_path(command)


TINY = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30, "hidden_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
    "max_position_embeddings": 16, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("add_an_anchor", ["--anchor", "l1-sp:1", "--train", "last:1"]),
        ("add_an_adapter", ["--adapter", "ssf:targets=query|value"]),
    ],
)
def test_a_name_for_the_commands(page, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(TINY))
    plan = ["plan", "--model", "tiny", "--length", "8", "--batch", "2", *words]
    with written(page, tmp_path, monkeypatch):
        assert main(plan) == 2
        assert f"{words[1].partition(':')[0]!r} is unknown" in capsys.readouterr().err
        monkeypatch.setattr(sys, "argv", ["my_sftjax.py", *plan])
        with pytest.raises(SystemExit) as end:
            runpy.run_path("my_sftjax.py", run_name="__main__")
        assert end.value.code == 0
        assert "no anchor" not in capsys.readouterr().out


def test_a_family_of_a_class_of_its_own_is_told_of(tmp_path, monkeypatch, capsys):
    with written("add_a_family", tmp_path, monkeypatch):
        runpy.run_path("check_bag.py")
        assert kind_of("bag") == "other"
        assert [command for command in COMMANDS if "bag" in families_of(command)] == ["inspect"]
        assert main(["supported"]) == 0
        assert "| other | `bag` | `inspect` | their own |" in capsys.readouterr().out
        assert main(["inspect", "checkpoint"]) == 0
    assert "| other |" not in build.generated("supported")


def test_the_errors_of_troubleshooting_are_those_of_the_code():
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    titles = re.findall(r"^### `(.+)`$", page, re.M)
    assert len(titles) >= 25
    sources = "\n".join(p.read_text("utf-8") for p in (ROOT / "sftjax").rglob("*.py"))
    texts = re.sub(r"""(["'])\s*\n\s*f?\1""", "", sources)  # literals side by side are one text
    for title in titles:
        for piece in title.split("..."):
            assert piece.strip() in texts, f"no error says {piece!r}; mend {title!r}"


FOREIGN = {
    "aa", "check", "command", "config", "cutmix", "dist", "mixup", "no-cov", "no-deps", "ntasks",
    "output", "quiet", "reprob", "worker", "write", "gpus-per-task", "ntasks-per-node", "nodes",
    "requeue", "signal", "python",
}  # fmt: skip
"""Options of other programs that the pages name."""


def options_of(job):
    """The options of a command's dataclass, groups and aliases too."""
    hints = typing.get_type_hints(job, include_extras=True)
    for field in dataclasses.fields(job):
        hint = hints[field.name]
        for meta in getattr(hint, "__metadata__", ()):
            yield from (alias.lstrip("-") for alias in getattr(meta, "aliases", None) or ())
        kind = hint.__origin__ if hasattr(hint, "__metadata__") else hint
        if dataclasses.is_dataclass(kind):
            yield from options_of(kind)
        yield field.name.replace("_", "-")


def test_every_option_that_a_page_names_exists():
    known = {option for part in Command.__args__ for option in options_of(part.__origin__)}
    for page in build.pages():
        named = re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*[a-z0-9])", page.read_text("utf-8"))
        if page.parent.name in ("docs", ROOT.name):
            assert {*named} <= known | FOREIGN, f"{page.name}: {sorted({*named} - known - FOREIGN)}"
