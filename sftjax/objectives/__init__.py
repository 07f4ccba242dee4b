"""From `(params, batch)` to `Loss(sum, weight)`: pure losses, objectives, terms beside them."""

from sftjax.objectives.augmented import augmented
from sftjax.objectives.causal import neftune, neftune_noise, next_token, targets
from sftjax.objectives.chunked import (
    TokenStats,
    VocabMesh,
    chunked_cross_entropy,
    slice_of,
    token_stats,
    weighted_sum,
)
from sftjax.objectives.dense import dense_classification, dice_cross_entropy, dice_loss
from sftjax.objectives.distill import (
    Counts,
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
from sftjax.objectives.seq2seq import (
    counted_tokens,
    distill_teacher,
    sequence_cross_entropy,
    sequence_to_sequence,
    with_teacher,
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
    "Counts",
    "TokenStats",
    "VocabMesh",
    "augmented",
    "binary_cross_entropy",
    "binary_focal_loss",
    "bregman",
    "channel_importance",
    "chunked_cross_entropy",
    "classification",
    "column",
    "counted_tokens",
    "cross_entropy",
    "dense_classification",
    "dice_cross_entropy",
    "dice_loss",
    "distill_features",
    "distill_logits",
    "distill_teacher",
    "effective_number_weights",
    "focal_loss",
    "labelled",
    "logit_adjusted",
    "multi_label",
    "neftune",
    "neftune_noise",
    "next_token",
    "objective_of",
    "ordinal",
    "ordinal_grades",
    "ordinal_loss",
    "ordinal_probabilities",
    "r3f",
    "rank_logits",
    "regression",
    "sequence_cross_entropy",
    "sequence_to_sequence",
    "slice_of",
    "slow_copy",
    "smart",
    "squared_error",
    "targets",
    "token_classification",
    "token_cross_entropy",
    "token_stats",
    "weighted_sum",
    "with_outputs",
    "with_teacher",
    "with_term",
]
