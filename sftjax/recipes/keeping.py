"""What a run kept of its pretraining: a model before and after, on reference text."""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from sftjax.adapters import dequantize_tree
from sftjax.core import PyTree
from sftjax.data import Table, read
from sftjax.evaluate import Retention, predict, retention
from sftjax.hub import Tokenizer
from sftjax.models import ImageModel, TextEncoder, split
from sftjax.recipes.deciding import pretrained
from sftjax.recipes.run_folder import named
from sftjax.recipes.streams import Batched, Stream, in_order
from sftjax.recipes.text_rows import Columns, Rows, encode_rows
from sftjax.recipes.trunks import embedding
from sftjax.recipes.worn import PLAIN, Worn

SOFTMAX = ("single_label_classification",)
"""Problem types whose outputs are one distribution a row, and so have a divergence."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Text like that of pretraining, to measure on what fine-tuning keeps."""

    reference_data: str | None = None
    """A file or dataset with the same text column; else the evaluation rows."""
    reference_group: str | None = None
    """Its column that says which rows belong together (the document): retrieval is measured."""
    reference_rows: int = 1000
    """At most so many of its rows; 0 is all of them."""


class Embedder:
    """Embeddings of a model's trunk (of text mean-pooled), compiled once a batch shape."""

    def __init__(self, model: TextEncoder | ImageModel, cut: int | None = None, worn: Worn = PLAIN):
        """Take the model whose trunk embeds; its head is left aside.

        With a `cut`, batches hold what the lowest blocks give (see `above_prefix`); with adapters,
        it is called with params that wear them.
        """
        trunk = embedding(model)
        apply = worn.beside(trunk.apply if cut is None else split(trunk, cut).upper)
        self._apply = jax.jit(lambda params, batch: apply(params, batch, None))

    def __call__(self, params: PyTree, rows: Batched, stream: Stream | None = None) -> np.ndarray:
        """Return (N, D) embeddings of the rows; the stream is one pass over them."""
        batches = in_order(rows) if stream is None else stream
        return predict(self._apply, params, batches, rows.size)


def reference_rows(
    job: Reference, evaluation: Rows, columns: Columns, tokenizer: Tokenizer, cache: pathlib.Path
) -> Rows:
    """Read and tokenise the reference text; without any, take the evaluation rows.

    Raises:
      ValueError: if a group is named without reference data, or a column is missing.
    """
    if job.reference_data is None:
        if job.reference_group is not None:
            raise ValueError(
                f"--reference-group {job.reference_group} names a column of the reference data; "
                "say where that is with --reference-data"
            )
        if len(evaluation.encoded) <= (job.reference_rows or len(evaluation.encoded)):
            return evaluation
        table = evaluation.table
    else:
        table = read(job.reference_data)
        columns = dataclasses.replace(columns, pair=None)
        if columns.task == "token":  # plain text will do; words and their labels need not be there
            columns = dataclasses.replace(columns, task="single-label")
        if job.reference_group is not None:
            table[job.reference_group]  # refused now, not after the training
    if columns.task == "token":
        return evaluation
    return encode_rows(
        first(table, job.reference_rows, job.reference_group), columns, tokenizer, None, cache=cache
    )


def first(table: Table, most: int, group: str | None = None) -> Table:
    """Return the first rows of a table, and those after them of the last one's group.

    >>> articles = Table({"text": ["a", "b", "c"], "document": [1, 1, 2]}, "three")
    >>> first(articles, 1, "document")["text"], first(articles, 1)["text"]
    (['a', 'b'], ['a'])
    """
    if not most or most >= len(table):
        return table
    end = most
    if group is not None:
        groups = table[group]
        while end < len(table) and groups[end] == groups[end - 1]:
            end += 1
    return table.take(range(end))


class Keeper:
    """Reference rows and what the pretrained model makes of them: measures what runs keep."""

    def __init__(
        self,
        model: TextEncoder | ImageModel,
        params: PyTree,
        new: Collection[str],
        rows: Batched,
        *,
        group: str | None = None,
        stream: Stream | None = None,
        cut: int | None = None,
    ):
        """Run the pretrained model over the rows, once for all the runs that start from it.

        Args:
          model: of the runs.
          params: what they started from.
          new: paths of leaves without a pretrained value.
          rows: of reference text.
          group: their column that says which belong together.
          stream: one pass over the rows, above the `cut` where there is one.
          cut: how many of the lowest blocks were computed beforehand.
        """
        self._anchor = pretrained(dequantize_tree(params), new)
        self._model, self._cut, self._rows, self._group = model, cut, rows, group
        self._stream = in_order(rows) if stream is None else stream
        self.embedder = Embedder(model, cut)
        self._run = None
        head = model.head
        # The outputs of a fresh head drift from nothing that pretraining taught.
        if not new and head.kind in ("sequence", "image") and head.problem_type in SOFTMAX:
            apply = model.apply if cut is None else split(model, cut).upper
            run = PLAIN.beside(apply)
            self._run = jax.jit(lambda params, batch: run(params, batch, None))
        self._before = self._seen(params)

    def kept(self, params: PyTree, *, worn: Worn = PLAIN, resamples: int = 1000) -> Retention:
        """Return what a run kept: `evaluate.retention` of its weights, with adapters merged.

        Adapters that cannot be merged leave the weights as they are; features are then of the model
        that wears them, and the drift of its outputs is not measured.
        """
        weights = worn.weights(params)
        if worn.mergeable:
            features, outputs = self._seen(weights)
        else:
            embedder = Embedder(self._model, self._cut, worn)
            features, outputs = embedder(params, self._rows, self._stream), None
        return retention(
            self._anchor,
            weights,
            embeddings=(self._before[0], features),
            logits=None if outputs is None else (self._before[1], outputs),
            groups=None if self._group is None else self._rows.table[self._group],
            reference=named(self._rows.table.name),
            resamples=resamples,
        )

    def _seen(self, params: PyTree) -> tuple[np.ndarray, Any]:
        features = self.embedder(params, self._rows, self._stream)
        if self._run is None:
            return features, None
        return features, predict(self._run, params, self._stream, self._rows.size)
