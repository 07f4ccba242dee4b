"""What a comparison of methods writes: a table, paired differences, a plot of learned and kept."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from sftjax.evaluate import paired_difference, pareto, point, summarize, table, table_markdown
from sftjax.recipes.methods import parse
from sftjax.recipes.run_folder import write_json, write_text

Row = dict[str, Any]
KEPT = {
    "retrieval": "retention: retrieval P@1 of the reference rows",
    "cka": "retention: CKA with the pretrained features",
}


def write_comparison(
    rows: list[Row],
    before: dict[str, float],
    home: str,
    group: str | None,
    folder: pathlib.Path,
    tell: Callable[[str], None],
) -> None:
    """Write metrics.json, report.md and the Pareto plots of a comparison, and tell the table.

    Args:
      rows: a row a run, those of the baseline first.
      before: what the untouched model scores in the measures of what is kept.
      home: the domain of the training rows.
      group: the column of the reference rows that says which belong together.
      folder: the comparison's.
      tell: is given what a person wants to read.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    seeds = len({row["seed"] for row in rows})
    metrics = [
        name
        for name in rows[0]
        if name not in ("method", "seed", "seconds", "train_loss", "trained")
    ]
    means = summarize(rows, "method", metrics)
    several, baseline = seeds > 1, methods[0]
    shown = [
        {
            "method": row["method"],
            **{m: f"{row[m]:.3f} ± {row[f'{m}_sd']:.3f}" if several else row[m] for m in metrics},
        }
        for row in means
    ]
    shown.append(
        {
            "method": "(pretrained)",
            **{m: f"{before[m]:.3f}" if m in before else "" for m in metrics},
        }
    )
    differences: list[Row] = []
    if several and len(methods) > 1:
        differences = paired_difference(rows, {"method": baseline}, "method", metrics=metrics)
    kept = "retrieval" if "retrieval" in metrics else "cka"
    across = "elsewhere" if "elsewhere" in metrics else home
    for name, measure in {home: home, across: across}.items():
        pareto(
            [_point(text, rows, measure, kept) for text in methods],
            folder / "plots" / f"pareto-{name}.png",
            pretrained=before[kept],
            xlabel=KEPT[kept],
            ylabel=f"accuracy, {measure}",
        )
    write_json(
        folder / "metrics.json",
        {"runs": rows, "pretrained": before, "means": means, "differences": differences},
    )
    columns = ["method", *metrics]
    text = [f"# {len(methods)} methods, {seeds} seeds"]
    text.append(_explained(home, group, metrics))
    text.append(table_markdown(shown, columns))
    if differences:
        text.append(f"## Against `{baseline}`, paired by seed")
        text.append("Mean difference with its 95 % t interval.")
        plain = [{name: row[name] for name in columns} for row in differences]
        text.append(table_markdown(plain, columns))
    text.append(f"![accuracy against retention](plots/pareto-{across}.png)")
    write_text(folder / "report.md", "\n\n".join(text) + "\n")
    tell("\n" + table(shown, columns))
    tell(f"report and plots: {folder}")


def _explained(home: str, group: str | None, metrics: Sequence[str]) -> str:
    words = [f"Mean and standard deviation over seeds. `{home}` is the domain of the training rows"]
    if "elsewhere" in metrics:
        words.append("`elsewhere` the mean of the others")
    if "retrieval" in metrics:
        words.append(
            f"`retrieval` how often the nearest other reference row is of the same {group}"
        )
    words.append("`cka` the likeness of the features to the pretrained model's")
    words.append("`moved` the distance of the weights from it.")
    return ", ".join(words)


def _point(text: str, rows: list[Row], measure: str, kept: str) -> Any:
    mine = [row for row in rows if row["method"] == text]
    anchor, *words = text.split("+")
    name, dose = parse(anchor)
    method = "+".join([name, *words])
    accuracies, retained = ([row[what] for row in mine] for what in (measure, kept))
    return point(text, accuracies, retained, method=method, dose=dose)
