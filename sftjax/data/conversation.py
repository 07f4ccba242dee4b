"""Rows of any usual chat format (messages, ShareGPT, prompt/completion, Alpaca) as conversations.

Which format a row has is found from its own columns, and every row must have the first one's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sftjax.data.table import Table, bytes_to_str, is_missing

Format = Literal["messages", "conversations", "prompt/completion", "alpaca", "text"]
Message = Mapping[str, Any]
"""`role`, `content`, and what else a template may read (`tool_calls`, `name`); `train` (bool) says
whether an assistant's turn is learned."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_SPEAKERS = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(("function", "observation", "function_response"), "tool"),
}
"""What ShareGPT and its kin call who speaks -> the role."""


class Conversation(NamedTuple):
    """One row: messages, or plain text with what comes before what is learned."""

    messages: tuple[Message, ...] = ()
    given: int = 0
    """How many of the messages are a prompt, of which nothing is learned."""
    tools: tuple[Any, ...] = ()
    """Descriptions of what the assistant may call, for the template."""
    text: str | None = None
    """Plain text, to which no template is applied."""
    prompt: str = ""
    """What stands before the text and is not learned."""


def conversations(table: Table) -> list[Conversation]:
    """Read every row of a table as a conversation.

    The formats and their columns: `messages` (a list of `{"role", "content"}`), `conversations`
    (ShareGPT: `{"from", "value"}`), `prompt` and `completion` (both text, or both lists of
    messages), `instruction`, `output` and perhaps `input` (Alpaca), and `text`. A column `system`
    is a system message before those of ShareGPT and Alpaca rows, `tools` (a list, or JSON text) is
    handed to the template. Columns that are missing in a row (null, NaN) are as good as absent.

    Raises:
      ValueError: naming the rows of a format that is none of these or not the first row's, of a
        role that is unknown, or of a message without content.

    >>> table = Table({"instruction": ["Add."], "input": ["1 2"], "output": ["3"]}, "sums.jsonl")
    >>> [message["content"] for message in conversations(table)[0].messages]
    ['Add.\\n\\n1 2', '3']
    """
    rows = [
        {name: bytes_to_str(values[i]) for name, values in table.columns.items()}
        for i in range(len(table))
    ]
    rows = [
        {name: value for name, value in row.items() if name == "input" or not _absent(value)}
        for row in rows
    ]
    formats = [format_of(row) for row in rows]
    if unknown := [i for i, found in enumerate(formats) if found is None]:
        raise ValueError(
            f"{table.locate(unknown)}: no chat format there (columns with a value: "
            f"{', '.join(rows[unknown[0]]) or 'none'}). A row has `messages`, `conversations`, "
            "`prompt` and `completion`, `instruction` and `output`, or `text`"
        )
    if other := [i for i, found in enumerate(formats) if found != formats[0]]:
        raise ValueError(
            f"{table.locate(other)}: the format is {formats[other[0]]!r} and that of "
            f"{table.locate([0])} is {formats[0]!r}. All rows of a table have one format: convert "
            "or remove these"
        )
    found = []
    for i, row in enumerate(rows):
        try:
            found.append(FORMATS[formats[i] or ""](row))
        except ValueError as error:
            raise ValueError(f"{table.locate([i])}: {error}") from None
    return found


def format_of(row: Mapping[str, Any]) -> Format | None:
    """Return the format that a row's columns have, the most telling first; None if it has none.

    >>> format_of({"prompt": "a", "completion": "b", "id": 3}), format_of({"question": "a"})
    ('prompt/completion', None)
    """
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "conversations"
    if "prompt" in row and "completion" in row:
        return "prompt/completion"
    if "instruction" in row and "output" in row:
        return "alpaca"
    return "text" if "text" in row else None


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and is_missing(value))


def _messages(row: Mapping[str, Any]) -> Conversation:
    return Conversation(_checked(row["messages"], "messages"), tools=_tools(row))


def _sharegpt(row: Mapping[str, Any]) -> Conversation:
    turns = row["conversations"]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise ValueError(f"conversations holds a {type(turns).__name__}, not a list of turns")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise ValueError(f"turn {number} is a {type(turn).__name__}, not {{'from', 'value'}}")
        if "role" in turn:
            messages.append(turn)
            continue
        speaker = turn.get("from")
        if speaker not in _SPEAKERS:
            raise ValueError(
                f"turn {number} is from {speaker!r}; who speaks is one of {', '.join(_SPEAKERS)}"
            )
        more = {name: value for name, value in turn.items() if name not in ("from", "value")}
        messages.append({"role": _SPEAKERS[speaker], "content": turn.get("value"), **more})
    found = (*_system(row), *_checked(messages, "conversations"))
    return Conversation(found, tools=_tools(row))


def _prompt_completion(row: Mapping[str, Any]) -> Conversation:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion:
            raise ValueError("the completion is empty; there is nothing to learn")
        return Conversation(text=prompt + completion, prompt=prompt)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError(
            f"column 'prompt' holds a {type(prompt).__name__} and 'completion' a "
            f"{type(completion).__name__}; make both the same: both text, or both lists of messages"
        )
    given = _checked(prompt, "prompt")
    return Conversation((*given, *_checked(completion, "completion")), len(given), _tools(row))


def _alpaca(row: Mapping[str, Any]) -> Conversation:
    context = row.get("input")
    question = row["instruction"] if is_missing(context) else f"{row['instruction']}\n\n{context}"
    turns = (
        *_system(row),
        *_checked([{"role": "user", "content": question}], "column 'instruction'"),
        *_checked([{"role": "assistant", "content": row["output"]}], "column 'output'"),
    )
    return Conversation(turns, tools=_tools(row))


def _text(row: Mapping[str, Any]) -> Conversation:
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise ValueError("column 'text' holds no text; fill in or remove the row")
    return Conversation(text=row["text"])


FORMATS = {
    "messages": _messages,
    "conversations": _sharegpt,
    "prompt/completion": _prompt_completion,
    "alpaca": _alpaca,
    "text": _text,
}


def _system(row: Mapping[str, Any]) -> tuple[Message, ...]:
    said = row.get("system")
    if is_missing(said):
        return ()
    return _checked([{"role": "system", "content": said}], "column 'system'")


def _tools(row: Mapping[str, Any]) -> tuple[Any, ...]:
    tools = row.get("tools")
    if isinstance(tools, str):
        import json

        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise ValueError(f"column 'tools' is text and not JSON ({error})") from None
    if tools is None:
        return ()
    if not isinstance(tools, Sequence):
        raise ValueError(f"column 'tools' holds a {type(tools).__name__}, not a list")
    return tuple(tools)


def _checked(messages: Any, what: str) -> tuple[Message, ...]:
    """Return messages with text as content, after looking at each."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError(
            f"{what} holds a {type(messages).__name__}, not a list of messages: "
            'write [{"role": "user", "content": "..."}, ...] (as JSON lines or Parquet)'
        )
    if not messages:
        raise ValueError(f"{what} holds no messages; fill in or remove the row")
    found = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(
                f"message {number} of {what} has no role: it is {message!r}; write "
                '{"role": "user", "content": "..."}'
            )
        role = message["role"]
        if role not in ROLES:
            raise ValueError(
                f"message {number} of {what} has the role {role!r}; roles are {', '.join(ROLES)}"
            )
        # A reader of tables gives every message the fields of all; those that are null are absent.
        kept = {name: value for name, value in message.items() if value is not None}
        kept["content"] = _content(kept.get("content", ""), number, what)
        if not kept["content"].strip() and not kept.get("tool_calls"):
            raise ValueError(
                f"message {number} of {what} ({role}) has no content; fill it in, or remove the row"
            )
        if not isinstance(kept.get("train", True), bool | int):
            raise ValueError(
                f"message {number} of {what}: `train` is {kept['train']!r}, not a bool"
            )
        found.append(kept)
    return tuple(found)


def _content(content: Any, number: int, what: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise ValueError(
        f"message {number} of {what} has a content that is not text ({type(content).__name__}); "
        "pictures and sounds are not read here: make it text, or remove the row"
    )
