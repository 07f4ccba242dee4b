"""From `(params, batch)` to `Loss(sum, weight)`: pure losses, objectives, terms beside them."""

from sftjax.objectives.causal import neftune, neftune_noise, next_token, targets
from sftjax.objectives.chunked import (
    TokenStats,
    VocabMesh,
    chunked_cross_entropy,
    token_stats,
)
from sftjax.objectives.distill import (
    channel_importance,
    column,
    distill_features,
    distill_logits,
    with_outputs,
    with_term,
)
from sftjax.objectives.losses import (
    binary_cross_entropy,
    cross_entropy,
    squared_error,
    token_cross_entropy,
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
    "TokenStats",
    "VocabMesh",
    "binary_cross_entropy",
    "bregman",
    "channel_importance",
    "chunked_cross_entropy",
    "classification",
    "column",
    "cross_entropy",
    "distill_features",
    "distill_logits",
    "multi_label",
    "neftune",
    "neftune_noise",
    "next_token",
    "objective_of",
    "r3f",
    "regression",
    "slow_copy",
    "smart",
    "squared_error",
    "targets",
    "token_classification",
    "token_cross_entropy",
    "token_stats",
    "with_outputs",
    "with_term",
]
