"""A model writes: generation over all rows of a table, back in their order and as text."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sftjax.core import Batch, PyTree
from sftjax.evaluate.generate import compile_generate
from sftjax.evaluate.generate_settings import GenerationSettings
from sftjax.hub import Tokenizer
from sftjax.models import Seq2SeqModel

_READ = ("input_ids", "attention_mask")


class Written(NamedTuple):
    """What a model wrote."""

    ids: list[list[int]]
    """Tokens of each row, the one that ends it included."""
    texts: list[str]


class Writer:
    """A model's generation, compiled once a batch shape."""

    def __init__(self, model: Seq2SeqModel, tokenizer: Tokenizer, settings: GenerationSettings):
        """Take a model; its params come with each call."""
        self._run = compile_generate(model.decoder, settings)
        self._tokenizer = tokenizer
        self._ends = settings.eos_token_id

    def __call__(self, params: PyTree, batches: Iterable[Batch], num_rows: int) -> Written:
        """Write for every row.

        Args:
          params: plain params of the model.
          batches: one pass, with `index` and `valid`.
          num_rows: in all.
        """
        rows: list[list[int] | None] = [None] * num_rows
        for batch in batches:
            inputs = {name: batch[name] for name in _READ}
            found = self._run(params, inputs, None)
            tokens, lengths = np.asarray(found.tokens), np.asarray(found.lengths)
            for place in np.flatnonzero(np.asarray(batch["valid"]) > 0):
                rows[int(batch["index"][place])] = tokens[place, : lengths[place]].tolist()
        ids = [row for row in rows if row is not None]
        if len(ids) < num_rows:
            raise ValueError(f"{num_rows - len(ids)} of {num_rows} rows are in no batch")
        return Written(ids, [self._tokenizer.decode(self._plain(row)).strip() for row in ids])

    def _plain(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token not in self._ends]
