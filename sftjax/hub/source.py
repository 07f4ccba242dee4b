"""From a name to a folder: a local one first, else the Hub's, through its own client."""

import os
import pathlib

from sftjax.hub.weights import INDEX, MSGPACK, SHARDS, SINGLE

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "chat_template.jinja",
)
"""What a tokenizer can consist of; a folder has some of them."""

GENERATION = "generation_config.json"
"""How a model that writes text is to be asked for it."""


def find_folder(name_or_folder: str | os.PathLike[str]) -> pathlib.Path:
    """Return the local folder of a checkpoint, fetching it from the Hub if it is not one already.

    Only the config, the tokenizer and one layout of the weights are fetched.

    Args:
      name_or_folder: a folder, or a repository on the Hub such as
        `sentence-transformers/all-MiniLM-L6-v2`.

    Raises:
      FileNotFoundError: if there is no such folder and no such repository, or no way to reach it.
    """
    folder = pathlib.Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder
    name = os.fspath(name_or_folder)
    if folder.is_file():
        raise FileNotFoundError(
            f"{name} is a file; pass the folder that holds it, with its config.json."
        )
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(
            f"there is no folder {name}. Check the path; a model on the Hub is named like "
            "owner/model."
        )
    fetched = _fetch(
        name, ["config.json", GENERATION, *TOKENIZER_FILES, SINGLE, INDEX, SHARDS, "README.md"]
    )
    if not (fetched / SINGLE).is_file() and not (fetched / INDEX).is_file():
        fetched = _fetch(name, [MSGPACK])
    return fetched


def tokenizer_files(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the tokenizer's files that a folder has."""
    return tuple(name for name in TOKENIZER_FILES if (pathlib.Path(folder) / name).is_file())


def _fetch(name: str, patterns: list[str]) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"there is no folder {name!r} here, and the Hub could not give a model of that name "
            f"({type(error).__name__}: {reason}). Check the spelling (owner/model) and the network;"
            " without one, copy the model's folder to this machine (config.json, "
            "model.safetensors, tokenizer files) and pass its path."
        ) from error
