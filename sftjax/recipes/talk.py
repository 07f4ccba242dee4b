"""Talk with a model in the terminal, and answers to given conversations: greedy, token by token."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.core import PyTree
from sftjax.data import Conversation
from sftjax.models import CausalModel
from sftjax.recipes.chat_rows import LoadedDecoder, load_decoder

_MULTIPLE = 64
"""Prompts are padded on the left to a multiple of this: each length compiles once."""


@dataclasses.dataclass(frozen=True)
class Talk:
    """Talk with a decoder in the terminal; /new starts again, /bye ends it."""

    folder: str
    """A model folder in the Hub's layout, such as RUN/model, or the name of one."""
    max_new_tokens: int = 256
    """Most tokens in an answer."""
    system: str = ""
    """What the assistant is told first."""


Speaker = Callable[[PyTree, Sequence[Sequence[int]], Sequence[int], int], Iterator[np.ndarray]]
"""`(params, prompts, stops, new_tokens) -> the next token of each prompt, again and again`."""


def speaker(model: CausalModel) -> Speaker:
    """Return the greedy speech of a model, compiled once for each shape.

    It yields the most likely next token of each prompt, (B,), -1 where one has ended; the tokens
    that end an answer are not yielded.
    """
    decoder = model.decoder
    start = jax.jit(decoder.start, static_argnums=2)
    step = jax.jit(decoder.step, donate_argnums=2)

    def speak(
        params: PyTree, prompts: Sequence[Sequence[int]], stops: Sequence[int], new_tokens: int
    ) -> Iterator[np.ndarray]:
        length = -(-max(map(len, prompts)) // _MULTIPLE) * _MULTIPLE
        ids = np.zeros((len(prompts), length), np.int32)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = prompt
            mask[row, length - len(prompt) :] = 1
        logits, cache = start(params, {"input_ids": ids, "attention_mask": mask}, new_tokens)
        ended = np.zeros(len(prompts), bool)
        for number in range(new_tokens):
            tokens = np.asarray(jnp.argmax(logits, -1), np.int32)
            ended |= np.isin(tokens, list(stops))
            if ended.all():
                return
            yield np.where(ended, -1, tokens)
            if number + 1 < new_tokens:
                logits, cache = step(params, tokens, cache)

    return speak


def answers(
    speak: Speaker,
    decoder: LoadedDecoder,
    params: PyTree,
    asked: Sequence[Conversation],
    new_tokens: int,
) -> list[str]:
    """Return greedy answers to conversations that end with a question, all in one batch.

    Args:
      speak: of the model.
      decoder: the model and how it is talked to.
      params: its weights, plain.
      asked: their messages are all given.
      new_tokens: most tokens in an answer.
    """
    prompts = [prompt_ids(decoder, one._replace(given=len(one.messages))) for one in asked]
    found = list(speak(params, prompts, decoder.stops, new_tokens))
    columns = np.stack(found, 1) if found else np.zeros((len(asked), 0), np.int32)
    return [decoder.tokenizer.decode(row[row >= 0].tolist()).strip() for row in columns]


def prompt_ids(decoder: LoadedDecoder, conversation: Conversation) -> list[int]:
    """Return the tokens of what is given, up to where the answer begins."""
    if conversation.text is not None:
        return decoder.tokenizer.backend.encode(conversation.prompt or conversation.text).ids
    text = decoder.template.prompt(conversation)
    return decoder.tokenizer.backend.encode(text, add_special_tokens=False).ids


def talk(
    job: Talk,
    ask: Callable[[str], str] = input,
    say: Callable[[str], object] = sys.stdout.write,
) -> None:
    """Read questions and write answers until there are no more, or /bye.

    Args:
      job: with whom.
      ask: gives the next question; `EOFError` ends the talk.
      say: is given the answer, piece by piece.

    Raises:
      ValueError: if the model has no chat template.
    """
    decoder = load_decoder(job.folder)
    if not decoder.template.source:
        raise ValueError(
            f"{job.folder} has no chat template; give it one (chat_template.jinja in its folder)"
        )
    first = [{"role": "system", "content": job.system}] if job.system else []
    messages, speak = list(first), speaker(decoder.model)
    while True:
        try:
            question = ask("> ").strip()
        except (EOFError, KeyboardInterrupt):
            say("\n")
            return
        if question == "/bye":
            return
        if question == "/new" or not question:
            messages = list(first) if question else messages
            continue
        messages.append({"role": "user", "content": question})
        asked = Conversation(tuple(messages), len(messages))
        said, shown = [], 0
        prompt, text = prompt_ids(decoder, asked), ""
        tokens = speak(decoder.params, [prompt], decoder.stops, job.max_new_tokens)
        for token in tokens:
            said.append(int(token[0]))
            text = decoder.tokenizer.decode(said)
            if not text.endswith("\ufffd"):  # half of a character: wait for the rest
                say(text[shown:])
                sys.stdout.flush()
                shown = len(text)
        say(text[shown:] + "\n")
        if text.strip():
            messages.append({"role": "assistant", "content": text.strip()})
        else:  # an empty turn would be refused by the next rendering
            messages.pop()
            say("(no answer)\n")
