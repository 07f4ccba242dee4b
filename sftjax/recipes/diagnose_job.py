"""What a diagnosis run is to do, in words that users know."""

import dataclasses
from typing import ClassVar, Literal

from sftjax.recipes.images_job import Imbalance, TuneImages


@dataclasses.dataclass(frozen=True)
class Diagnose(TuneImages):
    """Fine-tune on medical pictures: patients apart, calibration, thresholds, sets, limits told.

    Research software: no medical device, not for diagnosis or treatment.
    """

    command: ClassVar[str] = "diagnose"

    imbalance: Imbalance = "logit-adjusted"
    """Loss against rare classes being overlooked: none, logit-adjusted, focal, class-balanced."""
    validation_fraction: float = 0.15
    """Share of each of the parts validation, calibration and test, where the source has none of its
    own."""
    positive: tuple[str, ...] = ()
    """Classes to find, each against all others; every class if none is named (of two, the one with
    the higher number)."""
    threshold: Literal["sensitivity", "specificity", "youden", "f1"] = "sensitivity"
    """How a class's threshold is chosen, on validation pictures alone: at least --at-least of the
    sensitivity or specificity, youden (greatest sum of both), f1 (greatest F1)."""
    at_least: float = 0.95
    """The sensitivity or specificity that the threshold must have there, 0 to 1; youden and f1 do
    not use it."""
    calibrate: Literal["temperature", "vector", "none"] = "temperature"
    """What makes probabilities mean what they say, fitted on validation pictures."""
    conformal: Literal["lac", "aps"] = "lac"
    """How prediction sets are built, calibrated on pictures of their own: lac sets are the smallest
    on average, the sizes of aps sets follow the difficulty. The likeliest class is always in."""
    alpha: float = 0.1
    """Share of prediction sets that may miss the truth, 0 to 1."""
    subgroups: tuple[str, ...] = ()
    """Columns (sex, site, scanner) whose values are measured apart; numbers in thirds."""
    intended_use: str = ""
    """What the model is meant for, for the model card."""
    saliency: int = 6
    """How many test pictures get a map of where the model looks; 0 draws none."""
