"""The words of --help, as paragraphs instead of the lines of the source."""

import dataclasses
import functools
import inspect
import typing
from typing import Annotated, Any

import docstring_parser
import tyro


@functools.cache  # commands share groups, which are turned once
def as_paragraphs(command: type) -> None:
    """Let --help wrap what is said of a command's settings to the terminal's width.

    tyro keeps the line breaks of docstrings that are indented. Settings in groups are told of too.

    Args:
      command: a dataclass with a docstring below each field.

    >>> @dataclasses.dataclass
    ... class Quiet:
    ...     loud: bool = False
    >>> as_paragraphs(Quiet)
    """
    for kind in command.__mro__:
        if not dataclasses.is_dataclass(kind):
            continue
        said = {
            each.arg_name: each.description or ""
            for each in docstring_parser.parse_from_object(kind).params
        }
        own = inspect.get_annotations(kind)
        hints = typing.get_type_hints(kind, include_extras=True)
        for name in [field.name for field in dataclasses.fields(kind) if field.name in own]:
            bare = typing.get_args(hints[name])[0] if _is_annotated(hints[name]) else hints[name]
            if isinstance(bare, type) and dataclasses.is_dataclass(bare):
                as_paragraphs(bare)
            elif "\n" in said.get(name, ""):
                text = " ".join(said[name].split())
                kind.__annotations__[name] = Annotated[hints[name], tyro.conf.arg(help=text)]


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated
