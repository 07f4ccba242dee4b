"""Merge fine-tuned models that came from one pretrained model: soups, WiSE-FT, task vectors.

sftjax merge BASE runs/a/model runs/b/model --how uniform --output-dir runs/soup
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import tyro

from sftjax.core import PyTree, flatten
from sftjax.data import read, splits
from sftjax.evaluate import Interval, Retention, retention, table_markdown
from sftjax.hub import Data, Metric, card_of, load_tokenizer, save
from sftjax.models import Head
from sftjax.recipes.deciding import pretrained
from sftjax.recipes.keeping import Keeper
from sftjax.recipes.mixing import TITLES, How, Mixed, mixed, read_how
from sftjax.recipes.prepare import fitting
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import named, write_json, write_text
from sftjax.recipes.scoring import Scorer, check_metric
from sftjax.recipes.streams import in_order
from sftjax.recipes.text_models import LoadedEncoder, load_encoder
from sftjax.recipes.text_rows import PROBLEM_TYPES, Columns, Rows, encode_rows, labels_of
from sftjax.recipes.training import LESS_IS_BETTER
from sftjax.train import claim


@dataclasses.dataclass(frozen=True)
class Merge:
    """Merge models that were fine-tuned from one pretrained model into one."""

    base: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")]
    """The pretrained model they came from: a folder, a name on the Hub, or asset:NAME."""
    models: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL [MODEL ...]")
    ]
    """Folders of one or more fine-tuned models, of one shape and one set of labels."""
    output_dir: pathlib.Path
    """The folder: model, metrics, report."""
    how: str = "uniform"
    """`uniform` (mean of the weights), `greedy` (each model that does not harm on --data),
    `wise:A` (A of the way from the base to one model), `add:S` and `negate:S` (S times what each
    model learned), `ties:K` (the largest K of what each learned, where they agree in sign)."""
    data: str | None = None
    """Labelled rows to evaluate on; a greedy soup is chosen on them."""
    columns: Columns = dataclasses.field(default_factory=Columns)
    """Columns of --data; --task is not read, the models say it."""
    metric_for_best_model: str = "eval_loss"
    """What a greedy soup is chosen by."""
    per_device_eval_batch_size: int = 64
    """Rows per device in evaluation."""


class Merged(NamedTuple):
    """What came out."""

    params: PyTree
    mixed: Mixed
    metrics: dict[str, Interval | float]
    """On the data, if there are any."""
    retention: Retention
    folder: pathlib.Path


def merge(job: Merge, tell: Callable[[str], None] = say) -> Merged:
    """Load, merge and save; models that cannot be merged are refused before anything is computed.

    Raises:
      ValueError: if the way to merge cannot be read, or the models differ in architecture, shape,
        labels or tokenizer; it says which and where.
    """
    how = read_how(job.how, len(job.models))
    if how.name == "greedy" and job.data is None:
        raise ValueError("a greedy soup is chosen on labelled rows; give --data, or use uniform")
    models = [load_encoder(folder) for folder in job.models]
    head = models[0].model.head
    base = load_encoder(job.base, head=head)
    _check(job, base, models)
    new = tuple(base.report.new)
    tell(f"{how} of {len(models)}, on the base {base.report}")
    if new and len(models) > 1:
        tell(
            f"the base has no {', '.join(new[:4])}: the models' own are averaged, which makes "
            "sense if their runs began at one head (the same --seed)"
        )
    rows = None if job.data is None else _rows(job, models[0])
    facts = {
        "recipe": "merge",
        "how": str(how),
        "base": base.report.sha256,
        "models": [loaded.report.sha256 for loaded in models],
        "rows": None if rows is None else rows.table.fingerprint,
        "metric_for_best_model": job.metric_for_best_model,
    }
    claim(job.output_dir, facts)
    scorer = None if rows is None else _scorer(job, models[0], rows)
    found = mixed(
        how,
        pretrained(base.params, new),
        [loaded.params for loaded in models],
        None if scorer is None else lambda params: _score(job, scorer, params),
    )
    metrics: dict[str, Interval | float] = {}
    if scorer is None or rows is None:
        held = retention(pretrained(base.params, new), found.params)
    else:
        metrics = scorer.intervals(scorer.outputs(found.params))
        held = Keeper(base.model, base.params, new, rows).kept(found.params)
    _write(job, how, base, models[0], rows, found, metrics, held)
    if metrics:
        lines = [{"metric": name, "value": value} for name, value in metrics.items()]
        tell(table_markdown(lines, ["metric", "value"]))
    for line in _tasting(job, found):
        tell(line)
    tell(f"\n{held}\n")
    tell(f"model and report: {job.output_dir}")
    return Merged(found.params, found, metrics, held, job.output_dir)


def _check(job: Merge, base: LoadedEncoder, models: Sequence[LoadedEncoder]) -> None:
    first, where = models[0], job.models[0]
    shapes = _shapes(first)
    tokenizer = _tokenizer(first)
    for folder, loaded in zip(job.models, models, strict=True):
        if loaded.report.new:
            raise ValueError(
                f"{folder} lacks {loaded.report.new[0]!r}: it is no whole fine-tuned model. Give "
                "the folder that `sftjax classify` saved (its `model`)"
            )
        if loaded.model.head != first.model.head:
            raise ValueError(
                f"{folder} has {_words(loaded.model.head)} and {where} {_words(first.model.head)}; "
                "models can be merged that tell apart the same labels, in the same order"
            )
        theirs = _tokenizer(loaded)
        if tokenizer and theirs and theirs != tokenizer:
            raise ValueError(
                f"{folder} and {where} have different tokenizers, so the same word is another row "
                "of their embeddings; merge models of one tokenizer"
            )
    for folder, loaded in zip((job.base, *job.models), (base, *models), strict=True):
        if loaded.model.family != first.model.family:
            raise ValueError(
                f"{folder} is a {loaded.model.family} and {where} a {first.model.family}; weights "
                "of different architectures have no mean"
            )
        theirs = _shapes(loaded)
        for path in {**shapes, **theirs}:
            if shapes.get(path) != theirs.get(path):
                raise ValueError(
                    f"{path!r} has shape {theirs.get(path, 'none')} in {folder} and "
                    f"{shapes.get(path, 'none')} in {where}; merge models that came from one base"
                )


def _shapes(loaded: LoadedEncoder) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten(loaded.params).items()}


def _tokenizer(loaded: LoadedEncoder) -> str:
    report = loaded.report
    return load_tokenizer(report.folder).sha256 if report.tokenizer_files else ""


def _words(head: Head) -> str:
    labels = f" for {', '.join(head.labels[:6])}" if head.labels else ""
    return f"a {head.kind} head{labels} ({head.problem_type})"


def _task(head: Head) -> Any:
    if head.kind == "token":
        return "token"
    if head.kind != "sequence":
        raise ValueError(
            f"--data measures models that classify texts or tokens, and these have a {head.kind} "
            "head; leave --data out"
        )
    return next(task for task, problem in PROBLEM_TYPES.items() if problem == head.problem_type)


def _rows(job: Merge, loaded: LoadedEncoder) -> Rows:
    assert job.data is not None
    head = loaded.model.head
    columns = dataclasses.replace(fitting(job.columns, loaded.model), task=_task(head))
    check_metric(job.metric_for_best_model, columns.task, head.labels)
    kinds = splits(job.data)
    table = read(job.data, next((s for s in ("validation", "test") if s in kinds), None))
    labels = labels_of(table, columns, head.labels, least=1)
    return encode_rows(table, columns, load_tokenizer(loaded.report.folder), labels)


def _scorer(job: Merge, loaded: LoadedEncoder, rows: Rows) -> Scorer:
    model = loaded.model
    return Scorer(
        jax.jit(lambda params, batch: model.apply(params, batch)),
        rows,
        _task(model.head),
        in_order(rows, job.per_device_eval_batch_size),
    )


def _score(job: Merge, scorer: Scorer, params: PyTree) -> float:
    return _sign(job) * scorer.scores(params)[job.metric_for_best_model]


def _sign(job: Merge) -> float:
    return -1.0 if job.metric_for_best_model.endswith(LESS_IS_BETTER) else 1.0


def _tasting(job: Merge, found: Mixed) -> list[str]:
    """Return how a greedy soup came about, a line a model."""
    if found.soup is None:
        return []
    return [
        f"{'kept' if trial.kept else 'left out'}: {job.models[trial.model]} "
        f"({job.metric_for_best_model} {_sign(job) * trial.score:.4g} with it)"
        for trial in found.soup.history
    ]


def _write(
    job: Merge,
    how: How,
    base: LoadedEncoder,
    first: LoadedEncoder,
    rows: Rows | None,
    found: Mixed,
    metrics: dict[str, Interval | float],
    held: Retention,
) -> None:
    chosen = " (and chosen)" if found.soup else ""
    words = f"{TITLES[how.name]} ({how}) of {len(job.models)} fine-tuned models"
    card = card_of(base.report)._replace(
        data=()
        if rows is None
        else (Data(named(rows.table.name), len(rows.encoded), f"evaluation{chosen}"),),
        metrics=tuple(
            Metric(name.removeprefix("eval_"), value.value, value.low, value.high, "evaluation")
            for name, value in metrics.items()
            if isinstance(value, Interval)
        ),
        trained=words,
    )
    folder = job.output_dir
    save(folder / "model", first.model, found.params, report=first.report, card=card)
    write_json(
        folder / "metrics.json",
        {
            **metrics,
            "how": str(how),
            "soup": None if found.soup is None else found.soup.history,
            "moved": held.moved,
            "retention": held.rows(),
        },
    )
    lines = [{"metric": name, "value": value} for name, value in metrics.items()]
    text = [
        f"# {words[0].upper()}{words[1:]}",
        "\n".join(f"- {folder}" for folder in job.models),
        *(["## Evaluation", table_markdown(lines, ["metric", "value"])] if metrics else []),
        *(["```\n" + "\n".join(_tasting(job, found)) + "\n```"] if found.soup else []),
        "## What was kept",
        f"```\n{held}\n```",
    ]
    write_text(folder / "report.md", "\n\n".join(text) + "\n")
