"""What a chat run leaves on disk, and how it is told."""

import math

from sftjax.adapters import dequantize_tree
from sftjax.core import PyTree
from sftjax.evaluate import loss_curve, moved, table_markdown
from sftjax.hub import Data, card_of
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.chat_parts import not_on_the_head
from sftjax.recipes.chat_rows import LoadedDecoder, folder_name
from sftjax.recipes.deciding import pretrained
from sftjax.recipes.run_folder import write_json, write_text
from sftjax.recipes.training import Tuned
from sftjax.recipes.watching import faults_told
from sftjax.recipes.weights_folder import write_weights
from sftjax.recipes.worn import Worn


def write_run(
    job: TuneChat,
    decoder: LoadedDecoder,
    worn: Worn,
    tuned: Tuned,
    weights: PyTree,
    metrics: dict[str, float],
    samples: list[dict[str, str]],
    read: tuple[Data, ...],
    packed: str,
) -> None:
    """Write the model, the adapter, the numbers, the report and the plot of a run.

    Args:
      job: what was to be done.
      decoder: the model as it was loaded.
      worn: its params with adapters.
      tuned: what training gave.
      weights: the same as plain params.
      metrics: before and after.
      samples: questions and answers.
      read: the conversations, for the card.
      packed: a line on how full the batches were.
    """
    folder, report = job.output_dir, decoder.report
    card = card_of(report)._replace(data=read)
    adapted = write_weights(
        folder, decoder.model, decoder.params, report, worn, tuned, job.training, card,
        words=not_on_the_head(job.training.adapter, decoder.model), weights=weights,
    )  # fmt: skip
    if adapted:
        adapted.insert(0, "## The adapter")
    distances = moved(pretrained(dequantize_tree(decoder.params), report.new), weights)
    loss_curve(tuned.fit.history, folder / "plots" / "loss.png")
    write_json(
        folder / "metrics.json",
        {
            **metrics,
            "best_step": tuned.fit.best_step,
            "num_steps": tuned.num_steps,
            "seconds": tuned.fit.seconds,
            "history": tuned.fit.history,
            "faults": list(tuned.fit.faults),
            "samples": samples,
            "moved": distances,
        },
    )
    write_text(
        folder / "report.md",
        "\n\n".join(
            [
                f"# {folder_name(job.model)} on {folder_name(job.data)}",
                f"{tuned.num_steps} updates, the best at {tuned.fit.best_step} by "
                f"{job.training.metric_for_best_model}; {tuned.fit.seconds:.0f} s in training "
                f"steps. {packed}.",
                "## Held-out answers and general text, before and after",
                measures_table(metrics),
                "## Answers",
                told_samples(samples),
                *adapted,
                "## What moved",
                f"```\n{tuned.description}\n```",
                "## Training",
                *faults_told(tuned.fit.faults),
                "![loss](plots/loss.png)",
            ]
        )
        + "\n",
    )


def measures_table(metrics: dict[str, float]) -> str:
    """Return measures before and after, a row each, in Markdown."""
    names = [name.removeprefix("before_") for name in metrics if name.startswith("before_")]
    rows = [
        {
            "measure": name.replace("_", " "),
            "before": metrics[f"before_{name}"],
            "after": metrics.get(f"after_{name}", math.nan),
        }
        for name in names
    ]
    return table_markdown(rows, ["measure", "before", "after"])


def told_samples(samples: list[dict[str, str]]) -> str:
    """Return questions and answers as lists in Markdown."""
    return "\n\n".join(
        "\n".join(f"- {who}: {text}" for who, text in sample.items()) for sample in samples
    )
