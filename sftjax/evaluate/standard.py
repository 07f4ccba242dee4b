"""The usual set of metrics of each kind of task, from what the model returns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftjax.evaluate import calibration, classification, multilabel, ranking, regression, tokens
from sftjax.evaluate.bootstrap import Rows
from sftjax.evaluate.checks import Undefined, same_rows, scores
from sftjax.evaluate.classification import scores_of_counts
from sftjax.evaluate.metric import Metric, OfSums, Prepared


def metrics(
    problem_type: str,
    predictions: Rows,
    labels: Rows,
    *,
    names: Sequence[str] = (),
    prefix: str = "",
) -> dict[str, float]:
    """Return the usual metrics of a task by name; NaN where one has no value on these rows.

    Args:
      problem_type: the Hub's word: "single_label_classification", "multi_label_classification",
        "regression", or "token_classification".
      predictions: what the model returns: logits (N, C) or (N, L), numbers (N,) or (N, 1); for
        tokens (N, T, C), or N arrays (T_i, C).
      labels: (N,) class ids, (N, L) of 0 and 1, (N,) numbers, or token class ids with -100 where
        none counts.
      names: class names; with BIO names, tokens are measured as whole entities too.
      prefix: put before every name ("eval_").

    Raises:
      ValueError: if the problem type is unknown, or shapes, ids or numbers do not fit it.

    >>> metrics("regression", [[1.0], [2.0]], [1.0, 4.0])["mae"]
    1.0
    >>> logits, labels = [[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]], [0, 1, 0]
    >>> found = metrics("single_label_classification", logits, labels, prefix="eval_")
    >>> round(found["eval_accuracy"], 4), found["eval_auroc"]
    (0.6667, 0.5)
    """
    chosen = standard(problem_type, names)
    if problem_type != "token_classification":
        predictions, labels = np.asarray(predictions), np.asarray(labels)
    same_rows(predictions, labels)
    found = {}
    for name, metric in chosen.items():
        try:
            found[prefix + name] = metric(predictions, labels)
        except Undefined:
            found[prefix + name] = float("nan")
    return found


def standard(problem_type: str, names: Sequence[str] = ()) -> dict[str, Metric]:
    """Return the usual metrics of a task, each a function of model outputs and labels.

    Any of them can be given an interval:
    `bootstrap(standard("regression")["mae"], predictions, labels)`.

    Args:
      problem_type: as in `metrics`.
      names: class names, for tokens.

    >>> list(standard("regression"))
    ['mse', 'rmse', 'mae', 'r2', 'pearson', 'spearman']
    """
    if problem_type == "token_classification":
        return _token_metrics(tuple(names))
    if problem_type not in STANDARD:
        known = ", ".join([*STANDARD, "token_classification"])
        raise ValueError(f"problem type {problem_type!r} is unknown; use one of {known}")
    return dict(STANDARD[problem_type])


def _logits_and_labels(logits: Any, labels: Any) -> tuple[Any, Any]:
    return _logits(logits), np.asarray(labels)


def _classes(logits: Any, labels: Any) -> tuple[Any, Any]:
    return _logits(logits).argmax(axis=1), np.asarray(labels)


def _probabilities(logits: Any, labels: Any) -> tuple[Any, Any]:
    return calibration.softmax(_logits(logits)), np.asarray(labels)


def _yes_and_no(logits: Any, labels: Any) -> tuple[Any, Any]:
    return scores("predictions", logits, ndim=2) > 0, np.asarray(labels)


def _numbers(predictions: Any, labels: Any) -> tuple[Any, Any]:
    return _column(predictions), _column(labels)


def _order(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Columns that order the rows by how much they are of each class."""
    z = _logits(logits)
    if z.shape[1] == 2:  # the margin orders rows as the probability does, without its rounding
        return z - z[:, ::-1], np.asarray(labels)
    return calibration.softmax(z), np.asarray(labels)


def _logits(logits: Any) -> NDArray[np.float64]:
    z = scores("predictions", logits, ndim=2)
    if z.shape[1] < 2:
        raise ValueError(
            f"predictions of shape {z.shape} have one column, and a choice needs at least two "
            "classes; if the model returns a number, the problem type is 'regression'"
        )
    return z


def _column(values: Any) -> np.ndarray:
    array = np.asarray(values)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _token_metrics(names: tuple[str, ...]) -> dict[str, Metric]:
    def right(logits: Any, labels: Any) -> tuple[Any, Any]:
        return tokens.token_counts(_ids(logits), labels), labels

    def of_entities(logits: Any, labels: Any) -> tuple[Any, Any]:
        _, counts = tokens.entity_counts(*tokens.tags_of_ids(_ids(logits), labels, names))
        return counts.sum(axis=1), labels

    def score(field: str) -> Metric:
        return OfSums(lambda sums: float(getattr(scores_of_counts(*sums), field)))

    found: dict[str, Metric] = {"accuracy": Prepared(right, OfSums(tokens.token_accuracy_of_sums))}
    if names and all(name == "O" or name[:2] in ("B-", "I-", "E-", "S-") for name in names):
        found |= {f: Prepared(of_entities, score(f)) for f in ("precision", "recall", "f1")}
    return found


def _ids(logits: Any) -> list[Any]:
    return [np.argmax(row, axis=-1) for row in logits]


STANDARD: dict[str, dict[str, Metric]] = {
    "single_label_classification": {
        "accuracy": Prepared(_classes, classification.accuracy),
        "balanced_accuracy": Prepared(_classes, classification.balanced_accuracy),
        "macro_f1": Prepared(_classes, classification.macro_f1),
        "weighted_f1": Prepared(_classes, classification.weighted_f1),
        "mcc": Prepared(_classes, classification.mcc),
        "auroc": Prepared(_order, ranking.auroc_one_vs_rest),
        "nll": Prepared(_logits_and_labels, calibration.nll),
        "brier": Prepared(_probabilities, calibration.brier),
        "ece": Prepared(_probabilities, calibration.ece),
    },
    "multi_label_classification": {
        "subset_accuracy": Prepared(_yes_and_no, multilabel.subset_accuracy),
        "micro_f1": Prepared(_yes_and_no, multilabel.multilabel_micro_f1),
        "macro_f1": Prepared(_yes_and_no, multilabel.multilabel_macro_f1),
        "auroc": ranking.auroc_per_label,
    },
    "regression": {
        "mse": Prepared(_numbers, regression.mse),
        "rmse": Prepared(_numbers, regression.rmse),
        "mae": Prepared(_numbers, regression.mae),
        "r2": Prepared(_numbers, regression.r2),
        "pearson": Prepared(_numbers, regression.pearson),
        "spearman": Prepared(_numbers, regression.spearman),
    },
}
"""Name -> metric of `(model outputs, labels)`, by problem type."""
