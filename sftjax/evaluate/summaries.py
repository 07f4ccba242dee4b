"""Everything that is measured of a set of summaries, and the lead of the documents beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sftjax.evaluate.bootstrap import Interval, Rows
from sftjax.evaluate.copying import Copied, Lengths, copied, lead, lengths
from sftjax.evaluate.rouge import ROUGE, Overlap, mean_interval, rouge
from sftjax.evaluate.translation import bleu, chrf

SUMMARY_COLUMNS = (
    "system", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "BLEU", "chrF", "words",
    "compression", "copied", "new bigrams",
)  # fmt: skip
"""Of `Summaries.row`."""


class Summaries(NamedTuple):
    """What one system's summaries measured."""

    rouge: Mapping[str, Interval]
    """Mean F1 of `rouge1`, `rouge2`, `rougeL`, `rougeLsum`, from 0 to 1."""
    bleu: Interval
    """From 0 to 100."""
    chrf: Interval
    """From 0 to 100."""
    lengths: Lengths
    copied: Copied
    rows: Mapping[str, Overlap]
    """ROUGE of each row, to compare systems by `paired_bootstrap`."""

    def row(self, system: str) -> dict[str, Any]:
        """Return a row for a table with the columns `SUMMARY_COLUMNS`."""
        return {
            "system": system,
            **{name: self.rouge[kind] for name, kind in zip(_NAMES, ROUGE, strict=True)},
            "BLEU": self.bleu,
            "chrF": self.chrf,
            "words": self.lengths.mean,
            "compression": _mean(self.copied.compression),
            "copied": _mean(self.copied.coverage),
            "new bigrams": _mean(self.copied.novel),
        }

    def facts(self) -> dict[str, Any]:
        """Return the numbers without the rows, for JSON."""
        means = {name: _mean(values) for name, values in self.copied._asdict().items()}
        return {
            **self.rouge, "bleu": self.bleu, "chrf": self.chrf,
            "lengths": self.lengths._asdict(), "copied": means,
        }  # fmt: skip


_NAMES = ("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum")


def measure_summaries(
    predictions: Sequence[str],
    references: Sequence[str],
    documents: Sequence[str],
    *,
    groups: Rows | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Summaries:
    """Measure the summaries of one system.

    Args:
      predictions: N summaries.
      references: N summaries by people.
      documents: N texts that both summarize.
      groups: rows that intervals draw together (see `bootstrap`).
      resamples: of the intervals.
      seed: of their draws.

    Raises:
      ModuleNotFoundError: if the extra `summarize` is not installed.
      ValueError: if the numbers of rows differ.

    >>> found = measure_summaries(["a cat sat"], ["a cat"], ["a cat sat here"], resamples=10)
    >>> found.rouge["rouge1"].value, found.lengths.mean
    (0.8, 3.0)
    """
    rows = rouge(predictions, references)
    options: dict[str, Any] = {"groups": groups, "resamples": resamples, "seed": seed}
    return Summaries(
        {kind: mean_interval(found.f1, **options) for kind, found in rows.items()},
        bleu(predictions, references, **options),
        chrf(predictions, references, **options),
        lengths(predictions),
        copied(predictions, documents),
        rows,
    )


def lead_words(references: Sequence[str]) -> int:
    """Return how many words a lead should have: the median of the references', at least 1.

    >>> lead_words(["a cat", "a dog ran", "it"])
    2
    """
    return max(1, round(lengths(references).median))


def leads(documents: Sequence[str], k: int) -> list[str]:
    """Return the first `k` words of each document.

    >>> leads(["a cat sat"], 2)
    ['a cat']
    """
    return [lead(document, k, "words") for document in documents]


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
