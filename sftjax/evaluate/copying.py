"""How a summary stands to its document: how much shorter it is, and how much of it was copied."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from sftjax.evaluate.checks import same_rows

_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case.

    >>> words("A well-known man's hat (grey).")
    ['a', 'well-known', "man's", 'hat', 'grey']
    """
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Return the sentences of a text: cut after `.`, `!` or `?` before white space, and at lines.

    A rule and no model: an abbreviation ends a sentence, too.

    >>> sentences("It runs. It is small!  Is it?")
    ['It runs.', 'It is small!', 'Is it?']
    """
    return [part.strip() for part in _SENTENCE.split(text) if part and part.strip()]


def lead(document: str, k: int, unit: Literal["words", "sentences"] = "sentences") -> str:
    """Return the beginning of a document, the baseline that a summary has to beat.

    Args:
      document: the text.
      k: how much of it.
      unit: `"words"` are what white space parts, as they stand in the text.

    Raises:
      ValueError: if k is not positive, or the unit is unknown.

    >>> lead("It runs. It is small.", 1), lead("It runs. It is small.", 3, "words")
    ('It runs.', 'It runs. It')
    """
    if k < 1:
        raise ValueError(f"lead-{k} takes nothing; k is 1 or more")
    if unit not in ("words", "sentences"):
        raise ValueError(f'unit is "words" or "sentences", not {unit!r}')
    parts = document.split() if unit == "words" else sentences(document)
    return " ".join(parts[:k])


class Copied(NamedTuple):
    """How much of each summary stands in its document, word for word."""

    coverage: np.ndarray
    """(N,) share of the summary's words that are part of a copied piece."""
    density: np.ndarray
    """(N,) mean length of the piece that a word is part of, in words; 0 for new words."""
    novel: np.ndarray
    """(N,) share of the summary's bigrams that the document does not have; NaN without any."""
    compression: np.ndarray
    """(N,) words of the document for each word of the summary; NaN for an empty summary."""


def copied(summaries: Sequence[str], documents: Sequence[str], *, n: int = 2) -> Copied:
    r"""Measure copying, as the statistics of Newsroom do.

    The copied pieces $f \in F$ are found greedily: at each place of the summary the longest match
    anywhere in the document.

    $$ \text{coverage} = \frac{1}{|S|}\sum_f |f|, \qquad
       \text{density} = \frac{1}{|S|}\sum_f |f|^2, \qquad
       \text{compression} = |D| / |S| $$

    Args:
      summaries: N texts; an empty one has coverage and density 0.
      documents: N texts.
      n: of the n-grams whose novelty is measured.

    References:
      Grusky et al., *Newsroom: A Dataset of 1.3 Million Summaries*, 2018, arXiv:1804.11283

    >>> found = copied(["the cat ran"], ["a dog saw the cat sit"])
    >>> [round(float(value[0]), 3) for value in found]
    [0.667, 1.333, 0.5, 2.0]
    """
    same_rows(summaries, documents)
    rows = [_row(words(s), words(d), n) for s, d in zip(summaries, documents, strict=True)]
    return Copied(*np.array(rows, np.float64).reshape(-1, 4).T)


class Lengths(NamedTuple):
    """Words of texts."""

    mean: float
    median: float
    least: int
    most: int
    empty: int
    """How many texts have none."""


def lengths(texts: Sequence[str]) -> Lengths:
    """Return how many words texts have.

    >>> lengths(["one", "one two", ""])
    Lengths(mean=1.0, median=1.0, least=0, most=2, empty=1)
    """
    if not texts:
        raise ValueError("there are no texts to measure")
    counts = np.array([len(words(text)) for text in texts])
    return Lengths(
        float(counts.mean()),
        float(np.median(counts)),
        int(counts.min()),
        int(counts.max()),
        int(np.count_nonzero(counts == 0)),
    )


def _row(summary: list[str], document: list[str], n: int) -> tuple[float, float, float, float]:
    if not summary:
        return 0.0, 0.0, float("nan"), float("nan")
    pieces = _pieces(summary, document)
    grams = [tuple(summary[i : i + n]) for i in range(len(summary) - n + 1)]
    there = {tuple(document[i : i + n]) for i in range(len(document) - n + 1)}
    novel = sum(gram not in there for gram in grams) / len(grams) if grams else float("nan")
    size = len(summary)
    return (
        sum(pieces) / size,
        sum(piece**2 for piece in pieces) / size,
        novel,
        len(document) / size,
    )


def _pieces(summary: list[str], document: list[str]) -> list[int]:
    """Return the lengths of the copied pieces, found greedily from the summary's beginning."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(document):
        places.setdefault(word, []).append(place)
    found, start = [], 0
    while start < len(summary):
        best = 0
        for place in places.get(summary[start], ()):
            length = 1
            while (
                start + length < len(summary)
                and place + length < len(document)
                and summary[start + length] == document[place + length]
            ):
                length += 1
            best = max(best, length)
        if best:
            found.append(best)
        start += max(best, 1)
    return found
