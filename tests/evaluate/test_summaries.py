"""ROUGE, BLEU and chrF equal the packages'; copying and leads are what they say."""

import builtins
import random

import numpy as np
import pytest

from sftjax.evaluate import bleu, chrf, copied, lead, lengths, measure_summaries, rouge

pytest.importorskip("rouge_score")
pytest.importorskip("sacrebleu")

WORDS = [
    *("the", "a", "cat", "cats", "dog", "ran", "running", "runs", "sat"),
    *("on", "mat,", "of", "and", "it.", "was!", "green-ish", "12", "naïve"),
]


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(3)

    def text(most):
        return " ".join(draw.choice([*WORDS, "\n"]) for _ in range(draw.randint(1, most))).strip()

    references = [text(12) or "cat" for _ in range(40)]
    predictions = [text(9) if n % 3 else references[n] for n in range(40)]
    return [*predictions, ""], [*references, "the cat"]


@pytest.mark.parametrize("stemmer", [True, False])
def test_rouge_is_the_packages_row_by_row(texts, stemmer):
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    ours = rouge(*texts, stemmer=stemmer)
    scorer = RougeScorer(kinds, use_stemmer=stemmer)
    for row, (prediction, reference) in enumerate(zip(*texts, strict=True)):
        theirs = scorer.score(reference, prediction)
        for kind in kinds:
            assert [x[row] for x in ours[kind]] == list(theirs[kind])
    assert 0.3 < ours["rouge1"].f1.mean() < 0.9


def test_bleu_and_chrf_are_sacrebleus(texts):
    import sacrebleu

    predictions, references = texts
    ours = bleu(*texts, resamples=20)
    assert ours.value == pytest.approx(
        sacrebleu.corpus_bleu(predictions, [references], force=True).score, abs=1e-9
    )
    assert ours.low < ours.value < ours.high
    other = chrf(*texts, resamples=20)
    assert other.value == pytest.approx(sacrebleu.corpus_chrf(predictions, [references]).score)
    assert other.low < other.value < other.high


def test_a_perfect_set_and_one_that_shares_nothing():
    same = ["a cat sat on the mat", "it ran far away today"]
    assert bleu(same, same, resamples=5).value == pytest.approx(100)
    assert chrf(same, same, resamples=5).value == pytest.approx(100)
    other = ["xzx xzx", "xz"]
    assert bleu(other, same, resamples=5).value == 0
    assert chrf(other, same, resamples=5).value == pytest.approx(0, abs=1e-6)
    assert rouge(other, same)["rougeL"].f1.tolist() == [0, 0]


def test_what_is_copied_is_found_greedily():
    documents = ["one two three four five six"]
    whole = copied(["one two three"], documents)
    assert [float(x[0]) for x in whole] == [1.0, 3.0, 0.0, 2.0]
    broken = copied(["one three two three"], documents)
    assert broken.density[0] == pytest.approx(
        (1 + 1 + 4) / 4
    )  # "one", "three", "two three"... once
    assert broken.novel[0] == pytest.approx(2 / 3)
    none = copied([""], documents)
    assert none.coverage[0] == 0
    assert np.isnan(none.compression[0])


def test_leads_cut_words_and_sentences():
    assert lead("One. Two! Three?", 2) == "One. Two!"
    assert lead("a b c", 2, "words") == "a b"
    with pytest.raises(ValueError, match="lead-0"):
        lead("a", 0)
    assert lengths(["a b", ""]).empty == 1


def test_a_system_is_measured_whole(texts):
    predictions, references = texts
    found = measure_summaries(predictions, references, references, resamples=20)
    row = found.row("ours")
    assert row["ROUGE-1"].low <= row["ROUGE-1"].value <= row["ROUGE-1"].high
    assert 0 < row["copied"] <= 1
    assert found.facts()["lengths"]["empty"] == 1


def test_rows_must_be_texts_and_match():
    with pytest.raises(ValueError, match="2 predictions for 1 labels"):
        rouge(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="references: row 1 is None"):
        rouge(["a", "b"], ["a", None])


def test_without_the_package_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.startswith(("rouge_score", "sacrebleu")):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    for measure in (rouge, bleu, chrf):
        with pytest.raises(ModuleNotFoundError, match=r"sftjax\[summarize\]"):
            measure(["a"], ["a"])
