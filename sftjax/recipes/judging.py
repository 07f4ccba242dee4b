"""From logits to judgements: calibrated probabilities, thresholds and prediction sets, in a file.

Each is fitted on rows that the weights were not trained on: temperature and thresholds on the
validation rows, sets on calibration rows of their own.
"""

import json
import math
import pathlib
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftjax.evaluate import (
    Conformal,
    Scaling,
    Threshold,
    choose_threshold,
    fit_conformal,
    fit_temperature,
    fit_vector,
    softmax,
)
from sftjax.recipes.label_judge import SEVERAL, LabelJudge, flagged, label_facts, label_judge_of
from sftjax.recipes.run_folder import write_json

FILE = "judgement.json"
"""Beside the weights of a model that was calibrated."""


class Judge(NamedTuple):
    """What turns logits of a model into judgements."""

    names: tuple[str, ...]
    prior: NDArray[np.float64]
    """(C,), added to the logits, so that they speak of classes as frequent as in the source: what a
    loss that makes up for rare classes left out; else 0."""
    scaling: Scaling | None
    """None leaves probabilities as they are."""
    thresholds: dict[str, Threshold]
    """Class -> the probability from which on it is flagged."""
    conformal: Conformal | None = None

    def probabilities(self, logits: Any) -> NDArray[np.float64]:
        """Return (N, C) calibrated probabilities of classes as frequent as in the source."""
        shifted = np.asarray(logits, np.float64) + self.prior
        return softmax(shifted) if self.scaling is None else self.scaling.apply(shifted)

    def flags(self, probabilities: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
        """Return, for each class with a threshold, (N,) whether it is flagged."""
        return flagged(self.names, self.thresholds, probabilities)


def fit_judge(
    names: tuple[str, ...],
    validation: tuple[Any, Any],
    calibration: tuple[Any, Any],
    *,
    prior: NDArray[np.float64] | None = None,
    calibrate: str = "temperature",
    wanted: tuple[str, ...],
    rule: Literal["sensitivity", "specificity", "youden", "f1"] = "sensitivity",
    at_least: float = 0.95,
    method: Literal["lac", "aps"] = "lac",
    alpha: float = 0.1,
) -> tuple[Judge, list[str]]:
    """Fit calibration and thresholds on validation rows, and sets on calibration rows.

    Args:
      names: of the classes.
      validation: logits (N, C) and labels (N,).
      calibration: the same of other rows.
      prior: see `Judge.prior`.
      calibrate: temperature, vector or none.
      wanted: classes that get a threshold.
      rule: as in `evaluate.choose_threshold`.
      at_least: as there.
      method: as in `evaluate.fit_conformal`.
      alpha: as there.

    Returns:
      The judge, and what a person should know of how it came about.
    """
    shift = np.zeros(len(names)) if prior is None else np.asarray(prior, np.float64)
    logits, labels = np.asarray(validation[0], np.float64) + shift, np.asarray(validation[1])
    said: list[str] = []
    scaling: Scaling | None = None
    fits = {"temperature": fit_temperature, "vector": fit_vector}
    if calibrate in fits and (logits.argmax(1) == labels).all():
        said.append(
            f"All {len(labels)} validation pictures are right, which shows no error to calibrate "
            "by: probabilities are left as they are."
        )
    elif calibrate in fits:
        found = scaling = fits[calibrate](logits, labels)
        if calibrate == "temperature":
            said.append(f"Temperature {found.temperature:.3f}, fitted on validation pictures.")
        else:
            said.append("Vector scaling, fitted on validation pictures.")
    judge = Judge(names, shift, scaling, {})
    p = judge.probabilities(validation[0])
    thresholds = {
        name: choose_threshold(p[:, k], labels == k, rule, at_least)
        for k, name in enumerate(names)
        if name in wanted
    }
    own = judge.probabilities(calibration[0])
    conformal = fit_conformal(own, np.asarray(calibration[1]), alpha, method)
    if math.isinf(conformal.level):
        said.append(
            f"{conformal.rows} calibration pictures are too few to promise {1 - alpha:.0%}: every "
            "set holds all classes."
        )
    return judge._replace(thresholds=thresholds, conformal=conformal), said


def save_judge(folder: pathlib.Path, judge: Judge) -> None:
    """Write a judge beside the weights; `load_judge` reads it."""
    scaling = judge.scaling or Scaling(np.array(1.0), np.array(0.0))
    scale = np.broadcast_to(scaling.scale, len(judge.names))
    shift = np.broadcast_to(scaling.shift, len(judge.names))
    conformal = judge.conformal
    facts: dict[str, Any] = {
        "names": list(judge.names),
        "prior": judge.prior.tolist(),
        "scale": scale.tolist(),
        "shift": shift.tolist(),
        "thresholds": {name: each._asdict() for name, each in judge.thresholds.items()},
        "conformal": None if conformal is None else conformal._asdict(),
    }
    if conformal is not None and math.isinf(conformal.level):
        facts["conformal"]["level"] = "all"
    write_json(folder / FILE, facts)


def save_label_judge(folder: pathlib.Path, judge: LabelJudge) -> None:
    """Write a judge of labels beside the weights; `load_judge` reads it."""
    write_json(folder / FILE, label_facts(judge))


def load_judge(folder: str | pathlib.Path) -> Judge | LabelJudge | None:
    """Read what `save_judge` or `save_label_judge` wrote; None if there is none."""
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return None
    facts = json.loads(path.read_text("utf8"))
    if facts.get("problem_type") == SEVERAL:
        return label_judge_of(facts)
    thresholds = {name: Threshold(**each) for name, each in facts["thresholds"].items()}
    conformal = facts["conformal"]
    if conformal is not None:
        level = math.inf if conformal["level"] == "all" else conformal["level"]
        conformal = Conformal(**conformal)._replace(level=level)
    scaling = Scaling(np.array(facts["scale"]), np.array(facts["shift"]))
    return Judge(tuple(facts["names"]), np.array(facts["prior"]), scaling, thresholds, conformal)
