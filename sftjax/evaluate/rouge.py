"""ROUGE of summaries row by row, by the `rouge-score` package.

The package is Google's own replication of the Perl script, and what published numbers are made
with; here it is wrapped and checked, never rewritten. `pip install "sftjax[summarize]"` brings it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sftjax.evaluate.bootstrap import Interval, Rows, bootstrap
from sftjax.evaluate.checks import same_rows
from sftjax.evaluate.metric import row_mean

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""Unigrams, bigrams, the longest common subsequence, and its union over sentences (lines)."""


class Overlap(NamedTuple):
    """One kind of ROUGE, row by row."""

    precision: np.ndarray
    """(N,) float64: the share of the prediction that the reference has."""
    recall: np.ndarray
    """(N,) float64: the share of the reference that the prediction has."""
    f1: np.ndarray
    """(N,) float64: their harmonic mean, what is usually reported."""


def rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    kinds: Sequence[str] = ROUGE,
    *,
    stemmer: bool = True,
) -> Mapping[str, Overlap]:
    r"""Return ROUGE-1, -2, -L and -Lsum of every row.

    $$ P = \frac{|\text{overlap}|}{|\text{prediction}|}, \qquad
       R = \frac{|\text{overlap}|}{|\text{reference}|}, \qquad F_1 = \frac{2PR}{P + R} $$

    Words are runs of a-z and 0-9 in lower case: the package is made for English. ROUGE-Lsum reads
    each line of a text as a sentence; where there are no line ends it equals ROUGE-L.

    Args:
      predictions: N texts; an empty one scores 0.
      references: N texts.
      kinds: any of `rouge1` to `rouge9`, `rougeL`, `rougeLsum`.
      stemmer: count words of one Porter stem as the same (longer ones than three letters), as
        published numbers do.

    Returns:
      `{kind: Overlap}`.

    Raises:
      ModuleNotFoundError: if the package is not installed.
      ValueError: if the numbers of rows differ, or a kind is unknown.

    References:
      Lin, *ROUGE: A Package for Automatic Evaluation of Summaries*, 2004

    >>> scores = rouge(["the cat sat"], ["the cat sat down"])
    >>> float(scores["rougeL"].precision[0]), float(scores["rougeL"].recall[0])
    (1.0, 0.75)
    """
    same_rows(predictions, references)
    texts_only(predictions, references)
    scorer = _package().RougeScorer(list(kinds), use_stemmer=stemmer)
    rows = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    return {
        kind: Overlap(
            *(
                np.array([getattr(row[kind], field) for row in rows], np.float64)
                for field in ("precision", "recall", "fmeasure")
            )
        )
        for kind in kinds
    }


def mean_interval(
    rows: np.ndarray, *, groups: Rows | None = None, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the mean of one score a row with its 95 % bootstrap interval.

    >>> mean_interval(np.array([0.5, 0.5]), resamples=10)[:3]
    (0.5, 0.5, 0.5)
    """
    rows = np.asarray(rows, np.float64)
    return bootstrap(row_mean, rows, rows, groups=groups, resamples=resamples, seed=seed)


def texts_only(predictions: Sequence[str], references: Sequence[str]) -> None:
    """Refuse a row that is no text.

    Raises:
      ValueError: naming the first such row.
    """
    for what, texts in (("predictions", predictions), ("references", references)):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{what}: row {row} is {text!r}, a {type(text).__name__}, no text")


def _package() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'ROUGE is measured by the package rouge-score: pip install "sftjax[summarize]"'
        ) from error
    return rouge_scorer
