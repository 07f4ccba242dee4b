"""Conversations as tokens, rendered and tokenised once, and which of the tokens are learned."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from sftjax.data.conversation import Conversation, conversations
from sftjax.data.table import Table
from sftjax.data.template import ChatTemplate, EndOfTurn, end_of

Learn = Literal["assistant", "completion", "all"]
"""Which tokens count: the assistant's turns (of a prompt and completion: those of the completion),
all that follows the prompt, or every token."""

OnLong = Literal["refuse", "truncate", "drop"]
OnProblem = Literal["refuse", "count"]


class ChatTokenizer(Protocol):
    """What `encode_chat` asks of a tokenizer; `sftjax.hub.load_tokenizer` returns one."""

    @property
    def backend(self) -> Any:
        """A `tokenizers.Tokenizer`, which knows the characters of each token."""
        ...

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows."""
        ...


class Audit(NamedTuple):
    """What was found wrong with the rows, as positions in the table."""

    truncated: tuple[int, ...] = ()
    """Longer than allowed, and cut."""
    dropped: tuple[int, ...] = ()
    """Longer than allowed, and left out."""
    eaten: tuple[int, ...] = ()
    """Cut so that tokens to be learned were lost."""
    lost: int = 0
    """How many such tokens."""
    nothing: tuple[int, ...] = ()
    """With no token to learn, and left out."""
    all_ones: tuple[int, ...] = ()
    """Every token learned, although not all were asked for."""
    no_stop: tuple[int, ...] = ()
    """An answer is learned and the stop token after it is not."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """Tokenised conversations: row i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray
    """(T,) int32."""
    weights: np.ndarray
    """(T,) float32: how much each token counts as a target."""
    offsets: np.ndarray
    """(N + 1,) int64."""
    rows: np.ndarray
    """(N,) int64: the position of each row in the table it came from."""
    pad_id: int
    max_length: int
    audit: Audit
    tokenizer: Any = dataclasses.field(repr=False)
    """The backend, to show tokens as text."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and weights of a row."""
        part = slice(self.offsets[row], self.offsets[row + 1])
        return self.ids[part], self.weights[part]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64: tokens of each row."""
        return np.diff(self.offsets)

    @property
    def learned(self) -> int:
        """Number of tokens that count."""
        return int(np.count_nonzero(self.weights))

    def __str__(self) -> str:
        """Say how many rows and tokens there are, and everything that was not as it should be."""
        lengths, total = self.lengths, len(self.ids)
        lines = [
            f"{len(self):,} rows, {total:,} tokens, {self.learned:,} of them learned "
            f"({self.learned / total:.0%}); median {int(np.median(lengths))} and at most "
            f"{lengths.max()} tokens a row"
        ]
        said = {
            "truncated": f"longer than {self.max_length} tokens and cut",
            "dropped": f"longer than {self.max_length} tokens and left out",
            "eaten": f"whose answer was cut, {self.audit.lost:,} tokens of answers lost",
            "nothing": "with nothing to learn, left out",
            "all_ones": "of which every token is learned, the question too",
            "no_stop": "whose stop token is not learned",
        }
        for name, what in said.items():
            if rows := getattr(self.audit, name):
                lines.append(f"  {len(rows):,} row{'s' if len(rows) > 1 else ''} {what}")
        return "\n".join(lines)


class _Row(NamedTuple):
    ids: np.ndarray
    learned: np.ndarray
    """(t,) bool."""
    no_stop: bool


def encode_chat(
    table: Table,
    tokenizer: ChatTokenizer,
    template: ChatTemplate | None,
    *,
    max_length: int,
    learn: Learn,
    end_of_turn: EndOfTurn,
    on_long: OnLong,
    on_problem: OnProblem,
) -> Chat:
    """Read, render, tokenise and audit a table of conversations.

    Nothing about what is learned has a default: each of the last four decides what a model becomes.

    Args:
      table: in any format that `conversations` reads; all rows in one.
      tokenizer: its `backend` encodes; a template's text is encoded without adding special tokens
        (they are in it), plain text with them, and with the stop token after it.
      template: renders messages; None if the rows are plain text.
      max_length: most tokens a row may have.
      learn: which tokens count. A message's own `train: false` takes its turn out; where a
        conversation has `train: true`, only the turns with it count.
      end_of_turn: what follows an answer, of the tokens that count for `"assistant"`.
      on_long: refuse rows that are too long, keep their start, or leave them out.
      on_problem: `"refuse"` raises where rows have nothing to learn, where a cut took a part of an
        answer, where everything is learned although not asked for, and where the stop token is not
        learned although it was asked for; `"count"` counts them, and leaves out those with nothing
        to learn.

    Raises:
      ValueError: for such rows, and for those that cannot be read or rendered, by their numbers.
    """
    _check_choice("learn", learn, Learn)
    _check_choice("end_of_turn", end_of_turn, EndOfTurn)
    _check_choice("on_long", on_long, OnLong)
    _check_choice("on_problem", on_problem, OnProblem)
    read = conversations(table)
    stop = "" if template is None else template.eos_token
    encoded: list[_Row] = []
    for i, conversation in enumerate(read):
        try:
            encoded.append(_encode(conversation, tokenizer, template, stop, learn, end_of_turn))
        except ValueError as error:
            raise ValueError(f"{table.locate([i])}: {error}") from None
    lengths = np.array([len(row.ids) for row in encoded])
    long = np.flatnonzero(lengths > max_length)
    if len(long) and on_long == "refuse":
        raise ValueError(
            f"{table.locate(long)}: up to {lengths.max()} tokens, and at most {max_length} are "
            "allowed. Raise max_length, or say what to do: on_long='truncate' or 'drop'"
        )
    kept = [i for i in range(len(encoded)) if on_long != "drop" or lengths[i] <= max_length]
    cut = [_Row(row.ids[:max_length], row.learned[:max_length], row.no_stop) for row in encoded]
    lost = {i: int(encoded[i].learned[max_length:].sum()) for i in kept}
    # The first token has nothing before it that could say it.
    nothing = [i for i in kept if not cut[i].learned[1:].any()]
    wanted = {i for i in kept if learn != "all" and _has_given(read[i])}
    audit = Audit(
        truncated=tuple(long.tolist()) if on_long == "truncate" else (),
        dropped=tuple(long.tolist()) if on_long == "drop" else (),
        eaten=tuple(i for i in lost if lost[i]),
        lost=sum(lost.values()),
        nothing=tuple(nothing),
        all_ones=tuple(i for i in sorted(wanted) if encoded[i].learned.all()),
        no_stop=tuple(i for i in kept if encoded[i].no_stop and end_of_turn != "none"),
    )
    if on_problem == "refuse":
        _refuse(table, audit, max_length)
    rows = sorted({*kept} - {*nothing})
    if not rows:
        raise ValueError(
            f"{table.name}: no row is left with anything to learn ({len(nothing)} have none, "
            f"{len(audit.dropped)} are too long); see what `learn` and `max_length` ask for"
        )
    final = [cut[i] for i in rows]
    return Chat(
        np.concatenate([row.ids for row in final]).astype(np.int32),
        np.concatenate([row.learned for row in final]).astype(np.float32),
        np.concatenate([[0], np.cumsum([len(row.ids) for row in final])]).astype(np.int64),
        np.asarray(rows, np.int64),
        tokenizer.pad_id,
        max_length,
        audit,
        tokenizer.backend,
    )


def check_vocabulary(chat: Chat, table: Table, vocab_size: int) -> None:
    """Refuse ids that a model has no word for; an embedding would take another in silence.

    Raises:
      ValueError: naming the rows and the greatest id.
    """
    beyond = np.flatnonzero(chat.ids >= vocab_size)
    if len(beyond):
        rows = np.unique(np.searchsorted(chat.offsets, beyond, side="right") - 1)
        raise ValueError(
            f"{table.locate(chat.rows[rows])}: the tokenizer gives token id {int(chat.ids.max())}, "
            f"and the model's vocabulary has {vocab_size} tokens (ids from 0). The tokenizer is "
            "another model's, or has added tokens: use the model's own, or enlarge the vocabulary "
            "first (hub.grow_words)"
        )


def _encode(
    conversation: Conversation,
    tokenizer: ChatTokenizer,
    template: ChatTemplate | None,
    stop: str,
    learn: Learn,
    end_of_turn: EndOfTurn,
) -> _Row:
    if conversation.text is not None:
        text, spans, stops = _plain(conversation, stop, learn, end_of_turn)
    elif template is None or not template.source:
        raise ValueError(
            "the row is a conversation, and the model has no chat template. Give it one "
            "(chat_template.jinja in its folder), or make the rows prompt and completion texts"
        )
    else:
        text, spans, stops = _spans(conversation, template, learn, end_of_turn)
    encoding = tokenizer.backend.encode(text, add_special_tokens=conversation.text is not None)
    offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
    ids = np.asarray(encoding.ids, np.int64)
    covered = _covered(offsets, spans)
    if learn == "all":
        covered[:] = True
    unlearned = [at for at in stops if not covered[_at(offsets, at)].all()]
    return _Row(ids, covered, bool(unlearned))


def _plain(
    conversation: Conversation, stop: str, learn: Learn, end_of_turn: EndOfTurn
) -> tuple[str, list[tuple[int, int]], list[int]]:
    """Return text with its stop token, what of it is learned, and where the stop token is."""
    text = conversation.text or ""
    if not conversation.prompt and learn != "all":
        raise ValueError(
            f"plain text has no {learn} part; learn all of it with learn='all' (of `sftjax chat`: "
            "--no-assistant-only-loss), or split it into the columns prompt and completion"
        )
    end = len(text)
    text = text if not stop or text.endswith(stop) else text + stop
    if text.endswith(stop):
        end = len(text) - len(stop)
    learned = end if end_of_turn == "none" else len(text)
    return text, [(len(conversation.prompt), learned)], [end] if stop else []


def _spans(
    conversation: Conversation, template: ChatTemplate, learn: Learn, end_of_turn: EndOfTurn
) -> tuple[str, list[tuple[int, int]], list[int]]:
    """Return a conversation's text, what of it is learned, and where stop tokens are."""
    messages, given = conversation.messages, conversation.given
    if learn != "assistant" and any("train" in message for message in messages):
        raise ValueError(
            f"messages say with `train` which of them are learned, and learn={learn!r} does not "
            "go by messages; use learn='assistant' (of `sftjax chat`: --assistant-only-loss "
            "without --completion-only-loss), or remove the fields"
        )
    if learn == "all":
        return template.text(messages, conversation.tools), [], []
    if learn == "completion" and not given:
        raise ValueError(
            "a row of messages has no completion, since no prompt stands beside them; write the "
            "columns prompt and completion, or learn the assistant's turns: learn='assistant' (of "
            "`sftjax chat`: leave out --completion-only-loss)"
        )
    begin, text = 0, template.text(messages, conversation.tools)
    if given:
        prompt = template.prompt(conversation)
        if not text.startswith(prompt):
            raise ValueError(
                "what the chat template writes for the prompt is no prefix of what it writes for "
                "prompt and completion, so that it is not known where the completion begins; mend "
                "the template, or write the row as messages and put {% generation %} ... "
                "{% endgeneration %} around the assistant's turns in the template"
            )
        begin = len(prompt)
    if learn == "completion" and end_of_turn == "turn":
        return text, [(begin, len(text))], []
    rendered = template.render(conversation)
    text = rendered.text
    chosen = any(message.get("train") for message in messages)
    spans, stops = [], []
    for turn in rendered.turns:
        message = messages[turn.message]
        if turn.message < given or not message.get("train", not chosen):
            continue
        end = end_of(text, turn, message["content"], end_of_turn)
        spans.append((max(turn.start, begin), end))
        if (at := _stop_at(text, turn.start, message["content"], template.eos_token)) is not None:
            stops.append(at)
    if learn == "completion" and spans:
        spans = [(begin, max(end for _, end in spans))]
    return text, spans, stops


def _stop_at(text: str, start: int, content: str, eos: str) -> int | None:
    """Return where the stop token after an answer is; None where the template writes none."""
    at = text.find(content.strip(), start)
    if not eos or at < 0:
        return None
    rest = text[at + len(content.strip()) :]
    blank = len(rest) - len(rest.lstrip())
    return at + len(content.strip()) + blank if rest.lstrip().startswith(eos) else None


def _covered(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return which tokens hold a character of a span."""
    covered = np.zeros(len(offsets), bool)
    for start, stop in spans:
        covered |= (offsets[:, 0] < stop) & (offsets[:, 1] > start)
    return covered


def _at(offsets: np.ndarray, place: int) -> np.ndarray:
    return (offsets[:, 0] <= place) & (offsets[:, 1] > place)


def _has_given(conversation: Conversation) -> bool:
    """Whether something in the row is not the answer."""
    if conversation.text is not None:
        return bool(conversation.prompt)
    return any(message["role"] != "assistant" for message in conversation.messages)


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices.__args__:
        raise ValueError(f"{name} is {value!r}; it is one of {', '.join(choices.__args__)}")


def _refuse(table: Table, audit: Audit, max_length: int) -> None:
    found = [
        (audit.nothing, "nothing to learn: no token of theirs counts as a target"),
        (audit.eaten, f"cut to {max_length} tokens, which takes {audit.lost} tokens of answers"),
        (audit.all_ones, "every token is learned, the question too: the mask is all ones"),
        (
            audit.no_stop,
            "an answer is learned and the stop token after it is not: the model would never stop",
        ),
    ]
    said = [f"{table.locate(rows)}: {what}" for rows, what in found if rows]
    if said:
        raise ValueError(
            "; ".join(said) + ". Mend or remove these rows (or raise max_length), or accept them "
            "with on_problem='count'"
        )
