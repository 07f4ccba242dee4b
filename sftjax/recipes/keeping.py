"""What a run kept of its pretraining: embeddings of reference text before and after."""

import dataclasses
import pathlib

import jax
import numpy as np

from sftjax.core import PyTree
from sftjax.data import Table, read
from sftjax.evaluate import Retention, predict, retention
from sftjax.hub import Tokenizer
from sftjax.models import Model
from sftjax.recipes.text_parts import model_with
from sftjax.recipes.text_rows import Columns, Rows, encode_rows
from sftjax.train import spread

EVAL_ROWS = 64
"""Rows per device in a batch."""


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
    """Mean-pooled embeddings of a model's trunk, compiled once a batch shape."""

    def __init__(self, model: Model):
        """Take the model whose trunk embeds; its head is left aside."""
        trunk = model_with(model, "mean")
        self._parts = tuple(trunk.shapes())
        self._apply = jax.jit(lambda params, batch: trunk.apply(params, batch))

    def __call__(self, params: PyTree, rows: Rows) -> np.ndarray:
        """Return (N, D) embeddings of the rows."""
        batches = Rows(rows.table, rows.encoded, None).batches(EVAL_ROWS * jax.device_count())
        at = spread(batches.at)
        steps = (at(step) for step in range(batches.steps_per_epoch))
        trunk = {part: params[part] for part in self._parts}
        return predict(self._apply, trunk, steps, len(rows.encoded))


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
    return encode_rows(first(table, job), columns, tokenizer, None, cache=cache)


def first(table: Table, job: Reference) -> Table:
    """Return the first rows of a table, and those after them of the last one's group."""
    most = job.reference_rows
    if not most or most >= len(table):
        return table
    end = most
    if job.reference_group is not None:
        groups = table[job.reference_group]
        while end < len(table) and groups[end] == groups[end - 1]:
            end += 1
    return table.take(range(end))


def kept(
    job: Reference, embedder: Embedder, rows: Rows, before: PyTree, anchor: PyTree, after: PyTree
) -> Retention:
    """Measure what a run kept.

    Args:
      job: names the groups.
      embedder: of the model.
      rows: of reference text.
      before: the params the run started from.
      anchor: the same with holes where a leaf has no pretrained value.
      after: the tuned params.
    """
    return retention(
        anchor,
        after,
        embeddings=(embedder(before, rows), embedder(after, rows)),
        groups=None if job.reference_group is None else rows.table[job.reference_group],
        reference=rows.table.name,
    )
