"""Say which labels pictures have: every one, with its probability, and those that are given."""

from collections.abc import Callable, Sequence

import numpy as np

from sftjax.evaluate import sigmoid, table, write_predictions
from sftjax.recipes.label_judge import SEVERAL, LabelJudge
from sftjax.recipes.predict_job import Predict


def tell_labels(
    job: Predict,
    logits: np.ndarray,
    files: Sequence[str],
    names: tuple[str, ...],
    judge: LabelJudge | None,
    tell: Callable[[str], None],
) -> None:
    """Print or write labels and probabilities, calibrated and flagged where a run settled it."""
    p = sigmoid(np.asarray(logits, np.float64)) if judge is None else judge.probabilities(logits)
    given = p > 0.5 if judge is None else judge.chosen(p)
    if judge is not None:
        tell("probabilities and flags as calibrated (judgement.json); for research only")
    if job.output is not None:
        write_predictions(
            job.output, np.arange(1, len(files) + 1), np.log(p) - np.log1p(-p), None, names,
            text=files, problem_type=SEVERAL, given=given.astype(int),
        )  # fmt: skip
        tell(f"{len(files):,} predictions: {job.output}")
        return
    lines = [
        {
            "picture": file,
            "labels": ", ".join(n for n, own in zip(names, given[row], strict=True) if own) or "-",
            **{name: f"{value:.3f}" for name, value in zip(names, p[row], strict=True)},
        }
        for row, file in enumerate(files)
    ]
    tell(table(lines, list(lines[0])))
