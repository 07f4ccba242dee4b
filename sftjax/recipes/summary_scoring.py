"""Evaluate a summarizer on fixed rows: its loss, what it writes, and samples to read."""

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from sftjax.core import Loss, PyTree
from sftjax.data import Pairs
from sftjax.evaluate import Summaries, lead_words, leads, measure_summaries, rouge
from sftjax.models import Seq2SeqModel
from sftjax.objectives import counted_tokens, sequence_cross_entropy
from sftjax.recipes.summary_rows import SummaryRows, pairs_in_order
from sftjax.recipes.writing import Writer


class Sample(NamedTuple):
    """What a model made of one document."""

    document: str
    reference: str
    """A person's summary; "" where there is none."""
    summary: str


def losses_of(model: Seq2SeqModel, rows: SummaryRows) -> Callable[[PyTree], float]:
    """Return `params -> mean cross-entropy` over the tokens of the rows, compiled once."""
    stream = pairs_in_order(rows.pairs)

    @jax.jit
    def total(params: PyTree, batch: dict[str, jax.Array]) -> Loss:
        logits = model.apply(params, batch)
        return sequence_cross_entropy(logits, batch["labels"], counted_tokens(batch))

    def loss(params: PyTree) -> float:
        found = Loss(0.0, 0.0)
        for batch in stream:
            found = found + total(params, {k: v for k, v in batch.items() if k != "index"})
        return float(found.mean)

    return loss


class SummaryScorer:
    """Numbers and samples while training: the loss of all rows, ROUGE of the first ones."""

    def __init__(
        self,
        model: Seq2SeqModel,
        writer: Writer,
        rows: SummaryRows,
        written: int,
        samples: Pairs | None,
        shown: Sequence[tuple[str, str]],
        tell: Callable[[str], None],
    ):
        """Compile nothing yet.

        Args:
          model: of the run.
          writer: its generation.
          rows: to evaluate on.
          written: so many of them are summarized at each evaluation.
          samples: encoded documents that are shown with what is written of them; None shows none.
          shown: the `(document, reference)` of each.
          tell: is given the samples.
        """
        self._loss = losses_of(model, rows)
        self._writer, self._rows, self._tell = writer, rows.first(written), tell
        self._samples, self._shown = samples, shown
        self.history: list[list[Sample]] = []
        """The samples of each evaluation of this process."""

    def scores(self, params: PyTree) -> dict[str, float]:
        """Return `eval_loss` and `eval_rouge1`, `2`, `L`, `Lsum`; tells the samples."""
        written = self._write(params, self._rows)
        found = rouge(written, self._rows.summaries)
        self.samples(params)
        return {
            "eval_loss": self._loss(params),
            **{f"eval_{kind}": float(overlap.f1.mean()) for kind, overlap in found.items()},
        }

    def samples(self, params: PyTree) -> list[Sample]:
        """Write of the documents that are shown, and tell it."""
        if self._samples is None:
            return []
        stream = pairs_in_order(self._samples)
        written = self._writer(params, stream, len(self._samples)).texts
        found = [Sample(*of, text) for of, text in zip(self._shown, written, strict=True)]
        self.history.append(found)
        for sample in found:
            self._tell(f"  {_short(sample.document)!r} -> {sample.summary!r}")
        return found

    def measured(self, params: PyTree, rows: SummaryRows) -> tuple[list[str], Summaries]:
        """Return what a model writes of other rows, and everything that is measured of it."""
        written = self._write(params, rows)
        return written, measure_summaries(written, rows.summaries, rows.documents)

    def _write(self, params: PyTree, rows: SummaryRows) -> list[str]:
        return self._writer(params, pairs_in_order(rows.pairs), len(rows.pairs)).texts


def lead_row(rows: SummaryRows, references: Sequence[str]) -> tuple[str, Summaries]:
    """Return the name and the numbers of the lead baseline: as many words as people usually wrote.

    Args:
      rows: to measure on.
      references: of the training rows, which say how many words.
    """
    k = lead_words(references)
    found = leads(rows.documents, k)
    return f"lead-{k} words", measure_summaries(found, rows.summaries, rows.documents)


def commonest_row(rows: SummaryRows, references: Sequence[str]) -> tuple[str, Summaries]:
    """Return the name and the numbers of one summary for every document: the commonest.

    Where people write one sentence again and again (nothing was found), a model must be better.

    Args:
      rows: to measure on.
      references: of the training rows, among which it is sought.
    """
    (text, count), *_ = collections.Counter(references).most_common(1)
    found = measure_summaries([text] * len(rows.summaries), rows.summaries, rows.documents)
    return f"the commonest ({count / len(references):.0%} of training)", found


def _short(text: str, most: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
