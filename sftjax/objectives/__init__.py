"""From `(params, batch)` to `Loss(sum, weight)`: pure losses, and objectives made of them."""

from sftjax.objectives.losses import (
    binary_cross_entropy,
    cross_entropy,
    squared_error,
    token_cross_entropy,
)
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
    "binary_cross_entropy",
    "classification",
    "cross_entropy",
    "multi_label",
    "objective_of",
    "regression",
    "squared_error",
    "token_classification",
    "token_cross_entropy",
]
