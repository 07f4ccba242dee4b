"""Exact match, and choices by likelihood: torch's log-probabilities are ours."""

import pathlib
import runpy
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sftjax.evaluate import (
    choice_accuracy,
    choice_rows,
    chosen,
    exact_matches,
    row_likelihood,
)

PARITY = pathlib.Path(__file__).parents[1] / "parity"


@pytest.fixture(scope="module")
def backend():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(PARITY / "chat" / "tokenizer.json"))


def test_the_same_answer_is_found_as_squad_finds_it_or_to_the_letter():
    said = ["The  Tower.", "the tower", "a tower of", ""]
    right = ["tower", ["no", "Tower!"], "tower", "the"]
    assert exact_matches(said, right).tolist() == [True, True, False, True]
    assert not exact_matches(said, right, normalized=False).any()
    with pytest.raises(ValueError, match="row 1 has none"):
        exact_matches(["a", "b"], ["a", []])
    with pytest.raises(ValueError, match="2 predictions for 1"):
        exact_matches(["a", "b"], ["a"])


def test_rows_weigh_the_choice_and_nothing_else(backend):
    questions, choices = ["What is it? ", "And this?"], [["yes", "no, not at all"], [" a", " b"]]
    found = choice_rows(backend, questions, choices, pad_id=2, max_length=64)
    assert found.question.tolist() == [0, 0, 1, 1]
    assert found.characters.tolist() == [3, 14, 1, 1]
    for row, (question, answer) in enumerate(
        (q, a) for q, answers in zip(questions, choices, strict=True) for a in answers
    ):
        ids = found.batch["input_ids"][row][found.batch["attention_mask"][row] == 1]
        assert backend.decode(ids.tolist(), skip_special_tokens=False) == question + answer
        own = found.batch["input_ids"][row][found.batch["loss_weights"][row] == 1]
        assert backend.decode(own.tolist()).strip() == answer.strip()


@pytest.mark.parametrize(("questions", "choices", "error"), [
    (["a"], [["b"]], "row 0 has 1; choosing takes two"),
    (["a"], [["b", " "]], "row 0 has an empty one"),
    (["", "a"], [["b", "c"], ["d", "e"]], "row 0: the question alone has 0 tokens"),
    (["a b " * 60], [["b", "c"]], r"row 0: \d+ tokens, and at most 64"),
])  # fmt: skip
def test_choices_that_cannot_be_measured_are_refused(backend, questions, choices, error):
    with pytest.raises(ValueError, match=error):
        choice_rows(backend, questions, choices, pad_id=2, max_length=64)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="ascend from 0"):
        chosen([1.0, 2.0], [1, 0])
    with pytest.raises(ValueError, match="row 1 is not above 0"):
        chosen([1.0, 2.0], [0, 0], lengths=[1, 0])
    with pytest.raises(ValueError, match="2 predictions for 1"):
        choice_accuracy([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1], right=[0])


@pytest.mark.torch
def test_log_probabilities_are_torchs(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    causal = SimpleNamespace(**runpy.run_path(str(PARITY / "causal_reference.py")))
    make = SimpleNamespace(**runpy.run_path(str(PARITY / "make_causal_goldens.py")))
    case = causal.CASES["llama"]
    theirs, shapes = make.torch_model(case)
    model, params = causal.reference.ours(case, causal.reference.weights(shapes), tmp_path)
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 50, (4, 12)).astype(np.int32)
    mask = (np.arange(12) < np.array([[12], [9], [12], [7]])).astype(np.int32)
    weights = mask * (np.arange(12) >= 5)
    batch = {"input_ids": ids, "attention_mask": mask, "loss_weights": weights.astype(np.float32)}
    found = jax.jit(row_likelihood(model.hidden, model.words))(params, batch)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(ids).long(), torch.from_numpy(mask)).logits
    table = torch.log_softmax(logits[:, :-1], -1).numpy()
    each = np.take_along_axis(table, ids[:, 1:, None], 2)[..., 0]
    expected = (each * weights[:, 1:]).sum(1)
    np.testing.assert_allclose(found.log_probability, expected, atol=2e-4)
    np.testing.assert_array_equal(found.tokens, weights.sum(1))
    same = (table.argmax(-1) == ids[:, 1:]) | (weights[:, 1:] == 0)
    np.testing.assert_array_equal(found.greedy, same.all(1))
    assert (chosen(found.log_probability, [0, 0, 1, 1]) == [
        np.argmax(expected[:2]), np.argmax(expected[2:])]).all()  # fmt: skip
