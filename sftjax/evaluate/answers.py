r"""Short answers: the same as the reference, or the likeliest of several choices.

A model chooses an answer by how likely it finds each one after the question,

$$ \hat c = \arg\max_c \frac{1}{n_c} \sum_t \log p(a_{c,t} \mid q, a_{c,<t}) $$

with $n_c = 1$ for the sum itself, or the tokens or characters of the answer, so that long ones are
not at a disadvantage. Everything is given row by row, for `bootstrap` to resample.

References:
  Brown et al., *Language Models are Few-Shot Learners*, 2020, arXiv:2005.14165 (2.4, the length)
  Rajpurkar et al., *SQuAD*, 2016, arXiv:1606.05250 (what counts as the same)
"""

import re
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from sftjax.core import Batch, PyTree
from sftjax.evaluate.checks import same_rows, scores
from sftjax.objectives.causal import flat, targets
from sftjax.objectives.chunked import token_stats

_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Likelihood(NamedTuple):
    """How likely a model finds the weighted tokens of each row."""

    log_probability: Array
    """(B,) float32, the sum over the tokens."""
    tokens: Array
    """(B,) float32, how many count."""
    greedy: Array
    """(B,) bool: whether each of them is the likeliest at its place, so that greedy writing would
    give them."""


class ChoiceRows(NamedTuple):
    """A row for each choice of each question."""

    batch: dict[str, np.ndarray]
    """`input_ids`, `attention_mask` (R, T) int32 and `loss_weights` (R, T) float32, 1 on the
    choice's own tokens."""
    question: NDArray[np.int64]
    """(R,) the number of the question that a row belongs to, ascending."""
    characters: NDArray[np.int64]
    """(R,) of the choice."""


def exact_matches(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    normalized: bool = True,
) -> NDArray[np.bool_]:
    """Tell which predictions are the same as (one of) their references, (N,).

    Args:
      predictions: N texts.
      references: a text for each, or several that are all right.
      normalized: as SQuAD compares: without case, punctuation, articles and extra white space;
        else to the letter.

    Raises:
      ValueError: if there are not as many references, or one has none.

    >>> exact_matches(["The Eiffel Tower!", "Rome"], ["eiffel tower", ["Paris", "Lyon"]]).tolist()
    [True, False]
    """
    same_rows(predictions, references)
    found = []
    for row, (said, right) in enumerate(zip(predictions, references, strict=True)):
        ways = [right] if isinstance(right, str) else list(right)
        if not ways:
            raise ValueError(f"references: row {row} has none; leave it out, or give one")
        alike = _normal if normalized else str
        found.append(alike(said) in {alike(way) for way in ways})
    return np.array(found, bool)


def choice_rows(
    backend: Any,
    questions: Sequence[str],
    choices: Sequence[Sequence[str]],
    *,
    pad_id: int,
    max_length: int,
) -> ChoiceRows:
    """Encode each choice after its question.

    A question and a choice are encoded as one text, so that tokens are those of running text; the
    choice's own are those after as many as the question has alone, and white space at the end of a
    question counts as the choice's (as in the lm-evaluation-harness).

    Args:
      backend: a `tokenizers.Tokenizer`.
      questions: N texts, up to where the answer begins.
      choices: the answers to choose among, of each; begin them with a space where one belongs.
      pad_id: fills up rows.
      max_length: most tokens of a row.

    Raises:
      ValueError: naming the row, if a question has fewer than two choices, one of them is empty or
        of no tokens, nothing comes before it, or a row is too long.
    """
    same_rows(questions, choices)
    rows: list[tuple[list[int], int]] = []
    owners, characters = [], []
    for number, (question, answers) in enumerate(zip(questions, choices, strict=True)):
        if len(answers) < 2:
            raise ValueError(
                f"choices: row {number} has {len(answers)}; choosing takes two or more"
            )
        before = question.rstrip()
        own = len(backend.encode(before).ids)
        for answer in answers:
            if not answer.strip():
                raise ValueError(f"choices: row {number} has an empty one")
            ids = backend.encode(question + answer).ids
            if not 0 < own < len(ids):
                raise ValueError(
                    f"row {number}: the question alone has {own} tokens, and {len(ids)} with the "
                    f"choice {answer!r}; the question and the choice each need one or more"
                )
            if len(ids) > max_length:
                raise ValueError(
                    f"row {number}: {len(ids)} tokens, and at most {max_length} are allowed; "
                    "shorten the question or raise max_length"
                )
            rows.append((ids, own))
            owners.append(number)
            characters.append(len(answer.strip()))
    longest = max(len(ids) for ids, _ in rows)
    ids = np.full((len(rows), longest), pad_id, np.int32)
    mask, weights = np.zeros_like(ids), np.zeros(ids.shape, np.float32)
    for row, (own_ids, start) in enumerate(rows):
        stop = len(own_ids)
        ids[row, :stop], mask[row, :stop], weights[row, start:stop] = own_ids, 1, 1.0
    batch = {"input_ids": ids, "attention_mask": mask, "loss_weights": weights}
    return ChoiceRows(batch, np.array(owners), np.array(characters))


def row_likelihood(
    hidden: Callable[[PyTree, Batch, Array | None], Array],
    words: Callable[[PyTree], Array],
    *,
    softcap: float | None = None,
) -> Callable[[PyTree, Batch], Likelihood]:
    """Return what gives the log-probability of each row's weighted tokens.

    Args:
      hidden: `(params, batch, key) -> (B, T, D)`, what the head reads, such as `model.hidden`.
      words: `params -> (V, D)`, the head.
      softcap: the cap of its logits.

    Returns:
      `(params, batch) -> Likelihood`, pure, to be compiled; the batch has `input_ids`,
      `loss_weights` and what the model reads.
    """

    def run(params: PyTree, batch: Batch) -> Likelihood:
        labels, weights = targets(batch)
        found = token_stats(flat(hidden(params, batch, None)), words(params), labels,
                            softcap=softcap)  # fmt: skip
        shape = batch["input_ids"].shape
        counts = weights.reshape(shape)
        log_probability = -jnp.sum(found.nll.reshape(shape) * counts, 1)
        likeliest = (found.chosen >= found.top).reshape(shape) | (counts == 0)
        return Likelihood(log_probability, jnp.sum(counts, 1), likeliest.all(1))

    return run


def chosen(
    log_probability: ArrayLike, question: ArrayLike, lengths: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Return the number of the likeliest choice of each question, (N,); the first of equals.

    Args:
      log_probability: (R,), of each choice.
      question: (R,), which question it belongs to, ascending from 0.
      lengths: (R,), what to divide by: tokens or characters; None for the sums themselves.

    Raises:
      ValueError: if the rows do not fit.

    >>> chosen([-3.0, -2.0, -8.0, -9.0], [0, 0, 1, 1]).tolist()
    [1, 0]
    >>> chosen([-3.0, -2.0, -8.0, -9.0], [0, 0, 1, 1], lengths=[3, 1, 1, 9]).tolist()
    [0, 1]
    """
    values, owner = scores("log_probability", log_probability, 1), np.asarray(question)
    same_rows(values, owner)
    if lengths is not None:
        sizes = scores("lengths", lengths, 1)
        same_rows(values, sizes)
        if (sizes <= 0).any():
            raise ValueError(f"lengths: row {int(np.argmax(sizes <= 0))} is not above 0")
        values = values / sizes
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    if not np.array_equal(owner[starts], np.arange(len(starts))):
        raise ValueError("question: the numbers must ascend from 0, the choices of one together")
    return np.array([int(np.argmax(part)) for part in np.split(values, starts[1:])])


def choice_accuracy(
    log_probability: ArrayLike,
    question: ArrayLike,
    right: ArrayLike,
    lengths: ArrayLike | None = None,
) -> float:
    """Return the share of questions whose likeliest choice is the right one.

    Args:
      log_probability: as for `chosen`.
      question: likewise.
      right: (N,), the number of the right choice of each question.
      lengths: as for `chosen`.

    >>> choice_accuracy([-3.0, -2.0, -8.0, -9.0], [0, 0, 1, 1], right=[1, 1])
    0.5
    """
    found = chosen(log_probability, question, lengths)
    same_rows(found, np.asarray(right))
    return float(np.mean(found == np.asarray(right)))


def _normal(text: str) -> str:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(_ARTICLES.sub(" ", text).split())
