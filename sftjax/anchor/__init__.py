"""Staying near the pretrained weights, by a dose that means the same for every learning rate."""

from sftjax.anchor.adamw import adamw
from sftjax.anchor.decay import (
    add_decayed_difference,
    add_decayed_unanchored,
    anchor_of,
    l2_sp_penalty,
)
from sftjax.anchor.dose import dose_of, strength_of

__all__ = [
    "adamw",
    "add_decayed_difference",
    "add_decayed_unanchored",
    "anchor_of",
    "dose_of",
    "l2_sp_penalty",
    "strength_of",
]
