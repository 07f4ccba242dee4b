"""Text to ids, with the tokenizer that the model was pretrained with and nothing switched on.

The fast path is the `tokenizers` library on `tokenizer.json`, about twice as fast as going through
transformers. Padding and truncation belong to whoever makes batches: here both are off, also where
the file has them on.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sftjax.hub.source import find_folder, tokenizer_files

_USUAL = {
    "pad": ("[PAD]", "<pad>"),
    "eos": (),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""How special tokens are spelled where the files do not say."""
_UNBOUNDED = 10**9  # transformers writes 1e30 for "no limit"


class Encoded(NamedTuple):
    """One text as the model reads it."""

    ids: list[int]
    type_ids: list[int]
    """0 for the first text, 1 for the second; only some models look at them."""


class EncodedWords(NamedTuple):
    """One sentence of given words as the model reads it."""

    ids: list[int]
    type_ids: list[int]
    word_ids: list[int | None]
    """For each token the word it came from; None for special tokens."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and the few facts about it that batches need."""

    backend: Any = field(repr=False)
    """`tokenizers.Tokenizer`."""
    folder: pathlib.Path
    files: tuple[str, ...]
    """Names of the files in `folder` that it is made of."""
    sha256: str
    """Hash of those files, names and contents."""
    vocab_size: int
    """Number of ids, added tokens included."""
    pad_id: int
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None
    max_length: int | None
    """The longest input in tokens, specials included, if the files say."""
    uses_type_ids: bool
    """Whether the model looks at type ids: as the files say, else if it is a BERT."""

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoded]:
        """Encode texts, or pairs of texts, with special tokens.

        Args:
          texts: the texts.
          pairs: the second text of each, if there is one.

        Returns:
          One `Encoded` a text, of its own length.

        Raises:
          ValueError: if a text is not a string or the lengths differ.
        """
        _check_texts(texts)
        if pairs is None:
            inputs: list[Any] = list(texts)
        else:
            _check_texts(pairs)
            if len(pairs) != len(texts):
                raise ValueError(f"{len(texts)} texts and {len(pairs)} second texts were given.")
            inputs = list(zip(texts, pairs, strict=True))
        encodings = self.backend.encode_batch_fast(inputs)
        return [Encoded(encoding.ids, encoding.type_ids) for encoding in encodings]

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[EncodedWords]:
        """Encode sentences that are already split into words, keeping track of each token's word.

        Args:
          sentences: lists of words.

        Returns:
          One `EncodedWords` a sentence. A word may have no token, if the tokenizer removes it.
        """
        for row, words in enumerate(sentences):
            if isinstance(words, str):
                raise ValueError(
                    f"row {row} is a string; this needs a list of words, one label each. For whole "
                    "texts use encode."
                )
            _check_texts(words, row)
        encodings = self.backend.encode_batch(
            [list(words) for words in sentences], is_pretokenized=True
        )
        return [EncodedWords(e.ids, e.type_ids, e.word_ids) for e in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens left out."""
        return self.backend.decode(list(ids))


def load_tokenizer(
    name_or_folder: str | os.PathLike[str], *, pad_as: str | None = None
) -> Tokenizer:
    """Load the tokenizer of a model folder, or of a repository on the Hub.

    Args:
      name_or_folder: as for `load`.
      pad_as: "eos" pads with the end-of-text token where the files name no padding token (Llama,
        GPT-2): for decoders, whose padding is masked and read by nobody, whatever it is.

    Raises:
      FileNotFoundError: if the folder has no tokenizer.
      ValueError: if its files are damaged or name no padding token.
    """
    folder = find_folder(name_or_folder)
    files = tokenizer_files(folder)
    settings = _read_json(folder / "special_tokens_map.json") | _read_json(
        folder / "tokenizer_config.json"
    )
    if "tokenizer.json" in files:
        backend = _read_backend(folder / "tokenizer.json")
    elif set(files) & {"vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model"}:
        backend = _convert(folder)
    else:
        raise FileNotFoundError(
            f"{folder} has no tokenizer: neither tokenizer.json nor a vocabulary. Copy the "
            "tokenizer's files there from where the weights came from."
        )
    backend.no_padding()
    backend.no_truncation()
    config = _read_json(folder / "config.json")
    ids = {name: _token_id(backend, settings, name) for name in ("pad", "cls", "sep", "mask")}
    pad = ids["pad"] if ids["pad"] is not None else config.get("pad_token_id")
    if pad_as == "eos" and not (isinstance(pad, int) and pad >= 0):
        pad = _token_id(backend, settings, "eos")
        ends = config.get("eos_token_id") if pad is None else pad
        pad = ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(pad, int):
        raise ValueError(
            f"the tokenizer in {folder} names no padding token (pad_token in tokenizer_config.json "
            "or pad_token_id in config.json). Add one of them."
        )
    default_inputs = ["token_type_ids"] if config.get("model_type", "bert") == "bert" else []
    limit = settings.get("model_max_length")
    return Tokenizer(
        backend=backend,
        folder=folder,
        files=files,
        sha256=_hash(folder, files),
        vocab_size=backend.get_vocab_size(with_added_tokens=True),
        pad_id=pad,
        cls_id=ids["cls"],
        sep_id=ids["sep"],
        mask_id=ids["mask"],
        max_length=int(limit) if limit is not None and limit < _UNBOUNDED else None,
        uses_type_ids="token_type_ids" in settings.get("model_input_names", default_inputs),
    )


def _check_texts(texts: Sequence[str], row: int | None = None) -> None:
    if isinstance(texts, str):
        raise ValueError("a single string was given; pass a list of texts.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            where = f"row {index}" if row is None else f"row {row}, word {index}"
            raise ValueError(
                f"{where} is {text!r} ({type(text).__name__}), not a string. Fill or remove "
                "missing texts before tokenizing."
            )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Copy the file again.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a JSON {type(settings).__name__}, not an object.")
    return settings


def _read_backend(path: pathlib.Path) -> Any:
    import tokenizers

    _read_json(path)  # a damaged file is refused in our words; the library's name no file
    return tokenizers.Tokenizer.from_file(str(path))


def _convert(folder: pathlib.Path) -> Any:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return tokenizer.backend_tokenizer
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(
            f"{folder} has no tokenizer.json, and transformers could not make one from its "
            f"vocabulary: {error}. Where transformers and sentencepiece are installed, "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it."
        ) from error


def _token_id(backend: Any, settings: dict[str, Any], name: str) -> int | None:
    token = settings.get(f"{name}_token")
    if isinstance(token, dict):
        token = token.get("content")
    spellings = (token,) if isinstance(token, str) else _USUAL[name]
    ids = (backend.token_to_id(spelling) for spelling in spellings)
    return next((found for found in ids if found is not None), None)


def _hash(folder: pathlib.Path, files: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in files:
        data = (folder / name).read_bytes()
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()
