"""What --help prints, and the words of a command line before a command is chosen."""

import dataclasses
import typing

import docstring_parser
import pytest

from sftjax import cli
from sftjax.recipes import explain
from sftjax.recipes.help_text import as_paragraphs


@dataclasses.dataclass
class Group:
    """Settings that belong together."""

    depth: int = 1
    """How deep it goes, which takes a line and some more to say, so that the source breaks it
    here."""


@dataclasses.dataclass
class Job:
    """A command."""

    group: Group = dataclasses.field(default_factory=Group)
    name: str = ""
    """What it is called; this one
    too has two lines."""


def test_line_breaks_of_the_source_are_not_those_of_the_help():
    as_paragraphs(Job)
    said = typing.get_type_hints(Job, include_extras=True)["name"].__metadata__[0].help
    assert said == "What it is called; this one too has two lines."
    inner = typing.get_type_hints(Group, include_extras=True)["depth"].__metadata__[0].help
    assert inner.endswith("so that the source breaks it here.")


COMMANDS = {typing.get_args(each)[1].name: typing.get_args(each)[0]
            for each in typing.get_args(cli.Command)}  # fmt: skip


def settings(command) -> dict[str, str]:
    """Each setting of a command, those of its groups too, and what is said of it."""
    said: dict[str, str] = {}
    for kind in reversed(command.__mro__):
        if dataclasses.is_dataclass(kind):
            params = docstring_parser.parse_from_object(kind).params
            said |= {each.arg_name: each.description or "" for each in params}
    hints, found = typing.get_type_hints(command), {}
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= settings(hints[field.name])
        else:
            found[field.name] = said.get(field.name, "")
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_a_command_is_explained(command, capsys):
    assert [name for name, said in settings(COMMANDS[command]).items() if len(said) < 12] == []
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: sftjax" in capsys.readouterr().out


def test_what_errors_call_an_option_is_one():
    known = {name for command in COMMANDS.values() for name in settings(command)}
    assert set(explain._OPTIONS) <= known


def test_an_option_given_twice_would_lose_its_first_values(capsys):
    assert cli.main(["predict", "m", "--text", "a", "--text=b"]) == 2
    assert "--text is given twice; give it once" in capsys.readouterr().err


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sftjax ")
