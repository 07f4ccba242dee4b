"""Tokens and entities: read as seqeval's default mode reads them."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftjax.evaluate import (
    OfSums,
    bootstrap,
    entities,
    entity_counts,
    entity_f1,
    entity_f1_of_counts,
    entity_scores,
    tags_of_ids,
    token_accuracy,
)

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
sentence = st.lists(st.sampled_from(NAMES), min_size=1, max_size=10)


def by_definition(tags):
    """BIO by the book: a token opens an entity if it is B-, or I- after another type or O."""
    types = [tag[2:] for tag in tags]
    opens = [
        tag[0] == "B" or (tag[0] == "I" and (k == 0 or types[k - 1] != types[k]))
        for k, tag in enumerate(tags)
    ]
    found = []
    for start in np.flatnonzero(opens):
        end = start + 1
        while end < len(tags) and types[end] and not opens[end]:
            end += 1
        found.append((types[start], start, end))
    return found


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw waits for imports
@given(sentence)
def test_bio_entities_are_their_definition(tags):
    assert [tuple(entity) for entity in entities(tags)] == by_definition(tags)


@given(st.lists(st.tuples(sentence, sentence), min_size=1, max_size=5))
def test_counts_by_sentence_add_up_to_the_scores(pairs):
    pairs = [(p[: len(t)] + ["O"] * (len(t) - len(p)), t) for p, t in pairs]
    predicted, true = [p for p, _ in pairs], [t for _, t in pairs]
    right = sum(len(set(by_definition(p)) & set(by_definition(t))) for p, t in pairs)
    found = sum(len(by_definition(p)) for p in predicted)
    wanted = sum(len(by_definition(t)) for t in true)
    scores = entity_scores(predicted, true)
    assert scores.precision == pytest.approx(right / max(found, 1))
    assert scores.recall == pytest.approx(right / max(wanted, 1))
    assert scores.f1 == pytest.approx(2 * right / max(found + wanted, 1))
    assert entity_f1_of_counts(entity_counts(predicted, true)[1]) == scores.f1
    assert scores.per_type.support.sum() == wanted


@pytest.mark.parametrize(
    ("tags", "expected"),
    [  # what seqeval 1.2.2's get_entities returns, its last token included
        ("B-X I-X I-Y", "X 0 1, Y 2 2"),
        ("I-X B-X", "X 0 0, X 1 1"),
        ("O I-X I-X O", "X 1 2"),
        ("B-X E-X E-X", "X 0 1, X 2 2"),
        ("S-X I-X", "X 0 0, X 1 1"),
        ("B-X S-X", "X 0 0, X 1 1"),
        ("E-X I-X B-Y E-Y O", "X 0 0, X 1 1, Y 2 3"),
        ("B-A-B I-A-B", "A-B 0 1"),
    ],
)
def test_entities_as_seqeval_reads_them(tags, expected):
    found = ", ".join(f"{e.type} {e.start} {e.end - 1}" for e in entities(tags.split()))
    assert found == expected


def test_scores_as_seqeval_gives_them():
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    scores = entity_scores(predicted, true)
    assert scores[:3] == (0.5, 0.5, 0.5)
    assert scores.types == ("MISC", "PER")
    assert scores.per_type.f1.tolist() == [0.0, 1.0]


def test_no_entity_anywhere_scores_nothing():
    assert entity_f1([["O"]], [["O"]]) == 0.0


def test_ignored_positions_count_nowhere():
    predictions, labels = np.array([[1, 2, 4], [0, 0, 0]]), np.array([[1, 2, -100], [3, -100, 0]])
    assert token_accuracy(predictions, labels) == 3 / 4
    predicted, true = tags_of_ids(predictions, labels, NAMES)
    assert predicted == [["B-PER", "I-PER"], ["O", "O"]]
    assert true == [["B-PER", "I-PER"], ["B-LOC", "O"]]


def test_counts_can_be_resampled_by_sentence():
    true = [["B-PER", "O"]] * 60
    predicted = [["B-PER", "O"]] * 45 + [["O", "O"]] * 15
    _, counts = entity_counts(predicted, true)
    interval = bootstrap(OfSums(entity_f1_of_counts), counts, counts)
    assert interval.value == entity_f1(predicted, true)
    assert interval.low < interval.value < interval.high


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="tag 1 is 'PER'"):
        entities(["O", "PER"])
    with pytest.raises(ValueError, match="row 1 has 1 predicted tags for 2 tags"):
        entity_f1([["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(ValueError, match=r"row 0 has predictions of shape \(2,\)"):
        token_accuracy([[0, 1]], [[0]])
    with pytest.raises(ValueError, match="every position is -100"):
        token_accuracy([[0]], [[-100]])
    with pytest.raises(ValueError, match="row 0 has a class id outside 0 to 4"):
        tags_of_ids([[5]], [[0]], NAMES)
