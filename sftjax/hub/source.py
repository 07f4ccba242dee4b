"""From a name to a folder: a local one first, else the Hub's, through its own client."""

import os
import pathlib

from sftjax.hub.gguf_model import folder_of_gguf
from sftjax.hub.weights import INDEX, MSGPACK, SHARDS, SINGLE, TORCH, TORCH_INDEX

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

COMPANIONS = ("generation_config.json",)
"""What else lies beside the weights and goes with them."""


PROCESSOR = "preprocessor_config.json"
"""How images are prepared for the model."""


def find_folder(
    name_or_folder: str | os.PathLike[str], *, config_alone: bool = False
) -> pathlib.Path:
    """Return the local folder of a checkpoint, fetching it from the Hub if it is not one already.

    Only the config, the tokenizer and one layout of the weights are fetched.

    Args:
      name_or_folder: a folder, or a repository on the Hub such as
        `sentence-transformers/all-MiniLM-L6-v2`. For a `.gguf` file, or a folder with one and no
        config.json, the folder `<name>.hub` beside it, made on the first call.
      config_alone: fetch nothing but the config.

    Raises:
      FileNotFoundError: if there is no such folder and no such repository, or no way to reach it.
    """
    if (gguf := lone_gguf(name_or_folder)) is not None:
        return folder_of_gguf(gguf)
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
    if config_alone:
        return _fetch(name, ["config.json"])
    beside = ("config.json", PROCESSOR, *TOKENIZER_FILES, *COMPANIONS, "README.md")
    fetched = _fetch(name, [*beside, SINGLE, INDEX, SHARDS])
    if not (fetched / SINGLE).is_file() and not (fetched / INDEX).is_file():
        fetched = _fetch(name, [MSGPACK])
        if not (fetched / MSGPACK).is_file():
            fetched = _fetch(name, [TORCH, TORCH_INDEX, "pytorch_model-*-of-*.bin"])
    return fetched


def lone_gguf(name_or_folder: str | os.PathLike[str]) -> pathlib.Path | None:
    """Return the GGUF file that a name means: itself, or a folder's only one with no config.json.

    >>> lone_gguf("owner/model") is None
    True
    """
    path = pathlib.Path(name_or_folder).expanduser()
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return found[0] if len(found) == 1 and not (path / "config.json").is_file() else None


def tokenizer_files(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the tokenizer's files that a folder has."""
    return _those_in(folder, TOKENIZER_FILES)


def companions(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of what else goes with the weights, as far as a folder has it."""
    return _those_in(folder, COMPANIONS)


def _those_in(folder: str | os.PathLike[str], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if (pathlib.Path(folder) / name).is_file())


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
