"""Tokenise a table once: texts, pairs of texts, and sentences of labelled words."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from sftjax.data.encoded import Encoded, cached, pack
from sftjax.data.labels import IGNORED, Labels
from sftjax.data.table import Table, bytes_to_str, texts

OnLong = Literal["truncate", "error"]


class Tokenizer(Protocol):
    """What `encode` asks of a tokenizer; `sftjax.hub.load_tokenizer` returns one."""

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows."""
        ...

    @property
    def sha256(self) -> str:
        """Names the vocabulary and the rules: equal for two that always agree."""
        ...

    @property
    def uses_type_ids(self) -> bool:
        """Whether the model tells the first text from the second by type ids."""
        ...

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Sequence[Any]:
        """Return `(ids, type_ids)` of each row, with special tokens, neither padded nor cut."""
        ...


class WordTokenizer(Tokenizer, Protocol):
    """A tokenizer that also takes text already split into words."""

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> Sequence[Any]:
        """Return `(ids, type_ids, word_ids)` of each row; special tokens have the word None."""
        ...


def encode(
    table: Table,
    tokenizer: Tokenizer,
    text: str = "text",
    pair: str | None = None,
    *,
    max_length: int,
    on_long: OnLong = "truncate",
    cache: str | Path | None = None,
) -> Encoded:
    """Tokenise a column of text, or two.

    A row longer than `max_length` loses tokens from the end of its text, of a pair from the end of
    whichever text is longer ("longest first"), and never a special token. `Encoded.truncated` and
    `Encoded.lost` count.

    Args:
      table: the rows.
      tokenizer: see `Tokenizer`.
      text: name of the column.
      pair: name of the column of second texts.
      max_length: most tokens a row may have, special tokens included.
      on_long: `"error"` refuses a longer row instead.
      cache: a folder that keeps the result, found again by content, tokenizer and settings.

    Returns:
      `Encoded`, row for row the table.

    Raises:
      ValueError: naming the rows of missing text, or with `on_long="error"` those too long.
    """
    columns = table.only(*([text] if pair is None else [text, pair]))

    def make() -> Encoded:
        first, second = texts(table, text), None if pair is None else texts(table, pair)
        ids, types = _unzip(tokenizer.encode(first, second))
        long = _long(table, ids, max_length, on_long)
        lost = sum(len(ids[i]) - max_length for i in long)
        if len(long):
            heads = [first[i] for i in long]
            tails = None if second is None else [second[i] for i in long]
            for i, keep in zip(long, _kept(tokenizer, heads, tails, max_length), strict=True):
                if keep[-1] != len(ids[i]) - 1:
                    raise ValueError(
                        f"{table.locate([i])}: too long, and this tokenizer splits the text "
                        "differently in a pair than alone, so it cannot be cut here; shorten the "
                        "text or raise max_length"
                    )
                ids[i], types[i] = [ids[i][k] for k in keep], [types[i][k] for k in keep]
        return _pack(tokenizer, ids, types, max_length, len(long), lost)

    path = _path(cache, columns, tokenizer, [text, pair, max_length, on_long])
    return cached(path, len(table), make)


def encode_words(
    table: Table,
    tokenizer: WordTokenizer,
    words: str = "words",
    labels: Labels | None = None,
    *,
    max_length: int,
    on_long: OnLong = "truncate",
    cache: str | Path | None = None,
) -> Encoded:
    """Tokenise sentences of words, and give each word's label to its first sub-token.

    The other sub-tokens and the special tokens are labelled -100 and do not count.

    Args:
      table: the rows.
      tokenizer: see `WordTokenizer`.
      words: a column of lists of words, or of text with spaces between them.
      labels: from `token_labels`; without them every word is labelled 0.
      max_length: as in `encode`; what is cut off loses its words' labels.
      on_long: as in `encode`.
      cache: as in `encode`.

    Returns:
      `Encoded` with `token_labels`.

    Raises:
      ValueError: naming the rows without words, with more or fewer labels than words, with a word
        that the tokenizer makes no token of, or (`on_long="error"`) too long.
    """
    columns = table.only(words)
    rows = _words(table, words)
    tags = [np.zeros(len(row), np.int32) for row in rows] if labels is None else labels.values
    unequal = [i for i, row in enumerate(rows) if len(row) != len(tags[i])]
    if unequal:
        first = unequal[0]
        raise ValueError(
            f"{table.locate(unequal)}: {len(rows[first])} words in column {words!r} and "
            f"{len(tags[first])} labels. Every word needs one."
        )

    def make() -> Encoded:
        ids, types, owners = _unzip(tokenizer.encode_words(rows), fields=3)
        token_labels = [_first_only(owner, tag) for owner, tag in zip(owners, tags, strict=True)]
        bare = [i for i, owner in enumerate(owners) if len({*owner} - {None}) < len(rows[i])]
        if bare:
            raise ValueError(
                f"{table.locate(bare)}: column {words!r} holds a word that the tokenizer makes no "
                "token of (white space, control characters). Remove it and its label."
            )
        long = _long(table, ids, max_length, on_long)
        lost = sum(len(ids[i]) - max_length for i in long)
        for i in long:
            after = next(k for k, word in enumerate(reversed(owners[i])) if word is not None)
            keep = [*range(max_length - after), *range(len(ids[i]) - after, len(ids[i]))]
            ids[i], types[i] = [ids[i][k] for k in keep], [types[i][k] for k in keep]
            token_labels[i] = token_labels[i][keep]
        return _pack(tokenizer, ids, types, max_length, len(long), lost, token_labels)

    tagged = hashlib.sha256(np.concatenate(tags).tobytes()).hexdigest()
    path = _path(cache, columns, tokenizer, [words, tagged, max_length, on_long])
    return cached(path, len(table), make)


class _Frame(NamedTuple):
    """How many special tokens a tokenizer puts where."""

    before: int
    between: int
    after: int


def _frame(tokenizer: Tokenizer, paired: bool) -> _Frame:
    empty, word = (list(ids) for ids, *_ in tokenizer.encode(["", "a"]))
    before = 0
    while before < len(empty) and empty[before] == word[before]:
        before += 1
    pair = len(tokenizer.encode([""], [""])[0][0]) if paired else len(empty)
    return _Frame(before, pair - len(empty), len(empty) - before)


def _kept(
    tokenizer: Tokenizer, first: list[str], second: list[str] | None, max_length: int
) -> list[list[int]]:
    """Return the positions that rows keep which are too long."""
    frame = _frame(tokenizer, second is not None)
    room = max_length - sum(frame)
    if room < (1 if second is None else 2):
        raise ValueError(
            f"max_length={max_length} leaves no room beside {sum(frame)} special tokens; raise it"
        )
    alone = frame.before + frame.after
    sizes = [len(ids) - alone for ids, *_ in tokenizer.encode(first)]
    others = [0] * len(sizes)
    if second is not None:
        others = [len(ids) - alone for ids, *_ in tokenizer.encode(second)]
    kept = []
    for size, other in zip(sizes, others, strict=True):
        keep, keep_other = _longest_first(size, other, room)
        middle = frame.before + size
        end = middle + frame.between + other
        kept.append(
            [
                *range(frame.before + keep),
                *range(middle, middle + frame.between + keep_other),
                *range(end, end + frame.after),
            ]
        )
    return kept


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Shorten the longer of two until both fit; when both must give, the longer one gets more."""
    small, large = min(first, second), max(first, second)
    if small + large > room:
        small = min(small, room // 2)
        large = room - small
    return (large, small) if first > second else (small, large)


def _long(
    table: Table, ids: Sequence[Sequence[int]], max_length: int, on_long: OnLong
) -> np.ndarray:
    if on_long not in ("truncate", "error"):
        raise ValueError(f'on_long is "truncate" or "error", not {on_long!r}')
    lengths = np.array([len(row) for row in ids])
    long = np.flatnonzero(lengths > max_length)
    if len(long) and on_long == "error":
        raise ValueError(
            f"{table.locate(long)}: up to {lengths.max()} tokens, and at most {max_length} are "
            'allowed. Shorten the text, raise max_length, or cut it with on_long="truncate".'
        )
    return long


def _words(table: Table, column: str) -> list[list[str]]:
    rows = [bytes_to_str(value) for value in table[column]]
    rows = [
        row.split() if isinstance(row, str) else None if row is None else list(row) for row in rows
    ]
    wrong = [
        i
        for i, row in enumerate(rows)
        if not row or not all(isinstance(word, str) and word for word in row)
    ]
    if wrong:
        raise ValueError(
            f"{table.locate(wrong)}: column {column!r} holds no list of words there (empty, or "
            "something that is not text). Fill in or remove the row."
        )
    return [row for row in rows if row is not None]


def _first_only(owners: Sequence[int | None], tags: np.ndarray) -> np.ndarray:
    labels = np.full(len(owners), IGNORED, np.int32)
    previous = None
    for position, word in enumerate(owners):
        if word is not None and word != previous:
            labels[position] = tags[word]
        previous = word
    return labels


def _unzip(rows: Sequence[Any], fields: int = 2) -> list[list[Any]]:
    return [[row[field] for row in rows] for field in range(fields)]


def _pack(
    tokenizer: Tokenizer,
    ids: list[list[int]],
    types: list[list[int]],
    max_length: int,
    truncated: int,
    lost: int,
    token_labels: list[np.ndarray] | None = None,
) -> Encoded:
    return pack(
        ids,
        pad_id=tokenizer.pad_id,
        max_length=max_length,
        type_ids=types if tokenizer.uses_type_ids else None,
        token_labels=token_labels,
        truncated=truncated,
        lost=lost,
    )


def _path(
    cache: str | Path | None, columns: Table, tokenizer: Tokenizer, settings: list[Any]
) -> Path | None:
    if cache is None:
        return None
    key = json.dumps(
        [columns.fingerprint, tokenizer.sha256, tokenizer.pad_id, tokenizer.uses_type_ids, settings]
    )
    return Path(cache).expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
