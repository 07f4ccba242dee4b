"""A batch is a pure function of its number, and an epoch holds every row exactly once."""

import itertools
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftjax.data import Batches, bucket_lengths, pack, prefetch


def rows_of(lengths, **fields):
    ids = [[row + 1] * length for row, length in enumerate(lengths)]
    return pack(ids, pad_id=0, max_length=max(lengths), **fields)


def batches_of(tokens, **options):
    return Batches(rows_of(tokens), np.arange(len(tokens), dtype=np.int32), **options)


def epoch_of(batches, epoch):
    steps = batches.steps_per_epoch
    return [batches.at(step) for step in range(epoch * steps, (epoch + 1) * steps)]


cases = st.builds(
    lambda lengths, batch_size, seed, shuffle: (lengths, batch_size, seed, shuffle),
    st.lists(st.integers(1, 70), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(0, 2**40),
    st.booleans(),
)


@settings(deadline=None)
@given(cases)
def test_every_epoch_holds_every_row_exactly_once(case):
    lengths, batch_size, seed, shuffle = case
    batches = batches_of(lengths, batch_size=batch_size, seed=seed, shuffle=shuffle)
    shapes = None
    for epoch in range(3):
        made = epoch_of(batches, epoch)
        index = np.concatenate([batch["index"] for batch in made])
        assert sorted(index[index >= 0]) == list(range(len(lengths)))
        # Only the last batch is filled up, and every epoch has the same lengths as often.
        assert all(batch["valid"].all() for batch in made[:-1])
        assert made[-1]["valid"].any()
        seen = sorted(batch["input_ids"].shape for batch in made)
        assert seen == (shapes or seen)
        shapes = seen
    assert dict(batches.shapes) == {
        length: sum(shape == (batch_size, length) for shape in shapes)
        for length in dict.fromkeys(length for _, length in shapes)
    }


@settings(deadline=None)
@given(cases, st.randoms())
def test_a_batch_does_not_depend_on_which_were_asked_for_before(case, random):
    lengths, batch_size, seed, shuffle = case
    make = lambda: batches_of(lengths, batch_size=batch_size, seed=seed, shuffle=shuffle)  # noqa: E731
    one = make()
    steps = range(4 * one.steps_per_epoch)
    in_order = [one.at(step) for step in steps]
    another = make()
    for step in random.sample(steps, len(steps)):
        assert all(np.array_equal(another.at(step)[k], v) for k, v in in_order[step].items())


@settings(deadline=None)
@given(cases)
def test_a_row_is_padded_and_never_changed(case):
    lengths, batch_size, seed, shuffle = case
    batches = batches_of(lengths, batch_size=batch_size, seed=seed, shuffle=shuffle)
    for batch in epoch_of(batches, 1):
        assert np.array_equal(batch["valid"], batch["index"] >= 0)
        for i, row in enumerate(batch["index"]):
            row = row if row >= 0 else batch["index"][0]
            assert batch["attention_mask"][i].sum() == lengths[row]
            assert (batch["input_ids"][i] == (row + 1) * batch["attention_mask"][i]).all()
            assert batch["labels"][i] == row
            assert (np.diff(batch["attention_mask"][i]) <= 0).all()


def test_epochs_and_seeds_differ_and_every_row_meets_new_neighbours():
    lengths = [5] * 40 + [20] * 40
    orders = {
        tuple(
            np.concatenate(
                [b["index"] for b in epoch_of(batches_of(lengths, batch_size=8, seed=s), e)]
            )
        )
        for s in (0, 1)
        for e in (0, 1)
    }
    assert len(orders) == 4


def test_long_and_short_batches_are_mixed():
    batches = batches_of([5] * 64 + [20] * 64, batch_size=8)
    lengths = [batch["input_ids"].shape[1] for batch in epoch_of(batches, 0)]
    assert sorted(lengths) == [16] * 8 + [20] * 8
    assert lengths != sorted(lengths)


def test_without_shuffling_predictions_map_back():
    lengths = [40, 3, 17, 5, 33, 9, 2]
    batches = batches_of(lengths, batch_size=3, shuffle=False)
    predictions = np.full(len(lengths), -1)
    for batch in epoch_of(batches, 0):
        real = batch["valid"] > 0
        predictions[batch["index"][real]] = batch["attention_mask"].sum(1)[real]
    assert predictions.tolist() == lengths
    assert np.array_equal(batches.at(0)["index"], batches.at(batches.steps_per_epoch)["index"])


def test_the_order_is_the_same_on_every_machine():
    code = """
import numpy as np
from sftjax.data import Batches, pack
rows = pack([[1] * n for n in (3, 20, 5, 9, 31, 2, 8)], pad_id=0, max_length=32)
print([Batches(rows, batch_size=2, seed=11).at(step)["index"].tolist() for step in range(8)])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ORDER


ORDER = "[[5, 6], [0, 2], [3, 1], [4, -1], [5, 2], [6, 1], [3, 0], [4, -1]]"


def test_labels_types_and_tokens_of_every_kind():
    types = [[0, 0, 1], [0, 1]]
    both = pack([[7, 8, 9], [7, 9]], pad_id=5, max_length=8, type_ids=types)
    many = Batches(both, np.ones((2, 4), np.float32), batch_size=2, shuffle=False).at(0)
    assert many["labels"].shape == (2, 4)
    assert many["token_type_ids"][0, :4].tolist() == [0, 0, 1, 0]
    assert many["input_ids"][1, :3].tolist() == [7, 9, 5]
    assert {name: value.dtype.name for name, value in many.items()} == {
        "input_ids": "int32",
        "attention_mask": "int32",
        "token_type_ids": "int32",
        "labels": "float32",
        "valid": "float32",
        "index": "int32",
    }
    tags = [np.array([-100, 3, -100]), np.array([-100, 1])]
    tokens = pack([[7, 8, 9], [7, 9]], pad_id=5, max_length=8, token_labels=tags)
    batch = Batches(tokens, batch_size=2, shuffle=False).at(0)
    assert batch["labels"][:, :4].tolist() == [[-100, 3, -100, -100], [-100, 1, -100, -100]]
    assert "token_type_ids" not in batch
    assert "labels" not in Batches(both, batch_size=2).at(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be positive"),
        ({"seed": -1}, "seed=-1 not negative"),
        ({"lengths": (16,)}, r"row 1 \(counted from 0\) has 20 tokens, more than .* 16"),
        ({"lengths": (32, 16)}, "must ascend"),
        ({"labels": np.zeros(3)}, "2 rows and 3 labels"),
    ],
)
def test_what_cannot_be_batched_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Batches(rows_of([3, 20]), **options)


def test_there_is_no_batch_before_the_first():
    with pytest.raises(ValueError, match="counted from 0"):
        batches_of([3]).at(-1)


def test_a_step_is_traced_once_a_length():
    batches = batches_of([3, 20, 40, 60] * 9, batch_size=4)
    traces = []

    @jax.jit
    def step(batch):
        traces.append(batch["input_ids"].shape)
        return batch["input_ids"].sum()

    for number in range(3 * batches.steps_per_epoch):
        step(batches.at(number))
    assert sorted(traces) == sorted((4, length) for length in batches.shapes)


@settings(deadline=None)
@given(st.lists(st.integers(1, 130), min_size=1, max_size=40), st.integers(1, 4))
def test_no_other_choice_of_lengths_pads_less(lengths, most):
    chosen = bucket_lengths(np.array(lengths), most=most)
    candidates = range(16, 16 * -(-max(lengths) // 16) + 1, 16)

    def padded(buckets):
        return sum(min(b for b in buckets if b >= n) for n in lengths)

    best = min(
        padded((*inner, candidates[-1]))
        for k in range(most)
        for inner in itertools.combinations(candidates[:-1], k)
    )
    assert padded(chosen) == best
    assert len(chosen) <= most


def test_the_greatest_length_stays_within_the_model():
    assert bucket_lengths(np.array([5, 50]), longest=50) == (16, 50)
    assert bucket_lengths(np.array([5, 50]), most=1) == (64,)


def test_buckets_pad_less_than_one_length():
    lengths = np.random.default_rng(0).integers(1, 128, 500).tolist()
    few = batches_of(lengths, batch_size=8)
    one = batches_of(lengths, batch_size=8, lengths=(128,))
    assert len(few.shapes) == 4
    assert few.padding < 0.25 < 0.45 < one.padding


def test_prefetching_gives_the_same_batches_ahead_of_time():
    batches = batches_of([3, 20, 40, 60] * 9, batch_size=4)
    for step, batch in enumerate(prefetch(batches.at, 5, 30), start=5):
        assert np.array_equal(batch["index"], batches.at(step)["index"])


def test_prefetching_runs_on_one_other_thread_and_no_further_ahead_than_told():
    asked, threads = [], set()

    def at(step):
        asked.append(step)
        threads.add(threading.current_thread())
        return step

    stream = prefetch(at, 0, 100, depth=3)
    for step in range(10):
        assert next(stream) == step
        assert max(asked) <= step + 3
    stream.close()
    assert asked == sorted(asked)
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert not next(iter(threads)).is_alive()


def test_what_goes_wrong_is_raised_at_its_own_step():
    def at(step):
        if step == 3:
            raise KeyError("row 3")
        return step

    stream = prefetch(at, 0, 10)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="row 3"):
        next(stream)
    assert list(prefetch(at, 5, 5)) == []
    with pytest.raises(ValueError, match="depth must be positive"):
        next(prefetch(at, 0, 1, depth=0))
