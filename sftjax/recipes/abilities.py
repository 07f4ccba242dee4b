"""What a run kept of an encoder-decoder's earlier abilities: prompts that it could answer before.

The pretrained model answers prompts (translations, titles, whatever the user names). Afterwards the
tuned one is asked how likely it finds each token of those answers, what its states are along them,
and what it answers itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from sftjax.core import Batch, PyTree
from sftjax.data import Pairs, Table, read, texts
from sftjax.data.encoded import pack
from sftjax.evaluate import Retention, retention, rouge
from sftjax.hub import Tokenizer
from sftjax.models import Seq2SeqModel
from sftjax.recipes.seq2seq_parts import row_features
from sftjax.recipes.summary_rows import pairs_in_order
from sftjax.recipes.writing import Writer, Written

SAID = "answers as before (ROUGE-L with its own earlier answer)"
"""The name of the task that a model's own answers make."""

_SENTENCES = (
    "The house is wonderful.", "My brother reads a book.", "Where is the station?",
    "We will meet again tomorrow.", "The water is very cold.", "She sold her old car.",
    "It has been raining since Monday.", "The children play in the garden.",
)  # fmt: skip
_STORIES = (
    "The town opened a new library on Monday. It holds forty thousand books and a cinema.",
    "A storm cut power to six villages last night. Repairs will take two days.",
    "Researchers found that bees remember faces for a week when they are given sugar.",
    "The old bridge over the river was closed after cracks were found in a pillar.",
)

PROMPTS: tuple[str, ...] = (
    *(f"Translate English to German: {text}" for text in _SENTENCES),
    *(f"Translate English to French: {text}" for text in _SENTENCES),
    *(f"Write a title for the text.\n\n{text}\n\nTitle:" for text in _STORIES),
)
"""What is asked where the user names nothing: abilities that T5 and Flan-T5 were trained in."""


def read_prompts(source: str | None, most: int = 64) -> Table:
    """Return a table with the column `prompt`.

    Args:
      source: a file with that column; None takes `PROMPTS`.
      most: so many of the first rows.

    Raises:
      ValueError: if there is no such column, or a row is empty.
    """
    if source is None:
        return Table({"prompt": list(PROMPTS)}, name="built-in prompts")
    table = read(source).only("prompt")
    texts(table, "prompt")
    return table.take(range(min(most, len(table))))


class Answers(NamedTuple):
    """What a model says to the prompts."""

    written: Written
    logits: np.ndarray
    """(tokens of all earlier answers, V) float32."""
    features: np.ndarray
    """(N, D): what each prompt and its earlier answer are to the model."""


class Abilities:
    """Prompts, and what the pretrained model made of them, once it was asked (`ask`)."""

    before: Answers
    """What it said."""

    def __init__(
        self,
        model: Seq2SeqModel,
        tokenizer: Tokenizer,
        writer: Writer,
        prompts: Table,
        *,
        longest: int = 256,
    ):
        """Read the prompts.

        Args:
          model: of the runs.
          tokenizer: the model's.
          writer: its generation.
          prompts: with a column `prompt`.
          longest: most tokens of a prompt.

        Raises:
          ValueError: naming the rows of prompts that are longer.
        """
        self.prompts = [str(text) for text in texts(prompts, "prompt")]
        self._name, self._writer = prompts.name, writer
        ids = [list(found[0]) for found in tokenizer.encode(self.prompts)]
        long = [i for i, row in enumerate(ids) if len(row) > longest]
        if long:
            raise ValueError(
                f"{prompts.locate(long)}: up to {max(map(len, ids))} tokens, and a prompt has at "
                f"most {longest}; shorten these prompts, or leave them out"
            )
        self._source = pack(ids, pad_id=tokenizer.pad_id, max_length=longest)
        self._start, self._pad = model.decoder_start_token_id, tokenizer.pad_id

        def look(params: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
            hidden = model.hidden(params, batch)
            return model.apply(params, batch), row_features(hidden, batch)

        self._look = jax.jit(look)

    def ask(self, params: PyTree) -> None:
        """Let the pretrained model, its plain weights, answer."""
        start, rows = self._start, len(self.prompts)
        asked = Pairs(self._source, pack([[start]] * rows, pad_id=start, max_length=1), start)
        said = self._write(params, asked)
        answers = pack(said.ids, pad_id=self._pad, max_length=max(map(len, said.ids)))
        self._params, self._pairs = params, Pairs(self._source, answers, start)
        self.before = Answers(said, *self._seen(params))

    def kept(self, params: PyTree, *, resamples: int = 1000) -> tuple[Retention, list[str]]:
        """Return `evaluate.retention` of tuned weights, and their answers to the prompts.

        Args:
          params: plain ones.
          resamples: of the interval.
        """
        said = self._write(params, self._pairs)
        logits, features = self._seen(params)
        same = agreement(said.texts, self.before.written.texts)
        found = retention(
            self._params,
            params,
            embeddings=(self.before.features, features),
            logits=(self.before.logits, logits),
            tasks={SAID: (np.ones(len(same)), same)},
            reference=self._name,
            resamples=resamples,
        )
        return found, said.texts

    def _write(self, params: PyTree, pairs: Pairs) -> Written:
        return self._writer(params, pairs_in_order(pairs), len(pairs))

    def _seen(self, params: PyTree) -> tuple[np.ndarray, np.ndarray]:
        count = len(self._pairs)
        logits: list[np.ndarray] = [np.zeros(0)] * count
        features: list[np.ndarray] = [np.zeros(0)] * count
        for batch in pairs_in_order(self._pairs):
            inputs = {name: x for name, x in batch.items() if name != "index"}
            z, f = (np.asarray(x) for x in self._look(params, inputs))
            for place in np.flatnonzero(np.asarray(batch["valid"]) > 0):
                row = int(batch["index"][place])
                logits[row] = z[place][np.asarray(batch["loss_weights"][place]) > 0]
                features[row] = f[place]
        return np.concatenate(logits), np.stack(features)


def agreement(answers: Sequence[str], earlier: Sequence[str]) -> np.ndarray:
    """Return how far answers are the earlier ones: 1 where they are equal, else ROUGE-L.

    >>> agreement(["das Haus", "ein Hund"], ["das Haus", "ein alter Hund"]).tolist()
    [1.0, 0.8]
    """
    found = rouge(answers, earlier, ["rougeL"], stemmer=False)["rougeL"].f1
    equal = np.array([a == b for a, b in zip(answers, earlier, strict=True)])
    return np.where(equal, 1.0, found)
