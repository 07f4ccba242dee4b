"""From a source of documents and summaries to tokenised rows, for training and for evaluation."""

import dataclasses
from typing import Any, NamedTuple

import jax

from sftjax.core import PyTree
from sftjax.data import (
    Encoded,
    PackedPairs,
    PairBatches,
    Pairs,
    Policy,
    Table,
    columns_of,
    encode_pairs,
    hold_out,
    read,
    splits,
    texts,
)
from sftjax.hub import LoadReport, Tokenizer
from sftjax.models import Seq2SeqModel
from sftjax.recipes.named_models import load_as
from sftjax.recipes.streams import Stream

EVAL_ROWS = 32
"""Rows per device in a batch of a pass that trains nothing."""

CONFIDENTIAL = ("radiology-reports",)
"""Data sets whose licence lets nobody pass their text on: of them only numbers are written."""


@dataclasses.dataclass(frozen=True)
class SummaryColumns:
    """Which columns hold what, and what to do with what is too long."""

    document: str | None = None
    """Column of documents; else the usual names (document, article, dialogue, text, findings,
    description)."""
    summary: str | None = None
    """Column of summaries; else the usual names (summary, highlights, impression, synopsis)."""
    group: str | None = None
    """Column whose rows stay on one side when rows are held out to evaluate on."""
    template: str = "t5"
    """What the encoder reads: none, t5, summary, title, xsum, highlights, or a text of your own
    with {document} in it; a text without is a prefix."""
    max_source_length: int = 256
    """Most tokens of a source, template and special tokens included."""
    max_target_length: int = 64
    """Most tokens of a summary, special tokens included; also of those that are written."""
    on_long_source: Policy = "error"
    """What to do with longer sources: error refuses them with their row numbers; cut-end, cut-start
    and cut-middle say where to cut."""
    on_long_target: Policy = "error"
    """The same for longer summaries."""


class SummaryRows(NamedTuple):
    """One split, ready to be batched."""

    table: Table
    pairs: Pairs
    documents: list[str]
    summaries: list[str]

    @property
    def confidential(self) -> bool:
        """Whether the text must not be written anywhere."""
        return self.table.name.startswith(CONFIDENTIAL)

    def first(self, most: int) -> "SummaryRows":
        """Return the first rows; 0 is all of them."""
        if not most or most >= len(self.pairs):
            return self
        source, target = (_first(side, most) for side in (self.pairs.source, self.pairs.target))
        return SummaryRows(
            self.table.take(range(most)),
            Pairs(source, target, self.pairs.start_id),
            self.documents[:most],
            self.summaries[:most],
        )


def _first(side: Encoded, most: int) -> Encoded:
    end = side.offsets[most]
    return dataclasses.replace(
        side, ids=side.ids[:end], offsets=side.offsets[: most + 1], truncated=0, lost=0
    )


def read_summaries(
    data: str, eval_data: str | None, columns: SummaryColumns, *, fraction: float, seed: int
) -> tuple[Table, Table, Table]:
    """Return the tables to train on, to evaluate on while training, and to report on.

    To evaluate on is, the first that applies: `eval_data`; the source's own `validation` or `test`
    split; a share held out of the training rows. To report on is the source's `test` split, where
    it has one beside `validation`; else the rows that were evaluated on.
    """
    found = splits(data)
    train = read(data, "train" if "train" in found else None)
    if eval_data is not None:
        kinds = splits(eval_data)
        table = read(eval_data, next((s for s in ("validation", "test") if s in kinds), None))
        return train, table, table
    own = [read(data, split) for split in ("validation", "test") if split in found]
    if own:
        return train, own[0], own[-1]
    train, held = hold_out(train, fraction, seed, group=columns.group)
    return train, held, held


def encode_summaries(
    table: Table, columns: SummaryColumns, model: Seq2SeqModel, tokenizer: Tokenizer
) -> SummaryRows:
    """Tokenise the rows of a table.

    Raises:
      ValueError: naming the rows that cannot be used, or lengths that the model does not have.
    """
    if model.max_length is not None:
        for name in ("max_source_length", "max_target_length"):
            if getattr(columns, name) > model.max_length:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(columns, name)} is more than the "
                    f"{model.max_length} tokens that this {model.family} can hold; lower it"
                )
    document, summary = columns_of(table, columns.document, columns.summary)
    pairs = encode_pairs(
        table,
        tokenizer,
        document,
        summary,
        start_id=model.decoder_start_token_id,
        max_source_length=columns.max_source_length,
        max_target_length=columns.max_target_length,
        on_long_source=columns.on_long_source,
        on_long_target=columns.on_long_target,
        template=columns.template,
    )
    return SummaryRows(table, pairs, texts(table, document), texts(table, summary))


class LoadedWriter(NamedTuple):
    """A pretrained encoder-decoder."""

    model: Seq2SeqModel
    params: PyTree
    report: LoadReport


def load_writer(name: str, **how: Any) -> LoadedWriter:
    """Load an encoder-decoder; `hub.load` says how.

    Args:
      name: a folder, a repository on the Hub, or an asset (`asset:NAME`, fetched if need be).
      **how: arguments of `hub.load`.

    Raises:
      ValueError: if the checkpoint is of another kind of model.
    """
    takes = "writes with an encoder-decoder; choose a checkpoint of one (t5, bart, pegasus, marian)"
    return LoadedWriter(*load_as(Seq2SeqModel, takes, name, **how))


def pairs_in_order(pairs: Pairs, per_device: int = EVAL_ROWS) -> Stream:
    """Return the rows unshuffled, so many on each device, or fewer where there are fewer."""
    devices = jax.local_device_count()
    # Not below 32: a few samples then share what was compiled for more rows.
    size = min(max(len(pairs), EVAL_ROWS), per_device * devices)
    batches = PairBatches(pairs, devices * -(-size // devices), shuffle=False)
    return Stream(batches.steps_per_epoch, batches.at)


def pairs_shuffled(pairs: Pairs, size: int, seed: int) -> Stream:
    """Return training batches of `size` rows, in an order of its own in every pass."""
    batches = PairBatches(pairs, size, seed=seed)
    return Stream(batches.steps_per_epoch, batches.at)


def pairs_packed(pairs: Pairs, size: int, seed: int) -> Stream:
    """Return training batches of `size` packed rows, each as long as one source may be."""
    longest = pairs.source.max_length, pairs.target.max_length
    batches = PackedPairs(pairs, size, *longest, seed=seed)
    return Stream(batches.steps_per_epoch, batches.at)
