"""What stays the same while methods are compared: the model, its frozen prefix, the tests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sftjax.core import Batch, Objective, PyTree, flatten, map_with_path
from sftjax.data import Batches, bucket_lengths
from sftjax.evaluate import predict
from sftjax.models import TextEncoder, split
from sftjax.objectives import Apply
from sftjax.recipes.above_prefix import cut_of, prefixed
from sftjax.recipes.methods import Parts
from sftjax.recipes.scoring import Scorer
from sftjax.recipes.streams import Stream, in_order
from sftjax.recipes.text_parts import text_parts
from sftjax.recipes.text_rows import Rows
from sftjax.recipes.trunks import model_with
from sftjax.recipes.worn import PLAIN, Worn


class ModelOutputs(NamedTuple):
    """What a model says and how it sees the reference rows."""

    predictions: dict[str, tuple[np.ndarray, np.ndarray]]
    """Test -> (predicted class, class)."""
    embeddings: np.ndarray
    """(N, D), mean-pooled, of the reference rows."""


class Bench(NamedTuple):
    """A model, what is kept of its frozen prefix, and the rows it is measured on."""

    model: TextEncoder
    params: PyTree
    new: tuple[str, ...]
    cut: int | None
    """How many of the lowest blocks are computed once for all; None for none."""
    tests: Mapping[str, tuple[Rows, Stream]]
    reference: tuple[Rows, Stream]
    groups: Any
    """Of the reference rows."""
    apply: Apply
    """The model, or what is above the cut."""
    embedder: Apply
    run: Callable[[PyTree, Batch], jax.Array]
    embed: Callable[[PyTree, Batch], jax.Array]

    def fresh(self, seed: int) -> PyTree:
        """Return the pretrained params with the new leaves drawn by a seed."""
        drawn = flatten(self.model.init(jax.random.key(seed)))
        return map_with_path(
            lambda path, leaf: drawn[path] if path in self.new else leaf, self.params
        )

    def parts(
        self, objective: Callable[[Apply], Objective], held_out: Stream | None = None
    ) -> Parts:
        """Return the parts of the model above the kept prefix."""
        return text_parts(self.model, objective, cut=self.cut, held_out=held_out)

    def stream(self, rows: Rows, size: int, seed: int) -> Stream:
        """Return training batches of rows, shuffled by a seed."""
        # Two padded lengths and not four: runs are short here, and each length compiles.
        lengths = bucket_lengths(rows.encoded.lengths, most=2, longest=rows.encoded.max_length)
        assert rows.labels is not None
        batches = Batches(rows.encoded, rows.labels.values, size, lengths, seed, shuffle=True)
        return Stream(batches.steps_per_epoch, self._kept(rows, batches.at))

    def score(self, rows: Rows) -> Callable[[PyTree], float]:
        """Return minus the loss on labelled rows, of params: higher is better."""
        once = _once(self.model, self.params, self.cut, rows)
        scorer = Scorer(self.run, rows, "single-label", once)
        return lambda params: -scorer.scores(params)["eval_loss"]

    def measure(self, params: PyTree, *, worn: Worn = PLAIN, tests: bool = True) -> ModelOutputs:
        """Run a model over the tests and the reference rows; adapters are merged if they can be."""
        if not worn.mergeable:
            own = self._replace(
                run=_compiled(worn, self.apply), embed=_compiled(worn, self.embedder)
            )
            return own.measure(params, tests=tests)
        params = worn.weights(params)
        found = {}
        for name, (rows, stream) in self.tests.items() if tests else ():
            assert rows.labels is not None
            logits = predict(self.run, params, stream, len(rows.encoded))
            found[name] = logits.argmax(-1), np.asarray(rows.labels.values)
        rows, stream = self.reference
        return ModelOutputs(found, predict(self.embed, params, stream, len(rows.encoded)))

    def _kept(self, rows: Rows, batch_at: Callable[[int], Batch]) -> Callable[[int], Batch]:
        return prefixed(self.model, self.params, self.cut, rows, batch_at)


def bench_of(
    model: TextEncoder,
    params: PyTree,
    new: Sequence[str],
    touched: Iterable[PyTree],
    tests: Mapping[str, Rows],
    reference: Rows,
    groups: Any,
    tell: Callable[[str], None],
) -> Bench:
    """Find the prefix that no run touches (`touched_by`); keep its outputs for the fixed rows."""
    cut = cut_of(model, touched)
    if cut is not None:
        tell(f"the lowest {cut} blocks stand still in every method: computed once for all runs")
    embedder = model_with(model, "mean")
    if cut is None:
        run, embed = model.apply, embedder.apply
    else:
        run, embed = split(model, cut).upper, split(embedder, cut).upper

    def evaluation(rows: Rows) -> tuple[Rows, Stream]:
        return rows, _once(model, params, cut, rows)

    return Bench(
        model,
        params,
        tuple(new),
        cut,
        {name: evaluation(rows) for name, rows in tests.items()},
        evaluation(reference),
        groups,
        run,
        embed,
        _compiled(PLAIN, run),
        _compiled(PLAIN, embed),
    )


def _compiled(worn: Worn, apply: Apply) -> Callable[[PyTree, Batch], jax.Array]:
    beside = worn.beside(apply)
    return jax.jit(lambda params, batch: beside(params, batch, None))


def _once(model: TextEncoder, params: PyTree, cut: int | None, rows: Rows) -> Stream:
    stream = in_order(rows)
    return Stream(stream.steps_per_epoch, prefixed(model, params, cut, rows, stream.at))
