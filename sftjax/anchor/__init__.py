"""Staying near the pretrained weights, by a dose that means the same for every method."""

from sftjax.anchor.adamw import adamw
from sftjax.anchor.averaging import AverageState, averaged, ema_of_weights, swa
from sftjax.anchor.chain import chained, scale_by_rates
from sftjax.anchor.decay import (
    add_decayed_difference,
    add_decayed_unanchored,
    anchor_of,
    l2_sp_penalty,
)
from sftjax.anchor.difference import (
    add_base,
    anchored,
    load_difference,
    materialize,
    save_difference,
    to_difference,
    tree_sha256,
)
from sftjax.anchor.dose import (
    check_strength,
    distillation_weight_of,
    dose_for,
    dose_of,
    ema_decay_of,
    importance_cap,
    mixout_rate_of,
    remaining,
    strength_from,
    strength_of,
    wise_ft_alpha_of,
)
from sftjax.anchor.family import ewc, l2_init, l2_sp, recadam, sgd
from sftjax.anchor.fisher import fisher
from sftjax.anchor.importance import (
    Facts,
    check_importance,
    load_importance,
    normalized,
    save_importance,
)
from sftjax.anchor.merging import add_task_vectors, interpolate, task_vector, ties, wise_ft
from sftjax.anchor.mixout import mixout
from sftjax.anchor.projection import (
    displacement_norms,
    project,
    project_displacement,
    selective_projection_decay,
)
from sftjax.anchor.radii import init_radii, learn_radii, radii_step
from sftjax.anchor.sharpness import sharpness_aware
from sftjax.anchor.soups import GreedySoup, Trial, greedy_soup, recalibrate, uniform_soup

__all__ = [
    "AverageState",
    "Facts",
    "GreedySoup",
    "Trial",
    "adamw",
    "add_base",
    "add_decayed_difference",
    "add_decayed_unanchored",
    "add_task_vectors",
    "anchor_of",
    "anchored",
    "averaged",
    "chained",
    "check_importance",
    "check_strength",
    "displacement_norms",
    "distillation_weight_of",
    "dose_for",
    "dose_of",
    "ema_decay_of",
    "ema_of_weights",
    "ewc",
    "fisher",
    "greedy_soup",
    "importance_cap",
    "init_radii",
    "interpolate",
    "l2_init",
    "l2_sp",
    "l2_sp_penalty",
    "learn_radii",
    "load_difference",
    "load_importance",
    "materialize",
    "mixout",
    "mixout_rate_of",
    "normalized",
    "project",
    "project_displacement",
    "radii_step",
    "recadam",
    "recalibrate",
    "remaining",
    "save_difference",
    "save_importance",
    "scale_by_rates",
    "selective_projection_decay",
    "sgd",
    "sharpness_aware",
    "strength_from",
    "strength_of",
    "swa",
    "task_vector",
    "ties",
    "to_difference",
    "tree_sha256",
    "uniform_soup",
    "wise_ft",
    "wise_ft_alpha_of",
]
