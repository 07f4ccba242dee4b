"""Talk with a model in the terminal, and answers to given conversations.

sftjax talk runs/chat/model --temperature 0.7 --top-p 0.9
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import numpy as np
import tyro

from sftjax.core import PyTree
from sftjax.data import Conversation
from sftjax.data.batches import NumpyBatch
from sftjax.evaluate.generate import Generate, compile_generate, compile_stream
from sftjax.evaluate.generate_settings import GenerationSettings, read_settings
from sftjax.recipes.chat_rows import LoadedDecoder, load_decoder

_MULTIPLE = 64
"""Prompts are padded on the left to a multiple of this: each length compiles once."""


@dataclasses.dataclass(frozen=True)
class Talk:
    """Talk with a decoder in the terminal; /new starts again, /bye ends it.

    What is not said about the choice of words is as the model's generation_config.json says, and
    the likeliest word where that says nothing.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A folder of a model, such as RUN/model, a name on the Hub (owner/model), or asset:NAME."""
    max_new_tokens: int = 256
    """Most tokens in an answer."""
    system: str = ""
    """What the assistant is told first."""
    do_sample: bool | None = None
    """Draw each word instead of taking the likeliest; so too if one of the next four is given."""
    temperature: float | None = None
    """Below 1 likely words become likelier, above 1 less so."""
    top_k: int | None = None
    """Draw among so many of the likeliest words; 0 among all."""
    top_p: float | None = None
    """Draw among the likeliest words that make up this share."""
    min_p: float | None = None
    """Draw among words at least so likely, as a share of the likeliest one's probability."""
    repetition_penalty: float | None = None
    """Above 1, words that were said become less likely."""
    seed: int = 0
    """Seed of the draws."""


def settings_of_talk(job: Talk, decoder: LoadedDecoder) -> GenerationSettings:
    """Return how answers are written: as the job says, else as the checkpoint's files do.

    An answer ends at any token that `generation_config.json`, `config.json` or the tokenizer calls
    the end.

    Raises:
      ValueError: if a number is out of its range, or nothing says how an answer ends.
    """
    drawn = {name: getattr(job, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    given = {name: value for name, value in drawn.items() if value is not None}
    if job.repetition_penalty is not None:
        given["repetition_penalty"] = job.repetition_penalty
    sample = job.do_sample
    if sample is None and any(value is not None for value in drawn.values()):
        sample = True
    if sample is not None:
        given["do_sample"] = sample
    return read_settings(
        decoder.report.folder, max_new_tokens=job.max_new_tokens, max_length=None, num_beams=1,
        eos_token_id=checked_stops(decoder), pad_token_id=decoder.tokenizer.pad_id, **given,
    )  # fmt: skip


def greedy(decoder: LoadedDecoder, max_new_tokens: int) -> Generate:
    """Return the likeliest answers of a model, compiled once for each length of prompts."""
    return compile_generate(
        decoder.model.decoder,
        GenerationSettings(
            max_new_tokens=max_new_tokens,
            eos_token_id=checked_stops(decoder),
            pad_token_id=decoder.tokenizer.pad_id,
        ),
    )


def checked_stops(decoder: LoadedDecoder) -> tuple[int, ...]:
    """Return the tokens that end an answer.

    Raises:
      ValueError: if there are none.
    """
    if not decoder.stops:
        raise ValueError(
            f"no file in {decoder.report.folder} says which token ends an answer; put eos_token_id "
            "into generation_config.json"
        )
    return decoder.stops


def answers(
    write: Generate, decoder: LoadedDecoder, params: PyTree, asked: Sequence[Conversation]
) -> list[str]:
    """Return answers to conversations that end with a question, all in one batch.

    Args:
      write: of the model, such as `greedy`.
      decoder: the model and how it is talked to.
      params: its weights, plain.
      asked: their messages are all given.
    """
    prompts = [prompt_ids(decoder, one._replace(given=len(one.messages))) for one in asked]
    tokens, lengths, _ = write(params, left_padded(prompts, decoder.tokenizer.pad_id), None)
    return [
        decoder.tokenizer.decode(_said(row[:length].tolist(), decoder.stops)).strip()
        for row, length in zip(np.asarray(tokens), np.asarray(lengths), strict=True)
    ]


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> NumpyBatch:
    """Return prompts side by side, ending at the same place; padding is masked, whatever its id.

    >>> batch = left_padded([[5, 6], [7]], 0)
    >>> batch["input_ids"].shape, batch["input_ids"][:, -2:].tolist()
    ((2, 64), [[5, 6], [0, 7]])
    """
    length = -(-max(map(len, prompts)) // _MULTIPLE) * _MULTIPLE
    ids = np.full((len(prompts), length), pad_id, np.int32)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


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
      job: with whom, and how words are chosen.
      ask: gives the next question; `EOFError` ends the talk.
      say: is given the answer, piece by piece.

    Raises:
      ValueError: if the model has no chat template, or a setting is out of its range.
    """
    decoder = load_decoder(job.folder)
    if not decoder.template.source:
        raise ValueError(
            f"{job.folder} has no chat template; give it one (chat_template.jinja in its folder)"
        )
    stream = compile_stream(decoder.model.decoder, settings_of_talk(job, decoder))
    first = [{"role": "system", "content": job.system}] if job.system else []
    messages, key = list(first), jax.random.key(job.seed)
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
        prompt = prompt_ids(decoder, Conversation(tuple(messages), len(messages)))
        key, own = jax.random.split(key)
        voice = _Voice(decoder, say)
        batch = left_padded([prompt], decoder.tokenizer.pad_id)
        with contextlib.suppress(KeyboardInterrupt):  # enough of this answer, not of the talk
            stream(decoder.params, batch, voice.hear, own)
        text = voice.end()
        if text:
            messages.append({"role": "assistant", "content": text})
        else:  # an empty turn would be refused by the next rendering
            messages.pop()
            say("(no answer)\n")


class _Voice:
    """Says text as its tokens come, whole characters at a time."""

    def __init__(self, decoder: LoadedDecoder, say: Callable[[str], object]):
        self._decoder, self._say = decoder, say
        self._tokens: list[int] = []
        self._shown = 0

    def hear(self, tokens: np.ndarray) -> None:
        self._tokens.append(int(tokens[0]))
        text = self._text()
        if not text.endswith("\ufffd"):  # half of a character: wait for the rest
            self._say(text[self._shown :])
            sys.stdout.flush()
            self._shown = len(text)

    def end(self) -> str:
        text = self._text()
        self._say(text[self._shown :] + "\n")
        return text.strip()

    def _text(self) -> str:
        return self._decoder.tokenizer.decode(_said(self._tokens, self._decoder.stops))


def _said(tokens: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Return tokens up to the one that ends an answer."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return [*tokens[:end]]
