"""Token classification: accuracy of tokens, and F1 of whole entities in BIO tags.

Entities are read as conlleval and seqeval's default mode read them: `B-` opens one; `I-` goes on
if the token before is inside an entity of the same type and opens one otherwise; `E-` closes and
`S-` is a whole one (BIOES tags). An entity counts as found only with the same type, start and end.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftjax.evaluate.checks import Undefined, same_rows
from sftjax.evaluate.classification import PerClass, scores_of_counts

IGNORED = -100
"""The label of positions that do not count (special tokens, later pieces of a word, padding)."""


class Entity(NamedTuple):
    """A run of tokens of one type."""

    type: str
    start: int
    """First token."""
    end: int
    """One past the last token."""


class EntityScores(NamedTuple):
    """Entity-level scores over all sentences (micro average) and of every type."""

    precision: float
    recall: float
    f1: float
    types: tuple[str, ...]
    per_type: PerClass
    """(len(types),) arrays."""


def token_accuracy(
    predictions: Sequence[ArrayLike] | np.ndarray, labels: Sequence[ArrayLike] | np.ndarray
) -> float:
    """Return the share of right tokens among those whose label is not -100.

    Args:
      predictions: (N, T) class ids, or N sequences of ids of any length.
      labels: the same, with -100 where a position does not count.

    Raises:
      ValueError: if lengths differ (naming the row), or no position counts.

    >>> token_accuracy([[1, 2, 0], [0]], [[1, 0, -100], [0]])
    0.6666666666666666
    """
    return token_accuracy_of_sums(token_counts(predictions, labels).sum(axis=0))


def token_counts(
    predictions: Sequence[ArrayLike] | np.ndarray, labels: Sequence[ArrayLike] | np.ndarray
) -> NDArray[np.int64]:
    """Count the right tokens of each row, and those that count, (N, 2).

    >>> token_counts([[1, 2, 0], [0]], [[1, 0, -100], [0]]).tolist()
    [[1, 2], [1, 1]]
    """
    counts = []
    for predicted, true in _rows(predictions, labels):
        keep = true != IGNORED
        counts.append((int((predicted == true)[keep].sum()), int(keep.sum())))
    return np.array(counts, np.int64).reshape(-1, 2)


def token_accuracy_of_sums(sums: NDArray[Any]) -> float:
    """Return the accuracy of the sums (2,) of what `token_counts` gives.

    >>> float(token_accuracy_of_sums(np.array([2, 3])))
    0.6666666666666666
    """
    right, counted = sums
    if counted == 0:
        raise Undefined(f"labels: every position is {IGNORED}, so no token can be measured")
    return float(right / counted)


def tags_of_ids(
    predictions: Sequence[ArrayLike] | np.ndarray,
    labels: Sequence[ArrayLike] | np.ndarray,
    names: Sequence[str],
) -> tuple[list[list[str]], list[list[str]]]:
    """Name the class ids and leave out the positions labelled -100, in both alike.

    Returns:
      `(predicted tags, true tags)`, one list a sentence.

    >>> tags_of_ids([[1, 2, 0]], [[1, 0, -100]], ["O", "B-LOC", "I-LOC"])
    ([['B-LOC', 'I-LOC']], [['B-LOC', 'O']])
    """
    tags: tuple[list[list[str]], list[list[str]]] = ([], [])
    for row, pair in enumerate(_rows(predictions, labels)):
        keep = pair[1] != IGNORED
        for into, ids in zip(tags, pair, strict=True):
            kept = ids[keep]
            if ((kept < 0) | (kept >= len(names))).any():
                raise ValueError(f"row {row} has a class id outside 0 to {len(names) - 1}: {kept}")
            into.append([str(names[i]) for i in kept])
    return tags


def entities(tags: Sequence[str]) -> list[Entity]:
    """Read the entities of one sentence.

    Raises:
      ValueError: if a tag is neither `O` nor one of `B- I- E- S-` with a type.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC"])
    [Entity(type='PER', start=0, end=2), Entity(type='LOC', start=3, end=4)]
    """
    found: list[Entity] = []
    open_type, start = "", 0
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if tag != "O" and not (prefix in ("B", "I", "E", "S") and kind):
            raise ValueError(
                f"tag {place} is {tag!r}; expected O or one of B- I- E- S- with a type, as in B-PER"
            )
        goes_on = prefix in ("I", "E") and kind == open_type
        if open_type and not goes_on:
            found.append(Entity(open_type, start, place))
        if tag == "O":
            open_type = ""
        elif not goes_on:
            open_type, start = kind, place
        if prefix in ("E", "S"):
            found.append(Entity(kind, start, place + 1))
            open_type = ""
    if open_type:
        found.append(Entity(open_type, start, len(tags)))
    return found


def entity_counts(
    predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Count entities by sentence, so that they can be resampled without reading them again.

    Returns:
      `(types, counts)`: the entity types in order, and (N, types, 3) counts of right, predicted
      and true entities. `bootstrap(OfSums(entity_f1_of_counts), counts, counts)` is then an
      interval over sentences.

    >>> types, counts = entity_counts([["B-PER", "O"]], [["B-PER", "B-LOC"]])
    >>> types, counts.tolist()
    (('LOC', 'PER'), [[[0, 0, 1], [1, 1, 1]]])
    """
    same_rows(predictions, labels)
    pairs = []
    for row, (predicted, true) in enumerate(zip(predictions, labels, strict=True)):
        if len(predicted) != len(true):
            raise ValueError(f"row {row} has {len(predicted)} predicted tags for {len(true)} tags")
        pairs.append((set(entities(predicted)), set(entities(true))))
    types = tuple(sorted({entity.type for pair in pairs for side in pair for entity in side}))
    place = {kind: column for column, kind in enumerate(types)}
    counts = np.zeros((len(pairs), len(types), 3), np.int64)
    for row, (predicted, true) in enumerate(pairs):
        for column, side in enumerate((predicted & true, predicted, true)):
            for entity in side:
                counts[row, place[entity.type], column] += 1
    return types, counts


def entity_f1_of_counts(counts: NDArray[np.int64]) -> float:
    """Return the micro F1 of the counts that `entity_counts` gives; 0 without any entity.

    >>> entity_f1_of_counts(np.array([[[1, 1, 2]]])) == 2 / 3
    True
    """
    right, predicted, true = counts.reshape(-1, 3).sum(axis=0)
    return float(scores_of_counts(right, predicted, true).f1)


def entity_scores(
    predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]
) -> EntityScores:
    """Return precision, recall and F1 of whole entities.

    Args:
      predictions: one list of tags a sentence.
      labels: the same.

    >>> scores = entity_scores([["B-PER", "I-PER", "O"]], [["B-PER", "I-PER", "B-LOC"]])
    >>> scores.precision, scores.recall
    (1.0, 0.5)
    """
    types, counts = entity_counts(predictions, labels)
    by_type = counts.sum(axis=0)
    per_type = scores_of_counts(*by_type.T)
    micro = scores_of_counts(*by_type.sum(axis=0))
    return EntityScores(
        float(micro.precision), float(micro.recall), float(micro.f1), types, per_type
    )


def entity_f1(predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> float:
    """Return the micro F1 of whole entities; see `entity_scores`.

    >>> entity_f1([["B-PER", "O"]], [["B-PER", "O"]])
    1.0
    """
    return entity_scores(predictions, labels).f1


def _rows(
    predictions: Sequence[ArrayLike] | np.ndarray, labels: Sequence[ArrayLike] | np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    same_rows(predictions, labels)
    rows = []
    for row, pair in enumerate(zip(predictions, labels, strict=True)):
        predicted, true = (np.asarray(ids) for ids in pair)
        if predicted.shape != true.shape or predicted.ndim != 1:
            raise ValueError(
                f"row {row} has predictions of shape {predicted.shape} for labels of shape "
                f"{true.shape}; pass one class id a token"
            )
        rows.append((predicted, true))
    return rows
