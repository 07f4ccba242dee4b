"""A checkpoint's chat template and the tokens that it may name, as files say them."""

import json
import os
from typing import Any, NamedTuple

from sftjax.hub.source import find_folder


class ChatFiles(NamedTuple):
    """What rendering a conversation needs of a model folder."""

    template: str
    """The Jinja source; "" if the folder has none."""
    bos_token: str
    eos_token: str
    stop_ids: tuple[int, ...]
    """The tokens that end a text, by `generation_config.json` and `config.json`."""


def load_chat_files(name_or_folder: str | os.PathLike[str]) -> ChatFiles:
    """Read `chat_template.jinja`, or else the `chat_template` of `tokenizer_config.json`.

    Args:
      name_or_folder: as for `load`.

    Raises:
      ValueError: if a file is damaged, or there are several templates and none is the default.
    """
    folder = find_folder(name_or_folder)

    def read(name: str) -> dict[str, Any]:
        path = folder / name
        if not path.is_file():
            return {}
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}. Copy the file again.") from error

    settings = read("special_tokens_map.json") | read("tokenizer_config.json")
    template = settings.get("chat_template") or ""
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text("utf-8")
    elif isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        if "default" not in by_name:
            raise ValueError(
                f"{folder} has the chat templates {', '.join(by_name)} and none called default; "
                "write the one to use into chat_template.jinja"
            )
        template = by_name["default"]
    stops: list[int] = []
    for name in ("generation_config.json", "config.json"):
        found = read(name).get("eos_token_id")
        stops += found if isinstance(found, list) else [] if found is None else [found]
    return ChatFiles(
        template,
        _token(settings, "bos_token"),
        _token(settings, "eos_token"),
        (*dict.fromkeys(stops),),
    )


def _token(settings: dict[str, Any], name: str) -> str:
    token = settings.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
