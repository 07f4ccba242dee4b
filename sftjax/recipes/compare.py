"""Run several ways of fine-tuning on the same rows and seeds: what each learns, and what it keeps.

sftjax compare --model FOLDER --data reviews.csv --methods none l2-sp:1 mixout:1 --output-dir runs/c
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from sftjax.adapters import dequantize_tree
from sftjax.core import count, partition
from sftjax.data import Table, cache_folder, read
from sftjax.evaluate import (
    accuracy,
    retention,
    same_group_retrieval,
)
from sftjax.hub import load_tokenizer
from sftjax.models import Head
from sftjax.objectives import classification
from sftjax.recipes.above_prefix import touched_by
from sftjax.recipes.bench import Bench, ModelOutputs, bench_of
from sftjax.recipes.compare_report import Row, write_comparison
from sftjax.recipes.contender import Contender, contender_of
from sftjax.recipes.deciding import pretrained
from sftjax.recipes.finetune import finetune
from sftjax.recipes.mixing import mixed
from sftjax.recipes.prepare import fitting, quantized, without_held
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import write_json
from sftjax.recipes.startup import keep_compiled
from sftjax.recipes.text_models import load_encoder
from sftjax.recipes.text_rows import Columns, Rows, encode_rows, labels_of, read_splits
from sftjax.recipes.training import Training
from sftjax.recipes.worn import PLAIN, wear
from sftjax.train import claim

ANOTHER = 10_000
"""Between the seeds of the models that one run merges."""
DEFAULT = ("none", "l2-sp:1", "l2-sp:4", "mixout:1", "features:1", "wise-ft:1", "spd")


@dataclasses.dataclass(frozen=True)
class Compare:
    """Run methods on the same rows and seeds, and draw accuracy against retention."""

    model: str
    """A folder of a model, a name on the Hub (owner/model), or asset:NAME (asset:minilm-l6)."""
    data: str
    """Labelled text (one class a row), as for `classify`."""
    output_dir: pathlib.Path
    """The comparison's folder: a row a run, report, plot. The same command goes on where it was."""
    methods: tuple[str, ...] = DEFAULT
    """NAME or NAME:DOSE as for --anchor; further words after +: `lr=5` multiplies the learning
    rate, `train=bias|new`, `phases=lp|ft`, `decay=0.7`, `coupled=0.1` (a strength),
    `importance=0.5` (of ewc), `average=swa`, `adapter=lora:r=8,targets=query|value` (again for a
    second kind), `plus=16` (LoRA+); `merge=HOW` as for `sftjax merge`, of `runs=K` models
    that differ in the order of rows. The first method is the baseline."""
    seeds: int = 4
    """Runs of each method; a seed decides the rows, their order and the head."""
    rows: int = 0
    """Labelled rows to learn from, drawn anew for each seed, classes alike; 0 is all of them."""
    elsewhere: tuple[str, ...] = ()
    """NAME=FILE of further labelled rows, of other domains, to test on."""
    reference_data: str | None = None
    """Text like that of pretraining, to measure on what was kept; else the evaluation rows."""
    reference_group: str | None = None
    """Column of the reference data that says which rows belong together (the document)."""
    columns: Columns = dataclasses.field(default_factory=Columns)
    training: Training = dataclasses.field(default_factory=Training)
    """What all methods share. Anchors are named by --methods; --dose is theirs where none is
    named."""
    eval_data: str | None = None
    """Where to evaluate; else as for `classify`."""
    validation_fraction: float = 0.1
    """Share of the training rows held out when there is nothing else to evaluate on, and by methods
    that learn or choose from such rows (tpgm, merge=greedy)."""


class Data(NamedTuple):
    """What the methods are compared on."""

    train: Table
    tests: Mapping[str, Table]
    """Name -> labelled rows; the first is the domain of the training rows."""
    reference: Table
    group: str | None


def compare(job: Compare, tell: Callable[[str], None] = say) -> list[Row]:
    """Run the comparison and write its folder.

    Returns:
      One row a run: method, seed, accuracies, what was kept.
    """
    train, evaluation = read_splits(
        job.data,
        job.eval_data,
        job.columns,
        fraction=job.validation_fraction,
        seed=job.training.seed,
    )
    tests = {"evaluation": evaluation}
    for word in job.elsewhere:
        name, equals, place = word.partition("=")
        if not equals or name in tests:
            raise ValueError(f"--elsewhere {word!r}: write NAME=FILE, each name once")
        tests[name] = read(place)
    reference = evaluation if job.reference_data is None else read(job.reference_data)
    return compare_on(job, Data(train, tests, reference, job.reference_group), tell)


def compare_on(job: Compare, data: Data, tell: Callable[[str], None] = say) -> list[Row]:
    """Run the comparison on tables at hand."""
    # The seeds of a method run the same program, each compiled only for the first of them.
    keep_compiled()
    if job.columns.task != "single-label":
        raise ValueError(
            f"compare measures accuracy, and the task is {job.columns.task}; it takes one class a "
            "row (--task single-label)"
        )
    if job.training.anchor not in ("", "none"):
        raise ValueError(
            f"--anchor {job.training.anchor}: compare takes the anchors from --methods, as in "
            f"--methods none {job.training.anchor}:1; leave --anchor out"
        )
    contenders = {text: contender_of(text, job.training) for text in job.methods}
    if len(contenders) < len(job.methods):
        twice = next(text for text in job.methods if job.methods.count(text) > 1)
        raise ValueError(f"--methods: {twice!r} stands twice; name each method once")
    names = labels_of(data.train, job.columns, job.columns.labels, least=2).names
    ways = {quantized(each.training) for each in contenders.values()}
    if len(ways) > 1:
        raise ValueError(
            f"--quantize {job.training.quantize} keeps one base for all methods, and a PiSSA or "
            "OLoRA takes its start off the whole one; compare them apart"
        )
    loaded = load_encoder(
        job.model, head=Head("sequence", names), key=jax.random.key(0), quantize=ways.pop()
    )
    tell(str(loaded.report))
    tokenizer = load_tokenizer(loaded.report.folder)
    columns = fitting(job.columns, loaded.model)
    facts = {
        "recipe": "compare",
        "weights": loaded.report.sha256,
        "tokenizer": tokenizer.sha256,
        "train_rows": data.train.fingerprint,
        "tests": {name: rows.fingerprint for name, rows in data.tests.items()},
        "reference": data.reference.fingerprint,
        "rows": job.rows,
        "validation_fraction": job.validation_fraction,
        **dataclasses.asdict(columns),
        **job.training.facts(),
    }
    claim(job.output_dir, facts)
    cache = cache_folder() / "tokens"

    def encoded(rows: Table, labelled: bool = True):
        labels = labels_of(rows, columns, names, least=1) if labelled else None
        if labelled:
            return encode_rows(rows, columns, tokenizer, labels, cache=cache)
        plain = dataclasses.replace(columns, pair=None)
        return encode_rows(rows, plain, tokenizer, None, cache=cache)

    new = loaded.report.new
    done = _done(job.output_dir / "runs.jsonl")
    wanted = [(text, seed) for seed in range(job.seeds) for text in job.methods]
    left = [pair for pair in wanted if pair not in done]
    known = job.output_dir / "pretrained.json"
    if left or not known.exists():
        bench = bench_of(
            loaded.model,
            loaded.params,
            new,
            touched_by(loaded.params, new, [each.training for each in contenders.values()]),
            {name: encoded(rows) for name, rows in data.tests.items()},
            encoded(data.reference, labelled=False),
            None if data.group is None else data.reference[data.group],
            tell,
        )
        before = bench.measure(loaded.params, tests=False)
        write_json(known, _pretrained(bench, before))
        for number, (text, seed) in enumerate(left):
            mine, held = draw(data.train, columns.label, job.rows, seed), None
            if contenders[text].holds_out:
                mine, held = without_held(mine, columns, job.validation_fraction, seed)
                held = encoded(held)
            row = _run(bench, before, encoded(mine), held, contenders[text], text, seed)
            done[text, seed] = row
            with (job.output_dir / "runs.jsonl").open("a", encoding="utf8") as file:
                file.write(json.dumps(row) + "\n")
            tell(f"{number + 1}/{len(left)} {_line(row)}")
    rows = [done[pair] for pair in wanted]
    before = json.loads(known.read_text("utf8"))
    write_comparison(rows, before, next(iter(data.tests)), data.group, job.output_dir, tell)
    return rows


def _run(
    bench: Bench,
    before: ModelOutputs,
    train: Rows,
    held_out: Rows | None,
    contender: Contender,
    text: str,
    seed: int,
) -> Row:
    params, new = bench.fresh(seed), bench.new
    size = contender.training.rows
    held = None if held_out is None else bench.stream(held_out, size, seed)
    worn, models, fits, trained = PLAIN, [], [], 0
    for number in range(contender.runs):
        training = dataclasses.replace(contender.training, seed=seed + ANOTHER * number)
        key = jax.random.key(training.seed)
        worn = wear(training.adapter, params, new, key, quantize=training.quantize)
        tuned = finetune(
            worn.params,
            worn.new,
            worn.parts(bench.parts(classification, held)),
            bench.stream(train, size, training.seed),
            training,
            title=text,
            held=worn.held,
        )
        trained = count(partition(tuned.params, tuned.selection.trainable)[0])
        models.append(tuned.params if contender.how is None else worn.weights(tuned.params))
        fits.append(tuned.fit)
    found = models[0]
    if contender.how is not None:
        score = None if held_out is None else bench.score(held_out)
        found = mixed(contender.how, pretrained(params, new), models, score).params
        worn = PLAIN
    after = bench.measure(found, worn=worn)
    kept = retention(
        pretrained(dequantize_tree(params), new),
        worn.weights(found),
        embeddings=(before.embeddings, after.embeddings),
        groups=bench.groups,
        resamples=2,  # the intervals here are over seeds
    )
    scores = {name: accuracy(*pair) for name, pair in after.predictions.items()}
    others = list(scores.values())[1:]
    retrieved = {"retrieval": kept.tasks[0].after} if kept.tasks else {}
    assert kept.features is not None
    return {
        "method": text,
        "seed": seed,
        **scores,
        **({"elsewhere": float(np.mean(others))} if others else {}),
        **retrieved,
        "cka": kept.features.value,
        "moved": kept.whole.distance,
        "train_loss": float(np.mean([_last_loss(fit.history) for fit in fits])),
        "trained": trained,
        "seconds": round(sum(fit.seconds for fit in fits), 2),
    }


def draw(table: Table, label: str, rows: int, seed: int) -> Table:
    """Return so many rows of a table, classes alike, drawn by a seed; 0 is all of them.

    Raises:
      ValueError: if a class has too few rows.

    >>> table = Table({"label": ["a", "b", "a", "b"]}, "four")
    >>> draw(table, "label", 2, seed=0)["label"]
    ['a', 'b']
    """
    if not rows:
        return table
    labels = np.asarray([str(value) for value in table[label]])
    names = np.unique(labels)
    if rows % len(names):
        raise ValueError(
            f"--rows {rows} cannot be shared alike by {len(names)} classes; ask for a multiple of "
            f"{len(names)}"
        )
    each, chosen = rows // len(names), []
    for number, name in enumerate(names):
        mine = np.flatnonzero(labels == name)
        if len(mine) < each:
            raise ValueError(
                f"--rows {rows} asks for {each} rows of class {name!r}, and {table.name} has "
                f"{len(mine)}; ask for fewer, or leave the class out"
            )
        chosen.append(np.random.default_rng([seed, number]).choice(mine, each, replace=False))
    return table.take(np.sort(np.concatenate(chosen)))


def _last_loss(history: Sequence[Mapping[str, float]]) -> float:
    return [entry["loss"] for entry in history if "loss" in entry][-1]


def _done(path: pathlib.Path) -> dict[tuple[str, int], Row]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text("utf8").splitlines() if line.strip()]
    return {(row["method"], row["seed"]): row for row in rows}


def _line(row: Row) -> str:
    numbers = [f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float) and k != "seconds"]
    return f"{row['method']}, seed {row['seed']}: {', '.join(numbers)}"


def _pretrained(bench: Bench, before: ModelOutputs) -> dict[str, float]:
    """Return what the untouched model scores in the measures of what is kept."""
    found = {"cka": 1.0, "moved": 0.0}
    if bench.groups is not None:
        found["retrieval"] = same_group_retrieval(before.embeddings, bench.groups).precision
    return found
