"""What a model gives back: one head on one trunk."""

from typing import NamedTuple

ENCODER_KINDS = ("sequence", "token", "masked-lm", "pooled", "first", "mean", "hidden")
"""The kinds that encoders of text have."""
KINDS = (*ENCODER_KINDS, "seq2seq-lm")
PER_TOKEN = ("token", "masked-lm", "hidden")
"""The kinds with an output for each token; the others have one for each row."""
FIRST_TOKEN = ("sequence", "pooled", "first")
"""The kinds that read nothing but the first token of the last hidden states."""
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


class Head(NamedTuple):
    """The output of a model and the names of what it tells apart.

    >>> Head("sequence", ("negative", "positive")).problem_type
    'single_label_classification'
    """

    kind: str
    """`sequence`: logits (B, L) of a row; `token`: logits (B, T, L) of each token; `masked-lm`:
    logits (B, T, V); `pooled`: the pooler's embedding (B, D); `first` and `mean`: the first
    token and the mean (B, D) of the last hidden states; `hidden`: those states (B, T, D);
    `seq2seq-lm`: logits (B, U, V) of an encoder-decoder's targets."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids (`sequence` and `token`)."""
    problem_type: str = "single_label_classification"
    """Or `multi_label_classification`, or `regression` (one label, one number)."""


def check_head(head: Head) -> Head:
    """Return a head that can be built.

    Raises:
      ValueError: if kind, labels and problem type do not go together.

    >>> check_head(Head("sequence"))
    Traceback (most recent call last):
    ValueError: a 'sequence' head needs labels: ...
    """
    if head.kind not in KINDS:
        raise ValueError(f"unknown head {head.kind!r}; known heads: {', '.join(KINDS)}")
    if head.problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"unknown problem_type {head.problem_type!r}; known: {', '.join(PROBLEM_TYPES)}"
        )
    if head.kind not in ("sequence", "token"):
        if head.labels:
            raise ValueError(
                f"a {head.kind!r} head has no classes, but labels {head.labels} were given; use "
                "head 'sequence' or 'token', or leave the labels out"
            )
        return head
    single = head.problem_type == "single_label_classification"
    if not head.labels:
        raise ValueError(
            f"a {head.kind!r} head needs labels: the class names in the order of their ids, such "
            "as ('negative', 'positive')"
        )
    if len(set(head.labels)) < len(head.labels):
        twice = sorted({name for name in head.labels if head.labels.count(name) > 1})
        raise ValueError(f"each class needs a name of its own, but {twice} stand twice")
    if head.kind == "token" and not single:
        raise ValueError(
            f"problem_type {head.problem_type!r} is for whole rows; a 'token' head gives each "
            "token one class (single_label_classification)"
        )
    if head.problem_type == "regression" and len(head.labels) != 1:
        raise ValueError(
            f"a regression head predicts one number and needs one label, not {len(head.labels)}"
        )
    if single and len(head.labels) == 1:
        raise ValueError(
            f"one class ({head.labels[0]!r}) leaves nothing to tell apart; name at least two "
            "classes, or use problem_type='regression' to predict a number"
        )
    return head
