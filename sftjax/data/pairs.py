"""Documents and their summaries as tokens: sources and targets, each with a policy for the long."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sftjax.data.encoded import Encoded, pack
from sftjax.data.table import Table, bytes_to_str, is_missing, texts
from sftjax.data.text import Tokenizer

Policy = Literal["cut-end", "cut-start", "cut-middle", "error"]
"""What becomes of a row with too many tokens: where they are cut off, or that it is refused."""

POLICIES: tuple[str, ...] = ("cut-end", "cut-start", "cut-middle", "error")

COLUMNS = (
    ("document", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("findings", "impression"),
    ("description", "synopsis"),
)
"""Names of the two columns in data sets that people use: XSum, CNN/DailyMail, SAMSum, ..."""

TEMPLATES: dict[str, str] = {
    "none": "{document}",
    "t5": "summarize: {document}",
    "summary": "Write a short summary of the text.\n\n{document}\n\nSummary:",
    "title": "Write a title for the text.\n\n{document}\n\nTitle:",
    "xsum": "Summarize the article in one sentence.\n\n{document}",
    "highlights": "Write highlights for this article:\n\n{document}",
}
"""Instructions by name; a template of one's own has `{document}` or names of columns in it."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Tokenised sources and targets, row for row.

    >>> pairs = Pairs(
    ...     pack([[5, 6, 1]], pad_id=0, max_length=8), pack([[7, 1]], pad_id=0, max_length=4), 0)
    >>> len(pairs), pairs.target.ids
    (1, array([7, 1], dtype=int32))
    """

    source: Encoded
    target: Encoded
    """The labels, special tokens included."""
    start_id: int
    """The token that the decoder reads first."""
    weights: np.ndarray | None = None
    """(tokens of all targets,) float32, how much each label counts; None is 1 for each."""

    def __post_init__(self) -> None:
        """Refuse what could not be trained on."""
        if len(self.source) != len(self.target):
            raise ValueError(
                f"there are {len(self.source)} sources and {len(self.target)} targets; each source "
                "needs one target"
            )
        if self.weights is not None and self.weights.shape != self.target.ids.shape:
            raise ValueError(
                f"weights have shape {self.weights.shape}; the targets have "
                f"{len(self.target.ids)} tokens"
            )
        counted = self.target.lengths > 0
        if self.weights is not None:
            whole = np.concatenate([[0.0], np.cumsum(np.asarray(self.weights, np.float64) != 0)])
            counted = np.diff(whole[self.target.offsets]) > 0
        if not counted.all():
            rows = np.flatnonzero(~counted)
            raise ValueError(
                f"targets that are all masked, in rows {_some(rows)} (counted from 0): nothing of "
                "them would be learned. Remove these rows, or let some of their labels count."
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.source)

    def told(self) -> str:
        """Say how long the rows are, and what was cut."""
        return "; ".join(
            f"{name} median {int(np.median(side.lengths))} and at most {side.lengths.max()} tokens"
            + (f", {side.truncated:,} cut, {side.lost:,} tokens lost" if side.truncated else "")
            for name, side in (("sources", self.source), ("targets", self.target))
        )


def columns_of(table: Table, document: str | None, summary: str | None) -> tuple[str, str]:
    """Return the names of the two columns: those given, else a pair of `COLUMNS` that is there.

    Raises:
      ValueError: if a column is not there, or none of the usual pairs is.

    >>> columns_of(Table({"article": ["a"], "highlights": ["b"]}, "news"), None, None)
    ('article', 'highlights')
    """
    for usual in COLUMNS:
        names = (document or usual[0], summary or usual[1])
        if all(name in table.columns for name in names):
            return names
    for given in (document, summary):
        if given is not None:
            table[given]  # refused, with the nearest name
    usual = ", ".join(f"{a}/{b}" for a, b in COLUMNS)
    raise ValueError(
        f"{table.name} has the columns {', '.join(map(repr, table.columns))}, and none of the "
        f"usual pairs {usual}; name the document's and the summary's (--document, --summary)"
    )


def fill(table: Table, template: str, document: str) -> list[str]:
    """Return what the encoder is to read: a template with the document, and other columns, in it.

    Args:
      table: the rows.
      template: a name in `TEMPLATES`, or text with `{document}` in it; `{other}` is that column.
        Text without any is a prefix: the document comes after it.
      document: the column of documents.

    Raises:
      ValueError: naming a column that is not there, or the rows that miss a value.

    >>> table = Table({"text": ["It rains."], "tone": ["dry"]}, "two")
    >>> fill(table, "t5", "text"), fill(table, "Be {tone}: {document}", "text")
    (['summarize: It rains.'], ['Be dry: It rains.'])
    """
    form = TEMPLATES.get(template, template)
    names = list(dict.fromkeys(re.findall(r"\{(\w+)\}", form)))
    if not names:
        form, names = form + "{document}", ["document"]
    columns = {name: texts(table, document if name == "document" else name) for name in names}

    def row(number: int) -> str:
        # One pass, so that a document with braces in it stays as it is.
        return re.sub(r"\{(\w+)\}", lambda match: columns[match[1]][number], form)

    return [row(number) for number in range(len(table))]


def encode_pairs(
    table: Table,
    tokenizer: Tokenizer | None,
    document: str = "document",
    summary: str = "summary",
    *,
    start_id: int | None,
    max_source_length: int,
    max_target_length: int,
    on_long_source: Policy,
    on_long_target: Policy,
    template: str = "none",
) -> Pairs:
    """Tokenise documents for an encoder and summaries for a decoder.

    A row that is cut keeps its special tokens: a summary that was cut still ends with the end
    token. `Encoded.truncated` and `Encoded.lost` count, of sources and of targets.

    Args:
      table: the rows.
      tokenizer: of the model.
      document: the column of documents.
      summary: the column of summaries.
      start_id: the token that the decoder reads first, `decoder_start_token_id` of the config.
      max_source_length: most tokens of a source, template and special tokens included.
      max_target_length: most tokens of a target, special tokens included.
      on_long_source: what to do with longer ones; there is no default, since each loses something.
      on_long_target: the same for targets.
      template: see `fill`.

    Raises:
      ValueError: without a tokenizer or a start token; naming the rows with an empty document, an
        empty summary, or (by policy) too many tokens.
    """
    if tokenizer is None:
        raise ValueError(
            "there is no tokenizer: pass the one that the model was pretrained with "
            "(hub.load_tokenizer of its folder)"
        )
    if start_id is None:
        raise ValueError(
            "the config names no decoder_start_token_id, so nothing says what the decoder reads "
            "first; add the field to config.json (T5: the pad token, BART: the end token)"
        )
    for name, column in (("document", document), ("summary", summary)):
        empty = [i for i, value in enumerate(table[column]) if is_missing(bytes_to_str(value))]
        if empty:
            raise ValueError(
                f"{table.locate(empty)}: the {name} (column {column!r}) is empty. Fill in or "
                f"remove {'these rows' if len(empty) > 1 else 'this row'}."
            )
    source = _encode(
        table, fill(table, template, document), tokenizer, max_source_length, on_long_source,
        "document", "--max-source-length", "--on-long-source",
    )  # fmt: skip
    target = _encode(
        table, texts(table, summary), tokenizer, max_target_length, on_long_target,
        "summary", "--max-target-length", "--on-long-target",
    )  # fmt: skip
    return Pairs(source, target, start_id)


def _encode(
    table: Table,
    rows: Sequence[str],
    tokenizer: Tokenizer,
    most: int,
    policy: Policy,
    what: str,
    length_option: str,
    policy_option: str,
) -> Encoded:
    if policy not in POLICIES:
        raise ValueError(f"{policy_option} is {policy!r}; it is one of {', '.join(POLICIES)}")
    ids = [list(found[0]) for found in tokenizer.encode(rows)]
    before, after = special_tokens(tokenizer)
    bare = [i for i, row in enumerate(ids) if len(row) <= before + after]
    if bare:
        raise ValueError(
            f"{table.locate(bare)}: the tokenizer makes no token of the {what}. Remove "
            f"{'these rows' if len(bare) > 1 else 'this row'}."
        )
    if most <= before + after:
        raise ValueError(
            f"{length_option} {most} leaves no room beside {before + after} special tokens; raise "
            "it"
        )
    long = [i for i, row in enumerate(ids) if len(row) > most]
    if long and policy == "error":
        longest = max(len(ids[i]) for i in long)
        raise ValueError(
            f"{table.locate(long)}: the {what} has up to {longest} tokens, and at most {most} are "
            f"allowed. Raise {length_option}, or say where to cut: {policy_option} cut-end "
            "(or cut-start, cut-middle)."
        )
    lost = sum(len(ids[i]) - most for i in long)
    for i in long:
        ids[i] = _cut(ids[i], most, before, after, policy)
    return pack(ids, pad_id=tokenizer.pad_id, max_length=most, truncated=len(long), lost=lost)


def _cut(row: list[int], most: int, before: int, after: int, policy: Policy) -> list[int]:
    inner, room = row[before : len(row) - after], most - before - after
    if policy == "cut-start":
        inner = inner[-room:]
    elif policy == "cut-middle":
        inner = inner[: (room + 1) // 2] + inner[len(inner) - room // 2 :]
    else:
        inner = inner[:room]
    return [*row[:before], *inner, *row[len(row) - after :]]


def special_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return how many special tokens a tokenizer puts before a text and after it."""
    empty, word = (list(found[0]) for found in tokenizer.encode(["", "a"]))
    before = 0
    while before < len(empty) and empty[before] == word[before]:
        before += 1
    return before, len(empty) - before


def _some(rows: np.ndarray, most: int = 5) -> str:
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(map(str, rows[:most].tolist())) + more
