"""Training batches that hold what the frozen lower blocks give, computed once for a data set."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax

import sftjax
from sftjax.adapters import on_quantized
from sftjax.core import Batch, PyTree
from sftjax.data import cache_folder
from sftjax.hub import LoadReport
from sftjax.models import ImageModel, TextEncoder, split
from sftjax.recipes.choosing import chosen_of
from sftjax.recipes.deciding import rules_of
from sftjax.recipes.streams import Batched, Stream, in_order
from sftjax.recipes.training import Training
from sftjax.recipes.worn import wear
from sftjax.select import frozen_below
from sftjax.train import keep_prefix, with_prefix


def touched_by(params: PyTree, new: Collection[str], trainings: Iterable[Training]) -> list[PyTree]:
    """Return, for each phase of each run, which leaves are trained or have an adapter."""
    found = []
    for training in trainings:
        worn = wear(training.adapter, params, new)
        for rules in rules_of(training, new):
            chosen = chosen_of(worn.params, worn.new, training, rules)
            found.append(worn.touched(chosen.trainable))
    return found


def cut_of(model: TextEncoder | ImageModel, touched: Iterable[PyTree]) -> int | None:
    """Return how many of the lowest blocks nothing touches, None if none.

    The last block stays above, since the head and the embeddings read different parts of it.

    Args:
      model: of the runs.
      touched: from `touched_by`.
    """
    still = min(frozen_below(leaves) for leaves in touched)
    image = isinstance(model, ImageModel)
    blocks = model.num_blocks if image else model.architecture.num_layers
    return min(still, blocks - 1) or None


def prefixed(
    model: TextEncoder | ImageModel,
    params: PyTree,
    cut: int | None,
    rows: Batched,
    batch_at: Callable[[int], Batch],
    **place: Any,
) -> Callable[[int], Batch]:
    """Return batches that hold what the lowest `cut` blocks give for their rows.

    Args:
      model: cut above its lowest `cut` blocks; None leaves the batches as they are.
      params: of the frozen blocks.
      cut: how many blocks.
      rows: all of the data set.
      batch_at: batches of these rows.
      **place: `folder`, `facts` and `tell` of `keep_prefix`.
    """
    if cut is None:
        return batch_at
    lower = on_quantized(split(model, cut).lower)
    found = keep_prefix(lower, params, in_order(rows), rows.size, mask=rows.mask, **place)
    return with_prefix(batch_at, found)


class Prefix(NamedTuple):
    """The frozen lower blocks of a run."""

    cut: int | None
    """How many; `None` where nothing is kept."""
    above: Callable[[Batched, Stream], Stream]
    """`(rows, batches of them) ->` the same batches with what the blocks give for their rows."""


NO_PREFIX = Prefix(None, lambda rows, stream: stream)


def above_prefix(
    model: TextEncoder | ImageModel,
    params: PyTree,
    report: LoadReport,
    training: Training,
    tokenizer: str,
    tell: Callable[[str], None],
) -> Prefix:
    """Return the blocks that a run leaves frozen, to be computed once for each set of rows.

    What they give is kept in a file in the cache folder.

    Raises:
      ValueError: if dropout is on, or no block stands still.
    """
    if training.dropout:
        raise ValueError(
            "--keep-prefix computes the frozen blocks once, and --dropout draws anew in them at "
            "every update; leave one of the two out"
        )
    cut = cut_of(model, touched_by(params, report.new, [training]))
    if cut is None:
        words = " ".join(pattern for pattern, _ in training.rules())
        raise ValueError(
            f"--keep-prefix: with --train {words} {' '.join(training.adapter)} no lower block "
            "stands still; train fewer blocks (last:2, or --adapter NAME:layers=4|5) or leave "
            "--keep-prefix out"
        )

    def above(rows: Batched, stream: Stream) -> Stream:
        facts = {
            "weights": report.sha256,
            "tokenizer": tokenizer,
            **rows.identity,
            "blocks": cut,
            "dtype": "bfloat16" if training.bf16 else "float32",
            **({"quantize": training.quantize} if training.quantize else {}),
            "sftjax": sftjax.__version__,
            "jax": jax.__version__,
        }
        at = prefixed(
            model, params, cut, rows, stream.at,
            folder=cache_folder() / "prefix", facts=facts, tell=tell,
        )  # fmt: skip
        return Stream(stream.steps_per_epoch, at)

    return Prefix(cut, above)
