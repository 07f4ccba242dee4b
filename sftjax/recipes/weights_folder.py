"""What a run leaves of its weights: the folders of the model and of the adapter, and their card."""

import pathlib
from collections.abc import Sequence

from sftjax.core import PyTree, flatten, partition
from sftjax.hub import Card, LoadReport, save
from sftjax.models import CausalModel, ImageModel, Seq2SeqModel, TextEncoder
from sftjax.recipes.adapter_folder import save_adapted
from sftjax.recipes.deciding import settings_told, told
from sftjax.recipes.training import Training, Tuned
from sftjax.recipes.worn import Worn, told_of, trained_beside


def write_weights(
    folder: pathlib.Path,
    model: TextEncoder | ImageModel | CausalModel | Seq2SeqModel,
    base: PyTree,
    report: LoadReport,
    worn: Worn,
    tuned: Tuned,
    training: Training,
    card: Card,
    *,
    words: Sequence[str] | None = None,
    weights: PyTree | None = None,
) -> list[str]:
    """Write `model/`, or `adapter/`, or both.

    Args:
      folder: of the run.
      model: what was trained.
      base: its params as they were loaded.
      report: of the load.
      worn: its params with adapters.
      tuned: what training gave.
      training: how it was asked for.
      card: of the model; what is known here of training is added.
      words: of `--adapter`, where they are not `training.adapter`.
      weights: the tuned model's plain params, where they are at hand.

    Returns:
      What the report says of the adapter: its table, then its layout; empty without.
    """
    adapted: list[str] = []
    if worn.plan is not None:
        moved = flatten(partition(tuned.params, tuned.selection.trainable)[0])
        layout = save_adapted(
            folder / "adapter", model, tuned.params, worn.plan,
            words=training.adapter if words is None else words, report=report,
            trained=trained_beside(moved),
        )  # fmt: skip
        adapted = ["\n\n".join(told_of(worn, base)), layout]
    if worn.mergeable:
        plain = worn.weights(tuned.params) if weights is None else weights
        facts = training_facts(tuned, training)
        settings = settings_told(training, facts["anchored"])
        described = card._replace(settings=settings, **facts)
        save(folder / "model", model, plain, report=report, card=described)
    return adapted


def training_facts(tuned: Tuned, training: Training) -> dict[str, str]:
    """Return what a card says of what moved, what did not, and what was held."""
    rows = [row for row in tuned.description.rows if row.rate > 0]
    frozen = sum(row.parameters for row in tuned.description.rows if row.rate == 0)
    held = sum(row.anchored for row in tuned.description.rows)
    return {
        "trained": ", ".join(f"{row.rule} ({row.parameters:,} parameters)" for row in rows),
        "frozen": f"{frozen:,} parameters" if frozen else "",
        "anchored": told(training, tuned.strength, held),
    }
