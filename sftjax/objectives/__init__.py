"""From `(params, batch)` to `Loss(sum, weight)`: pure losses, objectives, terms beside them."""

from sftjax.objectives.augmented import augmented
from sftjax.objectives.dense import dense_classification, dice_cross_entropy, dice_loss
from sftjax.objectives.distill import (
    channel_importance,
    column,
    distill_features,
    distill_logits,
    with_outputs,
    with_term,
)
from sftjax.objectives.imbalance import (
    binary_focal_loss,
    effective_number_weights,
    focal_loss,
    logit_adjusted,
)
from sftjax.objectives.labelled import labelled
from sftjax.objectives.losses import (
    binary_cross_entropy,
    cross_entropy,
    squared_error,
    token_cross_entropy,
)
from sftjax.objectives.ordinal import (
    ordinal,
    ordinal_grades,
    ordinal_loss,
    ordinal_probabilities,
    rank_logits,
)
from sftjax.objectives.smooth import bregman, r3f, slow_copy, smart
from sftjax.objectives.text import (
    Apply,
    classification,
    multi_label,
    objective_of,
    regression,
    token_classification,
)

__all__ = [
    "Apply",
    "augmented",
    "binary_cross_entropy",
    "binary_focal_loss",
    "bregman",
    "channel_importance",
    "classification",
    "column",
    "cross_entropy",
    "dense_classification",
    "dice_cross_entropy",
    "dice_loss",
    "distill_features",
    "distill_logits",
    "effective_number_weights",
    "focal_loss",
    "labelled",
    "logit_adjusted",
    "multi_label",
    "objective_of",
    "ordinal",
    "ordinal_grades",
    "ordinal_loss",
    "ordinal_probabilities",
    "r3f",
    "rank_logits",
    "regression",
    "slow_copy",
    "smart",
    "squared_error",
    "token_classification",
    "token_cross_entropy",
    "with_outputs",
    "with_term",
]
