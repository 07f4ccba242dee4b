"""What a model gives back: one head on one trunk."""

from typing import NamedTuple

ENCODER_KINDS = ("sequence", "token", "masked-lm", "pooled", "first", "mean", "hidden")
"""The kinds that encoders of text have."""
KINDS = (*ENCODER_KINDS, "seq2seq-lm", "causal-lm")
PER_TOKEN = ("token", "masked-lm", "hidden")
"""The kinds with an output for each token; the others have one for each row."""
FIRST_TOKEN = ("sequence", "pooled", "first")
"""The kinds that read nothing but the first token of the last hidden states."""
IMAGE_KINDS = ("image", "features", "map", "segment", "hidden")
"""The kinds of image models."""
LABELLED = ("sequence", "token", "image", "segment")
"""The kinds that tell classes apart."""
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
    `seq2seq-lm`: logits (B, U, V) of an encoder-decoder's targets; `causal-lm`: logits (B, T, V) of
    each token's next.

    Of images, `image`: logits (B, L); `features`: the vector (B, D) that is pooled from a map, a
    transformer's class token; `map`: the map (B, h, w, C) itself; `segment`: logits (B, H, W, L) of
    each pixel, by a light decoder; `hidden`: the last map, or a transformer's tokens (B, T, D)."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids (`LABELLED` kinds)."""
    problem_type: str = "single_label_classification"
    """Or `multi_label_classification`, or `regression` (one label, one number)."""
    stage: str = ""
    """Which of the trunk's stages `features` and `map` are taken from; "" is the last."""


def check_head(head: Head, kinds: tuple[str, ...] = KINDS) -> Head:
    """Return a head that can be built.

    Args:
      head: what is asked for.
      kinds: those that the family has.

    Raises:
      ValueError: if kind, labels and problem type do not go together.

    >>> check_head(Head("sequence"))
    Traceback (most recent call last):
    ValueError: a 'sequence' head needs labels: ...
    """
    if head.kind not in kinds:
        raise ValueError(f"unknown head {head.kind!r}; known heads: {', '.join(kinds)}")
    if head.stage and head.kind not in ("features", "map"):
        raise ValueError(
            f"a stage ({head.stage!r}) is of the heads 'features' and 'map'; a {head.kind!r} head "
            "reads the whole trunk"
        )
    if head.problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"unknown problem_type {head.problem_type!r}; known: {', '.join(PROBLEM_TYPES)}"
        )
    if head.kind not in LABELLED:
        if head.labels:
            known = " or ".join(repr(kind) for kind in kinds if kind in LABELLED)
            raise ValueError(
                f"a {head.kind!r} head has no classes, but labels {head.labels} were given; use "
                f"head {known}, or leave the labels out"
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
    if head.kind in ("token", "segment") and not single:
        each = "token" if head.kind == "token" else "pixel"
        raise ValueError(
            f"problem_type {head.problem_type!r} is for whole rows; a {head.kind!r} head gives "
            f"each {each} one class (single_label_classification)"
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
