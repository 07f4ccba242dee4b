"""A kept prefix gives the step that computes it, for rows of one shape and for ragged tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import Aux, Loss
from sftjax.models import Head, build, split
from sftjax.objectives import classification
from sftjax.select import frozen_below, select
from sftjax.train import compile_step, init, make_step
from sftjax.train.prefix import Kept, keep_prefix, with_prefix

CONFIG = {
    "model_type": "bert", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 16,
}  # fmt: skip
NEW = ("classifier/kernel", "classifier/bias")
ROWS = 12


class Data:
    """Batches of 4 rows, 12 rows in all, whose padded length differs from epoch to epoch."""

    def __init__(self):
        draw = np.random.default_rng(0)
        self.lengths = draw.integers(3, 9, ROWS)
        self.ids = draw.integers(5, 50, (ROWS, 12), dtype=np.int32)
        self.labels = draw.integers(0, 2, ROWS, dtype=np.int32)

    def at(self, step):
        epoch, place = divmod(step, 3)
        order = np.random.default_rng(epoch).permutation(ROWS)
        rows = order[4 * place : 4 * place + 4]
        tokens = 8 if (step % 2 == 0) else 12
        mask = (np.arange(tokens) < self.lengths[rows, None]).astype(np.int32)
        return {
            "input_ids": np.where(mask, self.ids[rows, :tokens], 0),
            "attention_mask": mask,
            "labels": self.labels[rows],
            "valid": np.ones(4, np.float32),
            "index": rows.astype(np.int32),
        }

    def __iter__(self):
        return (self.at(step) for step in range(3))


def losses_of(objective, model, params, rules, batch_at, steps=9):
    chosen = select(params, rules, new=NEW)
    tx = optax.sgd(0.1, momentum=0.9)  # Adam would blow up the noise of gradients that are zero
    state, fixed = init(params, chosen.trainable, tx, jax.random.key(0))
    step = compile_step(make_step(objective, tx))
    losses = []
    for number in range(steps):
        state, metrics = step(state, fixed, batch_at(number))
        losses.append(float(metrics["loss"]))
    return losses, state.trainable


@pytest.mark.parametrize(("rules", "where"), [("head", "memory"), ("last:1", "file")])
def test_a_kept_prefix_gives_the_same_run(rules, where, tmp_path):
    data = Data()
    model = build(CONFIG, Head("sequence", ("a", "b")))
    params = model.init(jax.random.key(1))
    cut = frozen_below(select(params, rules, new=NEW).trainable)
    assert cut == {"head": 3, "last:1": 2}[rules]
    lower, upper = split(model, cut)
    place = {"folder": tmp_path, "facts": {"cut": cut}} if where == "file" else {}
    mask = "attention_mask" if cut < 3 else None
    kept = keep_prefix(lower, params, data, ROWS, mask=mask, **place)
    plain = losses_of(classification(model.apply), model, params, rules, data.at)
    short = losses_of(classification(upper), model, params, rules, with_prefix(data.at, kept))
    np.testing.assert_allclose(short[0], plain[0], rtol=0, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), short[1], plain[1])


def test_of_ragged_rows_only_tokens_are_kept():
    data = Data()
    model = build(CONFIG, Head("sequence", ("a", "b")))
    kept = keep_prefix(
        split(model, 1).lower, model.init(jax.random.key(0)), data, ROWS, mask="attention_mask"
    )
    assert kept.values.shape == (data.lengths.sum(), 32)


def test_a_function_of_ones_own():
    """Any pair of functions: here a random feature map and a linear model."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)
    x = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)

    def lower(weights, batch):
        return jnp.tanh(batch["x"] @ weights)

    def objective(params, model_state, batch, key):
        hidden = batch["hidden"] if "hidden" in batch else lower(params["map"], batch)
        return Loss(jnp.sum((hidden @ params["top"]) ** 2), 3.0), Aux({})

    def batch_at(step):
        index = np.arange(3) + 3 * (step % 2)
        return {"x": x[index], "index": index, "valid": np.ones(3)}

    params = {"map": weights, "top": jnp.ones(8)}
    tx = optax.sgd(0.1)
    kept = keep_prefix(lower, weights, [batch_at(0), batch_at(1)], 6)
    finals = []
    for at in (batch_at, with_prefix(batch_at, kept)):
        state, fixed = init(params, {"map": False, "top": True}, tx, jax.random.key(0))
        step = compile_step(make_step(objective, tx))
        for number in range(4):
            state, _ = step(state, fixed, at(number))
        finals.append(state.trainable["top"])
    np.testing.assert_allclose(*finals, atol=1e-6)


def batches_of(*indices):
    return [
        {"x": np.ones((len(i), 1)), "index": np.array(i), "valid": np.array(i) >= 0}
        for i in indices
    ]


def test_a_file_is_found_again_and_only_by_its_facts(tmp_path):
    calls = []

    def prefix(scale, batch):
        jax.debug.callback(lambda: calls.append(1))
        return scale * batch["x"]

    def keep(scale, facts):
        found = keep_prefix(prefix, scale, batches_of([0, 1]), 2, folder=tmp_path, facts=facts)
        jax.effects_barrier()
        return found

    first = keep(2.0, {"weights": "a"})
    again = keep(3.0, {"weights": "a"})  # never computed: the facts say it is the same
    np.testing.assert_array_equal(first.values, again.values)
    assert len(calls) == 1
    other = keep(3.0, {"weights": "b"})
    assert other.values[0, 0] == 3.0
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_of_another_size_is_made_anew(tmp_path):
    said = []
    for batches, rows in ((batches_of([0, 1]), 2), (batches_of([0, 1, 2]), 3)):
        kept = keep_prefix(
            lambda w, b: w * b["x"], 1.0, batches, rows, folder=tmp_path, facts={"a": 1},
            tell=said.append,
        )  # fmt: skip
    assert kept.values.shape == (3, 1)
    assert any("computing it anew" in line for line in said)


def test_fillers_take_a_real_row():
    kept = Kept(np.array([[5.0]]), None, None)
    assert kept.of({"index": np.array([0, -1])}).tolist() == [[5.0], [5.0]]


@pytest.mark.parametrize(("batches", "rows", "message"), [
    (batches_of([0, 1], [1, 2]), 3, "row 1 comes 2 times"),
    (batches_of([0, 1]), 3, "row 2 comes 0 times"),
    (batches_of([0, 5]), 3, "outside 0 to 2"),
    ([{"x": np.ones(1)}], 1, "no 'index'"),
])  # fmt: skip
def test_batches_that_are_not_one_pass_are_refused(batches, rows, message):
    with pytest.raises(ValueError, match=message):
        keep_prefix(lambda w, b: b["x"], 1.0, batches, rows)


def test_a_file_without_facts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="need facts"):
        keep_prefix(lambda w, b: b["x"], 1.0, batches_of([0]), 1, folder=tmp_path)


def test_a_prefix_that_mixes_rows_is_refused():
    with pytest.raises(ValueError, match="first axis must be the rows"):
        keep_prefix(lambda w, b: b["x"].sum(), 1.0, batches_of([0, 1]), 2)
