"""The demo: a real encoder, real sentences, and what fine-tuning keeps and loses.

    sftjax demo                 # under 5 minutes on 2 CPU cores, after a download of 86 MB

MiniLM-L6 (BERT, 22.7 M parameters) learns the sentiment of film-review sentences, once freely and
once held to its pretrained weights by an L2-SP dose. Both are tested at home and on three domains
they never saw, and on what pretraining taught them: which editorial a sentence comes from.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sftjax.core import PyTree
from sftjax.data import Table, cache_folder, fetch, read
from sftjax.evaluate import (
    Interval,
    Retention,
    accuracy,
    bootstrap,
    domains,
    loss_curve,
    moved_per_block,
    table,
    table_markdown,
)
from sftjax.hub import Data, LoadReport, Metric, Tokenizer, card_of, load_tokenizer, save
from sftjax.models import Head, TextEncoder
from sftjax.objectives import classification
from sftjax.recipes.finetune import finetune
from sftjax.recipes.keeping import Embedder, Keeper, first
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import write_json, write_text
from sftjax.recipes.scoring import Scorer
from sftjax.recipes.streams import in_order, shuffled
from sftjax.recipes.text_models import load_encoder
from sftjax.recipes.text_parts import text_parts
from sftjax.recipes.text_rows import Columns, Rows, encode_rows, labels_of
from sftjax.recipes.training import Training, Tuned
from sftjax.recipes.worn import told_of, wear
from sftjax.train import compile_step, fit, init, make_step

HOME = "movie"
ELSEWHERE = ("amazon", "tweets", "nyt")
COLUMNS = Columns(max_length=64)


@dataclasses.dataclass(frozen=True)
class Demo:
    """Fetch a real model and sentences (86 MB), tune with and without anchor, and compare."""

    output_dir: pathlib.Path = pathlib.Path("runs/demo")
    """The run's folder: model, metrics, report, plots."""
    dose: float = 2.0
    """How strongly the anchored run is held to the pretrained weights: 0 not at all, 4 leaves a
    quarter of the distance."""
    train: tuple[str, ...] = ()
    """What moves, in both runs; last:2, or with an adapter what is new."""
    adapter: tuple[str, ...] = ()
    """Adapters beside the weights, in both runs, as for `classify` (lora:r=8)."""
    learning_rate: float = 3e-4
    """Peak learning rate, in both runs."""
    num_train_epochs: float = 1.0
    """Passes over the film sentences, in both runs."""
    train_rows: int = 3200
    """Use only so many film sentences to learn from; 0 is all of them (7,108)."""
    eval_rows: int = 500
    """At most so many test sentences a domain; 0 is all of them."""
    retrieval_rows: int = 1000
    """About so many editorial sentences for the retrieval test, whole editorials; 0 is all."""
    seed: int = 0
    """Seed of the head, the order of sentences and the intervals."""


class Row(NamedTuple):
    """One line of the table."""

    accuracy: dict[str, Interval]
    """By domain."""
    kept: Retention

    @property
    def retrieval(self) -> float:
        """How often the nearest other sentence is of the same editorial."""
        return self.kept.tasks[0].after

    @property
    def distance(self) -> float:
        """How far the pretrained weights moved, all of them: |w - w0|."""
        return self.kept.whole.distance


def demo(job: Demo, tell: Callable[[str], None] = say) -> dict[str, Row]:
    """Run the demo and write its folder.

    Returns:
      `{"before": ..., "without anchor": ..., "with anchor": ...}`.
    """
    from sftjax.data.rated_sentences import prepare_sentences, retrieval_set

    start = time.monotonic()
    model_folder, archive = fetch("minilm-l6"), fetch("rated-sentences")
    builders = prepare_sentences(archive, configs=(HOME, *ELSEWHERE))
    head = Head("sequence", ("negative", "positive"))
    model, params, report = load_encoder(model_folder, head=head, key=jax.random.key(job.seed))
    tokenizer = load_tokenizer(report.folder)
    tell(str(report))
    worn = wear(job.adapter, params, report.new, jax.random.key(job.seed))
    if not worn.mergeable:
        raise ValueError(
            f"the demo compares weights, and {' '.join(job.adapter)} cannot be merged into any; "
            "take one that can (lora, dora, ia3), or `sftjax classify`"
        )
    for text in told_of(worn, params):
        tell(text)

    train = _rows(first(read(builders[HOME], "train"), job.train_rows), tokenizer)
    tests = {
        domain: _rows(first(read(builders[domain], "test"), job.eval_rows), tokenizer)
        for domain in (HOME, *ELSEWHERE)
    }
    articles = first(retrieval_set(archive), job.retrieval_rows, "document")
    sentences = encode_rows(articles, COLUMNS, tokenizer, None, cache=cache_folder() / "tokens")
    keeper = Keeper(model, params, report.new, sentences, group="document")
    run = jax.jit(lambda params, batch: model.apply(params, batch))
    scorers = {
        name: Scorer(run, rows, "single-label", in_order(rows)) for name, rows in tests.items()
    }
    tell(
        f"{len(train.encoded):,} film sentences to learn from; tests: "
        + ", ".join(f"{len(rows.encoded):,} {name}" for name, rows in tests.items())
        + f"; {len(articles):,} editorial sentences to remember by"
    )
    probed = _probe(keeper.embedder, params, train, tests, job.seed)
    results = {"before": Row(probed, keeper.kept(params))}
    tuned: dict[str, Tuned] = {}
    for name, dose in (("without anchor", 0.0), ("with anchor", job.dose)):
        training = Training(
            train=job.train,
            adapter=job.adapter,
            anchor="l2-sp",
            dose=dose,
            learning_rate=job.learning_rate,
            num_train_epochs=job.num_train_epochs,
            seed=job.seed,
        )
        tuned[name] = finetune(
            worn.params,
            worn.new,
            worn.parts(text_parts(model, classification)),
            shuffled(train, training.rows, job.seed),
            training,
            title=name,
            held=worn.held,
            tell=tell if dose else lambda _: None,
        )
        weights = worn.weights(tuned[name].params)
        tuned[name] = tuned[name]._replace(params=weights)
        found = {domain: _accuracy(scorers[domain], weights) for domain in tests}
        results[name] = Row(found, keeper.kept(weights))
        tell(f"{name}: {results[name].kept}\n")
    seconds = time.monotonic() - start
    _write(job, model, report, tuned, results, train, seconds)
    tell("\n" + table(*_table(results)))
    tell(
        "\nAccuracy with 95 % bootstrap intervals. Before: a linear classifier on the frozen "
        "model's embeddings.\nretrieval: how often the nearest other sentence is of the same "
        f"editorial.\n{seconds:.0f} s; model, report and plots: {job.output_dir}"
    )
    return results


def _rows(table: Table, tokenizer: Tokenizer) -> Rows:
    labels = labels_of(table, COLUMNS, (), least=2)
    return encode_rows(table, COLUMNS, tokenizer, labels, cache=cache_folder() / "tokens")


def _probe(
    embedder: Embedder, params: PyTree, train: Rows, tests: dict[str, Rows], seed: int
) -> dict[str, Interval]:
    """Accuracy of a linear classifier on the embeddings of the model as it came."""
    features = embedder(params, train)
    center, spread = features.mean(0), features.std(0) + 1e-6

    def scaled(values: np.ndarray) -> jax.Array:
        return jnp.asarray((values - center) / spread)

    def apply(params: PyTree, batch: Any, key: Any = None) -> jax.Array:
        return batch["x"] @ params["kernel"] + params["bias"]

    assert train.labels is not None
    batch = {"x": scaled(features), "labels": jnp.asarray(train.labels.values)}
    weights = {"kernel": jnp.zeros((features.shape[1], 2)), "bias": jnp.zeros(2)}
    tx = optax.adamw(1e-2, weight_decay=1e-1)
    moving = jax.tree.map(lambda _: True, weights)
    state, fixed = init(weights, moving, tx, jax.random.key(seed))
    step = compile_step(make_step(classification(apply), tx))
    weights = fit(step, state, fixed, lambda _: batch, 200, log_steps=200).state.trainable
    found = {}
    for name, rows in tests.items():
        assert rows.labels is not None
        logits = apply(weights, {"x": scaled(embedder(params, rows))})
        found[name] = bootstrap(accuracy, np.asarray(logits).argmax(-1), rows.labels.values)
    return found


def _accuracy(scorer: Scorer, params: PyTree) -> Interval:
    return bootstrap(accuracy, scorer.outputs(params).argmax(-1), scorer.labels)


def _table(results: dict[str, Row]) -> tuple[list[dict[str, Any]], list[str]]:
    rows = [
        {"run": name, **row.accuracy, "retrieval": row.retrieval, "moved": row.distance}
        for name, row in results.items()
    ]
    return rows, ["run", HOME, *ELSEWHERE, "retrieval", "moved"]


def _write(
    job: Demo,
    model: TextEncoder,
    report: LoadReport,
    tuned: dict[str, Tuned],
    results: dict[str, Row],
    train: Rows,
    seconds: float,
) -> None:
    folder = job.output_dir
    kept, run = results["with anchor"], tuned["with anchor"]
    card = card_of(report)._replace(
        title="MiniLM-L6, sentiment of sentences",
        data=(Data(train.table.name, len(train.encoded), "train"),),
        metrics=tuple(
            Metric("accuracy", interval.value, interval.low, interval.high, name)
            for name, interval in kept.accuracy.items()
        ),
        trained=", ".join(row.rule for row in run.description.rows if row.rate),
        anchored=f"decoupled L2-SP, dose {job.dose:g} (strength {run.strength:.4g})",
    )
    save(folder / "model", model, run.params, report=report, card=card)
    for name, one in tuned.items():
        title = f"Training {name}"
        loss_curve(
            one.fit.history, folder / f"plots/loss-{name.replace(' ', '-')}.png", title=title
        )
    blocks = {name: results[name].kept.moved for name in tuned}
    moved_per_block(blocks, folder / "plots/moved.png")
    domains({name: row.accuracy for name, row in results.items()}, folder / "plots/domains.png")
    facts = {
        name: {
            "accuracy": row.accuracy,
            "retrieval": row.retrieval,
            "distance": row.distance,
            "retention": row.kept.rows(),
        }
        for name, row in results.items()
    }
    histories = {name: one.fit.history for name, one in tuned.items()}
    write_json(
        folder / "metrics.json",
        {"results": facts, "moved": blocks, "history": histories, "seconds": seconds},
    )
    text = [
        "# Sentiment of sentences: what fine-tuning learns and what it keeps",
        table_markdown(*_table(results)),
        "Accuracy with 95 % bootstrap intervals; `movie` is what the model was trained on, the "
        "other domains it never saw. *before* is a linear classifier on the embeddings of the "
        "frozen model. *retrieval* is how often the nearest other sentence, by the model's "
        f"embeddings, is of the same editorial ({kept.kept.tasks[0].rows:,} sentences): what "
        "pretraining taught, and nothing that sentiment needs. *moved* is the distance of the "
        "weights from where they started.",
        "![accuracy by domain](plots/domains.png)",
        "![how far each block moved](plots/moved.png)",
        "## What was kept",
        *(f"{name.capitalize()}:\n\n```\n{results[name].kept}\n```" for name in tuned),
        "## What moved",
        f"```\n{run.description}\n```",
        "![loss](plots/loss-with-anchor.png)",
    ]
    write_text(folder / "report.md", "\n\n".join(text) + "\n")
