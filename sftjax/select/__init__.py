"""Which leaves move, how fast, and a report to read before anything is compiled."""

from sftjax.select.blocks import Stack, above, last_blocks, stacks
from sftjax.select.describe import Description, describe
from sftjax.select.rules import Selection, select

__all__ = [
    "Description",
    "Selection",
    "Stack",
    "above",
    "describe",
    "last_blocks",
    "select",
    "stacks",
]
