"""Which leaves move, how fast, and a report to read before anything is compiled."""

from sftjax.select.blocks import Stack, above, frozen_below, last_blocks, stacks
from sftjax.select.child import bernoulli_gradients, fisher_mask, only_elements
from sftjax.select.depth import ULMFIT, layerwise, scaled
from sftjax.select.describe import Description, describe
from sftjax.select.lisa import block_ids, lisa
from sftjax.select.rules import Selection, select

__all__ = [
    "ULMFIT",
    "Description",
    "Selection",
    "Stack",
    "above",
    "bernoulli_gradients",
    "block_ids",
    "describe",
    "fisher_mask",
    "frozen_below",
    "last_blocks",
    "layerwise",
    "lisa",
    "only_elements",
    "scaled",
    "select",
    "stacks",
]
