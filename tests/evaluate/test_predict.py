"""Outputs come back in row order, from one compilation a shape."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.evaluate import predict

PARAMS = {"kernel": np.arange(6.0, dtype=np.float32).reshape(3, 2)}
ROWS = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)


def linear(params, batch):
    return batch["x"] @ params["kernel"]


def batches(size=4, order=None):
    """Shuffled rows; the last batch is filled up with row 0."""
    order = np.random.default_rng(1).permutation(len(ROWS)) if order is None else order
    for start in range(0, len(order), size):
        index = order[start : start + size]
        filler = size - len(index)
        yield {
            "x": ROWS[np.append(index, np.zeros(filler, int))],
            "index": np.append(index, np.zeros(filler, int)),
            "valid": np.append(np.ones(len(index)), np.zeros(filler)).astype(np.float32),
        }


@pytest.mark.parametrize("size", [1, 4, 11, 16])
def test_rows_come_back_in_order_whatever_the_batches(size):
    outputs = predict(linear, PARAMS, batches(size), len(ROWS))
    assert isinstance(outputs, np.ndarray)
    np.testing.assert_allclose(outputs, ROWS @ PARAMS["kernel"], rtol=1e-5)


def test_batches_by_number_are_read_once():
    class Numbered:
        steps_per_epoch = 3

        def at(self, step):
            return list(batches(4))[step]

    outputs = predict(linear, PARAMS, Numbered(), len(ROWS))
    np.testing.assert_array_equal(outputs, predict(linear, PARAMS, batches(4), len(ROWS)))


def test_one_compilation_a_shape_and_none_for_other_params():
    run = jax.jit(chex.assert_max_traces(linear, n=1))
    first = predict(run, PARAMS, batches(), len(ROWS))
    second = predict(run, {"kernel": 2 * PARAMS["kernel"]}, batches(), len(ROWS))
    np.testing.assert_allclose(second, 2 * first, rtol=1e-5)


def test_the_bookkeeping_does_not_reach_the_model():
    seen = []

    def apply(params, batch):
        seen.append(sorted(batch))
        return linear(params, batch)

    predict(apply, PARAMS, batches(), len(ROWS))
    assert seen == [["x"]]


def test_vectors_and_scalars_a_row():
    assert predict(lambda p, b: b["x"], PARAMS, batches(), len(ROWS)).shape == (11, 3)
    assert predict(lambda p, b: b["x"][:, 0], PARAMS, batches(), len(ROWS)).shape == (11,)


def tokens():
    """Two padded lengths, one of them padded on the left."""
    yield {
        "input_ids": np.array([[5, 6, 7], [8, 0, 0]]),
        "attention_mask": np.array([[1, 1, 1], [1, 0, 0]]),
        "index": np.array([2, 0]),
        "valid": np.ones(2),
    }
    yield {
        "input_ids": np.array([[0, 3, 4, 9, 1]]),
        "attention_mask": np.array([[0, 1, 1, 1, 1]]),
        "index": np.array([1]),
        "valid": np.ones(1),
    }


def test_token_outputs_are_cut_to_the_tokens_of_each_row():
    def apply(params, batch):
        ids = batch["input_ids"].astype(jnp.float32)
        return jnp.stack([ids, -ids], axis=-1)

    outputs = predict(apply, {}, tokens(), 3, per_token=True)
    assert [row[:, 0].tolist() for row in outputs] == [[8], [3, 4, 9, 1], [5, 6, 7]]
    assert [row.shape for row in outputs] == [(1, 2), (4, 2), (3, 2)]
    with pytest.raises(ValueError, match=r"differ in shape .* per_token=True"):
        predict(apply, {}, tokens(), 3)


def test_embeddings_as_wide_as_the_text_is_long_are_not_taken_for_tokens():
    batch = {"attention_mask": np.array([[1, 0]]), "index": np.array([0]), "valid": np.ones(1)}
    outputs = predict(lambda p, b: b["attention_mask"] + 0.5, {}, [batch], 1)
    assert outputs.tolist() == [[1.5, 0.5]]


@pytest.mark.parametrize(
    ("order", "num_rows", "words"),
    [
        (np.arange(10), 11, "1 of 11 rows are in no batch, row 10 first"),
        (np.append(np.arange(11), 3), 11, "row 3 comes twice"),
        (np.arange(11), 9, "row 9, outside 0 to 8"),
        (np.arange(0), 11, "none of the 11 rows"),
    ],
)
def test_rows_that_do_not_add_up_are_named(order, num_rows, words):
    with pytest.raises(ValueError, match=words):
        predict(linear, PARAMS, batches(order=order), num_rows)


def test_bad_outputs_and_batches_are_named():
    with pytest.raises(ValueError, match=r"apply returned shape \(\) for a batch of 4 rows"):
        predict(lambda p, b: b["x"].sum(), PARAMS, batches(), len(ROWS))
    with pytest.raises(ValueError, match=r"batch has no 'index' \(it has x\)"):
        predict(linear, PARAMS, [{"x": ROWS}], len(ROWS))
    with pytest.raises(ValueError, match="per_token needs one output a token"):
        predict(lambda p, b: b["index_"], {}, [_untokened()], 1, per_token=True)


def _untokened():
    return {
        "index_": np.zeros((1, 3)),
        "attention_mask": np.ones((1, 2)),
        "index": np.array([0]),
        "valid": np.ones(1),
    }
