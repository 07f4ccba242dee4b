"""From logits of labels to judgements: calibrated probabilities and a threshold a label.

Fitted on validation rows, which the weights were not trained on; kept in `judgement.json`.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftjax.evaluate import (
    Threshold,
    Undefined,
    choose_threshold,
    fit_temperature,
    fit_vector,
    sigmoid,
)

SEVERAL = "multi_label_classification"


class LabelJudge(NamedTuple):
    """What turns logits of labels, each true or not, into judgements."""

    names: tuple[str, ...]
    scale: NDArray[np.float64]
    """(L,), times the logits."""
    shift: NDArray[np.float64]
    """(L,), added then."""
    thresholds: dict[str, Threshold]
    """Label -> the probability from which on it is flagged."""

    def probabilities(self, logits: Any) -> NDArray[np.float64]:
        """Return (N, L) calibrated probabilities."""
        return sigmoid(np.asarray(logits, np.float64) * self.scale + self.shift)

    def flags(self, probabilities: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
        """Return, for each label with a threshold, (N,) whether it is flagged."""
        return flagged(self.names, self.thresholds, probabilities)

    def chosen(self, probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return (N, L) which labels are given: flagged, or above 1/2 without a threshold."""
        flags = self.flags(probabilities)
        columns = [flags.get(name, probabilities[:, k] > 0.5) for k, name in enumerate(self.names)]
        return np.stack(columns, 1)


def flagged(
    names: tuple[str, ...], thresholds: dict[str, Threshold], probabilities: NDArray[np.float64]
) -> dict[str, NDArray[np.bool_]]:
    """Return, for each name with a threshold, (N,) whether its probability reaches it."""
    return {
        name: probabilities[:, names.index(name)] >= threshold.value
        for name, threshold in thresholds.items()
    }


def fit_label_judge(
    names: tuple[str, ...],
    logits: Any,
    labels: Any,
    *,
    calibrate: str = "temperature",
    wanted: tuple[str, ...],
    rule: Literal["sensitivity", "specificity", "youden", "f1"] = "sensitivity",
    at_least: float = 0.95,
) -> tuple[LabelJudge, list[str]]:
    """Fit calibration and thresholds on validation rows.

    Args:
      names: of the labels.
      logits: (N, L).
      labels: (N, L) of 0 and 1.
      calibrate: temperature (one for all labels), vector (a scale and a shift a label), or none.
      wanted: labels that get a threshold.
      rule: as in `evaluate.choose_threshold`.
      at_least: as there.

    Returns:
      The judge, and what a person should know of how it came about.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels).astype(int)
    scale, shift, said = np.ones(len(names)), np.zeros(len(names)), []
    if calibrate != "none" and ((z > 0) == (y > 0)).all():
        said.append(
            f"Every label of all {len(y)} validation pictures is right, which shows no error to "
            "calibrate by: probabilities are left as they are."
        )
    elif calibrate == "temperature":
        found = fit_temperature(_two(z.ravel()), y.ravel())
        scale = scale / found.temperature
        said.append(
            f"Temperature {found.temperature:.3f}, fitted on all labels of validation pictures."
        )
    elif calibrate == "vector":
        left = []
        for k, name in enumerate(names):
            if ((z[:, k] > 0) == (y[:, k] > 0)).all() or len(np.unique(y[:, k])) < 2:
                left.append(name)
                continue
            fitted = fit_vector(_two(z[:, k]), y[:, k])
            scales, shifts = (np.broadcast_to(v, 2) for v in (fitted.scale, fitted.shift))
            scale[k], shift[k] = scales[1], shifts[1] - shifts[0]
        said.append("A scale and a shift a label, fitted on validation pictures.")
        if left:
            said.append(f"Left as they are, having no error there to fit: {', '.join(left)}.")
    judge = LabelJudge(names, scale, shift, {})
    p, thresholds, without = judge.probabilities(z), {}, []
    for k, name in enumerate(names):
        if name not in wanted:
            continue
        try:
            thresholds[name] = choose_threshold(p[:, k], y[:, k], rule, at_least)
        except Undefined:
            without.append(name)
    if without:
        said.append(
            f"No threshold, being in all or none of the validation pictures: {', '.join(without)}."
        )
    return judge._replace(thresholds=thresholds), said


def label_facts(judge: LabelJudge) -> dict[str, Any]:
    """Return a judge as JSON; `label_judge_of` reads it back."""
    return {
        "problem_type": SEVERAL,
        "names": list(judge.names),
        "scale": judge.scale.tolist(),
        "shift": judge.shift.tolist(),
        "thresholds": {name: each._asdict() for name, each in judge.thresholds.items()},
    }


def label_judge_of(facts: dict[str, Any]) -> LabelJudge:
    """Return the judge that `label_facts` wrote."""
    thresholds = {name: Threshold(**each) for name, each in facts["thresholds"].items()}
    scale, shift = np.array(facts["scale"]), np.array(facts["shift"])
    return LabelJudge(tuple(facts["names"]), scale, shift, thresholds)


def _two(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits of no and yes, (N, 2), whose softmax is the sigmoid."""
    return np.stack([np.zeros_like(z), z], 1)
