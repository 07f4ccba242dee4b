"""Chat templates: a checkpoint's own Jinja source, rendered once, and which characters are whose.

The environment is that of transformers (a sandbox, `trim_blocks`, `lstrip_blocks`, `tojson`,
`raise_exception`, `strftime_now`, generation tags), so that a row reads the same on both sides.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sftjax.data.conversation import Conversation, Message

EndOfTurn = Literal["turn", "token", "none"]
"""How much after an answer is learned: all that the template writes for the turn (as TRL does), the
stop token without the white space after it, or nothing."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Around what generation tags enclose; Unicode sets these apart as never being text."""


class Turn(NamedTuple):
    """Where an assistant's turn lies in the rendered text."""

    start: int
    stop: int
    """After all that the template writes for the turn."""
    message: int
    """Its number in the conversation, from 0."""


class Rendered(NamedTuple):
    """A conversation as one text."""

    text: str
    turns: tuple[Turn, ...]
    """Of the assistant, in order."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template's source and the tokens that it may name.

    >>> template = ChatTemplate(
    ...     "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    ...     "{% if add_generation_prompt %}<assistant>{% endif %}", eos_token="</s>")
    >>> said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    >>> text, (turn,) = template.render(Conversation(tuple(said)))
    >>> text, text[turn.start:turn.stop]
    ('<user>Hi</s><assistant>Yes?</s>', 'Yes?</s>')
    """

    source: str
    bos_token: str = ""
    eos_token: str = ""

    @property
    def marks(self) -> bool:
        """Whether the source says itself what the assistant generates."""
        return "generation" in self.source and "endgeneration" in self.source

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return messages as one text.

        Raises:
          ValueError: if the template refuses them or fails, in its words.
        """
        marked = self._run(messages, tools, add_generation_prompt)
        return marked.replace(_OPEN, "").replace(_CLOSE, "")

    def prompt(self, conversation: Conversation) -> str:
        """Return the text of a conversation's given messages, up to where an answer begins."""
        given = conversation.messages[: conversation.given]
        return self.text(given, conversation.tools, add_generation_prompt=True)

    def render(self, conversation: Conversation) -> Rendered:
        """Return a conversation as one text, and where in it the assistant speaks.

        Where the source has generation tags, those say it. Otherwise it is proven of each turn: the
        messages before it, with the prompt for an answer, must be a prefix of those with it, and
        those a prefix of the whole.

        Raises:
          ValueError: if the template fails, or prefixes do not hold.
        """
        messages, tools = conversation.messages, conversation.tools
        speaking = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        marked = self._run(messages, tools, False)
        if self.marks:
            text, spans = _unmarked(marked)
            if len(spans) != len(speaking):
                raise ValueError(
                    f"the template's generation tags enclose {len(spans)} stretches and "
                    f"{len(speaking)} messages are the assistant's; put one pair of tags around "
                    "each of its turns"
                )
            turns = [Turn(*span, i) for span, i in zip(spans, speaking, strict=True)]
            return Rendered(text, tuple(turns))
        turns = []
        for i in speaking:
            before = self._prefix(messages[:i], tools, add_generation_prompt=True)
            upto = self._prefix(messages[: i + 1], tools) if i + 1 < len(messages) else marked
            if not (upto.startswith(before) and marked.startswith(upto)):
                raise ValueError(
                    f"where message {i + 1} (assistant) stands in the text cannot be proven: what "
                    "the template writes for the messages before it is no prefix of what it writes "
                    "for all (it rewrites earlier turns, or its answers do not begin with its "
                    "generation prompt). Put {% generation %} ... {% endgeneration %} around the "
                    "assistant's turns in the template"
                )
            turns.append(Turn(len(before), len(upto), i))
        return Rendered(marked, tuple(turns))

    def _prefix(self, messages: Sequence[Message], tools: Sequence[Any], **options: bool) -> str:
        try:
            return self.text(messages, tools, **options)
        except ValueError as error:
            raise ValueError(
                f"the template does not render the first {len(messages)} messages alone, by which "
                f"it is proven where the answer stands: {error}"
            ) from None

    def _run(self, messages: Sequence[Message], tools: Sequence[Any], prompt: bool) -> str:
        import jinja2

        for number, message in enumerate(messages, 1):
            if _OPEN in message["content"] or _CLOSE in message["content"]:
                raise ValueError(
                    f"message {number} holds U+FDD0 or U+FDD1, which Unicode keeps from being "
                    "characters; remove them from the text"
                )
        try:
            return _compiled(self.source).render(
                messages=[dict(message) for message in messages],
                tools=list(tools) or None,
                add_generation_prompt=prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
            )
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"the chat template fails on these messages "
                f"({', '.join(message['role'] for message in messages) or 'none'}): {error}"
            ) from None


def end_of(text: str, turn: Turn, content: str, policy: EndOfTurn) -> int:
    """Return where what is learned of a turn ends.

    Raises:
      ValueError: if the policy needs to know where the answer ends, and the template changes it.

    >>> [end_of("Yes.<e>\\n", Turn(0, 8, 1), "Yes.", how) for how in ("turn", "token", "none")]
    [8, 7, 4]
    """
    if policy == "turn":
        return turn.stop
    if policy == "token":
        return turn.start + len(text[turn.start : turn.stop].rstrip())
    at = text.find(content.strip(), turn.start, turn.stop)
    if at < 0:
        raise ValueError(
            f"the template rewrites message {turn.message + 1}, so that it is not known where the "
            'answer ends and the stop token begins; use end_of_turn="turn" or "token"'
        )
    return at + len(content.strip())


def _unmarked(marked: str) -> tuple[str, list[tuple[int, int]]]:
    text, spans, start = [], [], 0
    size = 0
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", marked):
        if piece == _OPEN:
            start = size
        elif piece == _CLOSE:
            if size > start:
                spans.append((start, size))
        else:
            text.append(piece)
            size += len(piece)
    return "".join(text), spans


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """Compile a template once a process."""
    import jinja2
    import jinja2.ext
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %} ... {% endgeneration %}`: what the assistant says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return CallBlock(self.call_method("_enclose"), [], [], body).set_lineno(line)

        def _enclose(self, caller: Any) -> str:
            return f"{_OPEN}{caller()}{_CLOSE}"

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    names = {"raise_exception": refuse, "strftime_now": strftime_now}
    try:
        return environment.from_string(source, names)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template is not valid Jinja: {error}") from None
