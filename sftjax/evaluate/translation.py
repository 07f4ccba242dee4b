"""BLEU and chrF of a whole set of texts, as sacrebleu gives them, with bootstrap intervals.

Both are ratios of counts over all rows, not means of rows. What is counted is counted once a row,
so that a resample adds up numbers instead of reading texts again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftjax.evaluate.bootstrap import Interval, Rows, bootstrap
from sftjax.evaluate.checks import same_rows
from sftjax.evaluate.metric import OfSums
from sftjax.evaluate.rouge import texts_only

_CHAR_ORDER = 6
_BETA_SQUARED = 4.0
_EPSILON = 1e-16  # as in sacrebleu, whose numbers these are


def bleu(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    groups: Rows | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    r"""Return corpus BLEU, 0 to 100, with its 95 % bootstrap interval.

    $$ \mathrm{BLEU} = 100\, \min\left(1, e^{1 - r/c}\right)
       \left(\prod_{n=1}^4 p_n\right)^{1/4} $$

    with $p_n$ the clipped precision of n-grams, $c$ and $r$ the words of all predictions and of all
    references. Tokens as `13a`, exponential smoothing: sacrebleu's defaults.

    Args:
      predictions: N texts.
      references: N texts, one for each.
      groups: rows that are drawn together (see `bootstrap`).
      resamples: of the bootstrap.
      seed: of its draws.

    Raises:
      ModuleNotFoundError: if sacrebleu is not installed.

    References:
      Papineni et al., *BLEU*, 2002; Post, *A Call for Clarity in Reporting BLEU Scores*, 2018,
      arXiv:1804.08771

    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on the mat"]).value, 6)
    100.0
    """
    metrics = _package()
    # `force`: no warning about texts that look tokenised; they are what they are.
    measure = metrics.BLEU(force=True)

    def counts_of(prediction: str, reference: str) -> list[int]:
        found = measure.corpus_score([prediction], [[reference]])
        return [*found.counts, *found.totals, found.sys_len, found.ref_len]

    def score(sums: NDArray[Any]) -> float:
        total = [int(count) for count in sums]
        computed = metrics.BLEU.compute_bleu(
            correct=total[:4], total=total[4:8], sys_len=total[8], ref_len=total[9]
        )
        return computed.score

    return _interval(predictions, references, counts_of, score, groups, resamples, seed)


def chrf(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    groups: Rows | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    r"""Return corpus chrF, 0 to 100, with its 95 % bootstrap interval.

    $$ \mathrm{chrF} = 100\, \frac{(1 + \beta^2)\, P R}{\beta^2 P + R}, \qquad \beta = 2 $$

    with $P$ and $R$ the precision and recall of character n-grams, averaged over the orders 1 to 6
    that occur; white space does not count. The n-grams are sacrebleu's, its formula is repeated.

    Args:
      predictions: N texts.
      references: N texts, one for each.
      groups: rows that are drawn together (see `bootstrap`).
      resamples: of the bootstrap.
      seed: of its draws.

    Raises:
      ModuleNotFoundError: if sacrebleu is not installed.

    References:
      Popović, *chrF: character n-gram F-score for automatic MT evaluation*, 2015

    >>> round(chrf(["a cat"], ["a cat"]).value, 6)
    100.0
    """
    _package()
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    def counts_of(prediction: str, reference: str) -> list[int]:
        ours, theirs = (
            extract_all_char_ngrams(text, _CHAR_ORDER, include_whitespace=False)
            for text in (prediction, reference)
        )
        counts: list[int] = []
        for found, wanted in zip(ours, theirs, strict=True):
            # As in sacrebleu: an order that the reference lacks counts no n-grams of a prediction.
            said = sum(found.values()) if wanted else 0
            counts += [said, sum(wanted.values()), sum((found & wanted).values())]
        return counts

    def score(sums: NDArray[Any]) -> float:
        said, wanted, shared = sums.reshape(_CHAR_ORDER, 3).T
        there = (said > 0) & (wanted > 0)
        if not there.any():
            return 0.0
        precision = float(np.mean(shared[there] / said[there]))
        recall = float(np.mean(shared[there] / wanted[there]))
        if precision + recall == 0:
            return 100 * _EPSILON
        return 100 * (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)

    return _interval(predictions, references, counts_of, score, groups, resamples, seed)


def _interval(
    predictions: Sequence[str],
    references: Sequence[str],
    counts_of: Callable[[str, str], list[int]],
    score: Callable[[NDArray[Any]], float],
    groups: Rows | None,
    resamples: int,
    seed: int,
) -> Interval:
    same_rows(predictions, references)
    texts_only(predictions, references)
    pairs = zip(predictions, references, strict=True)
    counts = np.array([counts_of(prediction, reference) for prediction, reference in pairs])
    return bootstrap(OfSums(score), counts, counts, groups=groups, resamples=resamples, seed=seed)


def _package() -> Any:
    try:
        from sacrebleu import metrics
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'BLEU and chrF are measured by sacrebleu: pip install "sftjax[summarize]"'
        ) from error
    return metrics
