"""What a chat run needs before it trains: conversations, a decoder, and text to remember."""

import dataclasses
import os
import pathlib
from typing import Any, Literal, NamedTuple

from sftjax.core import PyTree
from sftjax.data import (
    Chat,
    ChatTemplate,
    Table,
    check_vocabulary,
    encode_chat,
    fetch,
    hold_out,
    read,
    splits,
)
from sftjax.hub import LoadReport, Tokenizer, load_chat_files, load_tokenizer
from sftjax.models import CausalModel
from sftjax.recipes.named_models import load_as

CONSTRUCTION = "faq-en-sharegpt.jsonl"
"""The file of the asset construction-faq that is read where it is named as data."""

SENTENCES_A_TEXT = 12
"""Sentences of one article that make a row of the text to remember."""


@dataclasses.dataclass(frozen=True)
class ChatRows:
    """Which tokens are learned, and what to do with rows that do not fit."""

    max_length: int = 1024
    """Most tokens in a conversation; with --packing also the tokens in a row of a batch."""
    packing: bool = True
    """Put several conversations in a row, each seeing only itself."""
    assistant_only_loss: bool = True
    """Learn the assistant's turns; of prompt and completion only those of the completion."""
    completion_only_loss: bool = False
    """Learn all that follows the prompt, whoever says it; overrides
    --assistant-only-loss."""
    end_of_turn: Literal["turn", "token", "none"] = "turn"
    """What is learned after an answer: all that the template writes for the turn (as TRL does), the
    stop token alone, or nothing."""
    on_long: Literal["refuse", "truncate", "drop"] = "refuse"
    """What to do with longer conversations: refuse them, cut their end (truncate) or leave them out
    (drop); what is cut or left out is counted."""
    on_problem: Literal["refuse", "count"] = "refuse"
    """Refuse rows with nothing to learn, a cut answer, an unlearned stop token, or a mask of all
    ones; or count them, and leave those with nothing to learn out."""

    @property
    def learn(self) -> Literal["assistant", "completion", "all"]:
        """What `encode_chat` calls it."""
        if self.completion_only_loss:
            return "completion"
        return "assistant" if self.assistant_only_loss else "all"


class LoadedDecoder(NamedTuple):
    """A pretrained decoder and how it is talked to."""

    model: CausalModel
    params: PyTree
    report: LoadReport
    tokenizer: Tokenizer
    template: ChatTemplate
    stops: tuple[int, ...]
    """Tokens that end an answer."""


def load_decoder(name: str | os.PathLike[str], **how: Any) -> LoadedDecoder:
    """Load a decoder with its tokenizer and chat template; `hub.load` says how.

    A tokenizer without a padding token pads with its end-of-text token: every batch says by mask
    and segments what is padding, and weighs it 0, so the stop token itself is learned all the same.

    Args:
      name: a folder, a repository on the Hub, or an asset.
      **how: arguments of `hub.load`.

    Raises:
      ValueError: if the checkpoint is of another kind of model.
    """
    takes = (
        "talks to a decoder (llama, mistral, qwen2, gemma2 and their kin); choose a checkpoint of "
        "one"
    )
    model, params, report = load_as(CausalModel, takes, name, head="causal-lm", **how)
    tokenizer = load_tokenizer(report.folder, pad_as="eos")
    files = load_chat_files(report.folder)
    eos = tokenizer.backend.token_to_id(files.eos_token) if files.eos_token else None
    stops = (*dict.fromkeys((*files.stop_ids, *(() if eos is None else (eos,)))),)
    template = ChatTemplate(files.template, files.bos_token, files.eos_token)
    return LoadedDecoder(model, params, report, tokenizer, template, stops)


def read_chat(data: str, eval_data: str | None, fraction: float, seed: int) -> tuple[Table, Table]:
    """Return the conversations to train on and those to evaluate on.

    The second are, the first that applies: `eval_data`, the source's own validation or test split,
    or a share held out of the first.
    """
    named = data.removeprefix("asset:") == "construction-faq"
    source = str(fetch("construction-faq") / CONSTRUCTION) if named else data
    found = splits(source)
    train = read(source, "train" if "train" in found else None)
    if eval_data is not None:
        kinds = splits(eval_data)
        split = next((name for name in ("validation", "test") if name in kinds), None)
        return train, read(eval_data, split)
    for split in ("validation", "test"):
        if split in found:
            return train, read(source, split)
    kept, held = hold_out(train, fraction, seed)
    return kept, held


def encode_rows(table: Table, decoder: LoadedDecoder, rows: ChatRows) -> Chat:
    """Render and tokenise conversations, and see that the model knows every token."""
    chat = encode_chat(
        table,
        decoder.tokenizer,
        decoder.template,
        max_length=rows.max_length,
        learn=rows.learn,
        end_of_turn=rows.end_of_turn,
        on_long=rows.on_long,
        on_problem=rows.on_problem,
    )
    check_vocabulary(chat, table, decoder.model.architecture.vocab_size)
    return chat


def general_text(source: str | None, count: int) -> Table:
    """Return text to measure on what is remembered: a file's `text`, or newspaper editorials.

    Args:
      source: a file or dataset; None is the asset rated-sentences, of whose articles each row holds
        the first sentences.
      count: at most so many rows.
    """
    if source is not None:
        table = read(source).only("text")
        return table.take(range(min(count, len(table))))
    from sftjax.data import retrieval_set

    sentences = retrieval_set(fetch("rated-sentences"))
    articles: dict[str, list[str]] = {}
    for document, text in zip(sentences["document"], sentences["text"], strict=True):
        articles.setdefault(_text(document), []).append(_text(text))
    long = [" ".join(said[:SENTENCES_A_TEXT]) for said in articles.values() if len(said) >= 6]
    return Table({"text": long[:count]}, "newspaper editorials (rated-sentences)")


def encode_text(table: Table, decoder: LoadedDecoder, max_length: int) -> Chat:
    """Tokenise plain text, every token of which counts; longer text is cut."""
    return encode_chat(
        table, decoder.tokenizer, None, max_length=max_length, learn="all", end_of_turn="none",
        on_long="truncate", on_problem="count",
    )  # fmt: skip


def folder_name(name: str | os.PathLike[str]) -> str:
    """Return the last part of a model's or a data set's name."""
    return pathlib.Path(name).name


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
