r"""A rate for every depth: the nearer to the input, the more general, the less it moves.

$\eta_\ell = \eta\, \xi^{d(\ell)}$ with the depth $d$ counted from the top. Two numberings are in
use, and they differ by a whole power of $\xi$ at every block. For a stack of n blocks:

| where                       | `"beit"`        | `"electra"`     |
|-----------------------------|-----------------|-----------------|
| above the blocks (the head) | $1$             | $1$             |
| top block                   | $\xi$           | $\xi^2$         |
| block i, 0 the lowest       | $\xi^{n-i}$     | $\xi^{n-i+1}$   |
| lowest block                | $\xi^n$         | $\xi^{n+1}$     |
| below the blocks            | $\xi^{n+1}$     | $\xi^{n+2}$     |

ELECTRA's code puts the task head at depth n + 2 and the top block at n, so that the pooler's place
between them is skipped: its published 0.8 is stronger than BEiT's 0.8 by one power. ULMFiT's
discriminative rates, $\eta_{\ell-1} = \eta_\ell / 2.6$ with the head at 1, are BEiT's numbering
with the decay `ULMFIT`.

A stack of blocks that is stored as one array with a leading layer axis (`nn.scan`) has no numbered
blocks and is out of scope here: it needs a vector of rates, not one number a leaf.
"""

from typing import Literal

import jax

from sftjax.core import PyTree, flatten, map_with_path
from sftjax.select.blocks import above, stacks
from sftjax.select.rules import Selection

ULMFIT = 1 / 2.6
"""ULMFiT's decay from one layer group to the one below."""

_SKIPPED = {"beit": 0, "electra": 1}


def layerwise(
    params: PyTree, decay: float, *, numbering: Literal["beit", "electra"] = "beit"
) -> PyTree:
    """Return the rate multiplier of every leaf by its depth from the top (the table above).

    In a tree with several stacks (encoder and decoder) each counts from its own top. What lies
    below the blocks belongs to the stack with which its path shares the most segments; where that
    is a tie (an embedding that both share), to the highest stack.

    The rates must be applied after Adam (`anchor.adamw(rates=...)`): before it, Adam divides them
    away again.

    Args:
      params: any tree of arrays or shapes with numbered blocks (see `select.stacks`).
      decay: $\\xi$, in (0, 1]. Published: 0.8 for a base model and 0.9 for a large one (ELECTRA),
        0.65 and 0.75 (BEiT), 0.95 (Zhang et al. 2021).
      numbering: `"beit"` or `"electra"`.

    Returns:
      A tree of floats of the params' structure.

    Raises:
      ValueError: if the decay lies outside (0, 1], the numbering is unknown, or the tree has no
        numbered blocks.

    Sources: Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254; Howard & Ruder
    2018, arXiv:1801.06146.

    >>> params = {"embed": 0, "layer": {"0": {"w": 0}, "1": {"w": 0}}, "head": 0}
    >>> layerwise(params, 0.5)
    {'embed': 0.125, 'head': 1.0, 'layer': {'0': {'w': 0.25}, '1': {'w': 0.5}}}
    >>> layerwise(params, 0.5, numbering="electra")
    {'embed': 0.0625, 'head': 1.0, 'layer': {'0': {'w': 0.125}, '1': {'w': 0.25}}}
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(
            f"decay is {decay}; a layer-wise decay lies in (0, 1], and 1 gives every depth one rate"
        )
    if numbering not in _SKIPPED:
        raise ValueError(f"numbering is {numbering!r}; it is 'beit' or 'electra'")
    runs = [stack.blocks for stack in stacks(params)]
    if not runs:
        raise ValueError(
            "layer-wise rates need numbered blocks (layer/0, layer/1, ...), and this tree has none "
            "(blocks stacked into one array by a scan are out of scope): give rates by rules "
            "instead, as in [('head', 1.0), ('all', 0.1)]"
        )
    top = set(above(params))

    def depth(path: str) -> int:
        if path in top:
            return 0
        for run in runs:
            for place, block in enumerate(run):
                if path.startswith(f"{block}/"):
                    return len(run) - place + _SKIPPED[numbering]
        nearest = max(runs, key=lambda run: (_shared(path, run[0]), len(run)))
        return len(nearest) + 1 + _SKIPPED[numbering]

    return map_with_path(lambda path, _: float(decay ** depth(path)), params)


def scaled(selection: Selection, rates: PyTree) -> Selection:
    """Return the selection with every rate multiplied by that of `rates`; what moves stays.

    The rules keep their text, and `describe` prints a line for each rule and rate, naming where
    in the tree it holds.

    Args:
      selection: from `select`.
      rates: a tree of floats above 0 of the params' structure, as `layerwise` gives it.

    Raises:
      ValueError: if the rates name other leaves than the selection, or one of them is not a
        finite number above 0 (a rule with rate 0 freezes).

    >>> from sftjax.select import select
    >>> params = {"layer": {"0": {"w": 0}, "1": {"w": 0}}, "head": 0}
    >>> scaled(select(params, [("head", 3.0), "last:1"]), layerwise(params, 0.5)).rate
    {'head': 3.0, 'layer': {'0': {'w': 0.0}, '1': {'w': 0.5}}}
    """
    given, wanted = flatten(rates), flatten(selection.rate)
    if given.keys() != wanted.keys():
        missing = [path for path in wanted if path not in given]
        unknown = [path for path in given if path not in wanted]
        raise ValueError(
            "the rates and the selection are not of one tree: "
            + "; ".join(
                f"{what} {', '.join(paths[:3])}{' ...' if len(paths) > 3 else ''}"
                for what, paths in (("no rate for", missing), ("a rate for unknown", unknown))
                if paths
            )
            + ". Make the rates from the very params that the selection was made from."
        )
    for path, rate in given.items():
        if not 0.0 < rate < float("inf"):
            raise ValueError(
                f"the rate of {path} is {rate}; a multiplier is a finite number above 0. To freeze "
                "a leaf, give its rule the rate 0 in select"
            )
    return selection._replace(rate=jax.tree.map(lambda a, b: a * float(b), selection.rate, rates))


def _shared(path: str, block: str) -> int:
    """Count the leading segments that two paths have in common."""
    count = 0
    for left, right in zip(path.split("/"), block.split("/"), strict=False):
        if left != right:
            break
        count += 1
    return count
