"""Packing: every row once, nothing lost, each batch a function of its number, rows well filled."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftjax.data import Audit, Chat, ChatBatches, best_fit


def chat_of(lengths, max_length, seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(10, 1000, offsets[-1]).astype(np.int32)
    weights = rng.integers(0, 2, offsets[-1]).astype(np.float32)
    rows = np.arange(len(lengths))
    return Chat(ids, weights, offsets, rows, 3, max_length, Audit(), SimpleNamespace())


def conversations_of(batch):
    """Take a batch apart again."""
    found = []
    for i in np.flatnonzero(batch["valid"]):
        segments = batch["segment_ids"][i]
        for number in range(1, segments.max() + 1):
            (at,) = np.nonzero(segments == number)
            np.testing.assert_array_equal(batch["position_ids"][i, at], np.arange(len(at)))
            assert (np.diff(at) == 1).all()
            ids = tuple(batch["input_ids"][i, at].tolist())
            found.append((ids, tuple(batch["loss_weights"][i, at].tolist())))
        empty = segments == 0
        assert (batch["input_ids"][i, empty] == 3).all()
        assert not batch["loss_weights"][i, empty].any()
        np.testing.assert_array_equal(batch["attention_mask"][i], segments > 0)
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.booleans(),
    st.integers(1, 5),
    st.booleans(),
)
def test_an_epoch_holds_every_row_once(lengths, packing, size, shuffle):
    chat = chat_of(lengths, 40)
    batches = ChatBatches(chat, size, packing=packing, shuffle=shuffle, seed=2)
    rows = [chat[i] for i in range(len(chat))]
    every = sorted((tuple(ids.tolist()), tuple(weights.tolist())) for ids, weights in rows)
    steps = batches.steps_per_epoch
    for epoch in range(2):
        parts = [batches.at(epoch * steps + step) for step in range(steps)]
        assert sorted(row for batch in parts for row in conversations_of(batch)) == every
        learned = sum((b["loss_weights"] * b["valid"][:, None]).sum() for b in parts)
        assert learned == chat.learned


def test_a_batch_is_a_function_of_its_number():
    chat = chat_of(np.random.default_rng(0).integers(1, 60, 200), 64)
    one, other = ChatBatches(chat, 4, seed=5), ChatBatches(chat, 4, seed=5)
    late = 3 * one.steps_per_epoch + 2
    for step in (late, 0, late):  # in any order, from any start
        for name, value in one.at(step).items():
            np.testing.assert_array_equal(value, other.at(step)[name])
    assert (one.at(0)["input_ids"] != ChatBatches(chat, 4, seed=6).at(0)["input_ids"]).any()
    assert (one.at(0)["input_ids"] != one.at(one.steps_per_epoch)["input_ids"]).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.randoms())
def test_the_number_of_bins_depends_on_the_lengths_alone(lengths, random):
    bins = best_fit(np.array(lengths), 30)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= 30 for rows in bins)
    assert len(bins) <= 2 * sum(lengths) / 30 + 1  # no two bins could be one
    shuffled = random.sample(lengths, len(lengths))
    assert len(best_fit(np.array(shuffled), 30)) == len(bins)


def test_the_report_counts_what_batches_hold():
    chat = chat_of(np.random.default_rng(1).integers(5, 90, 500), 256)
    packed, padded = ChatBatches(chat, 4), ChatBatches(chat, 4, packing=False)
    for batches in (packed, padded):
        parts = [batches.at(step) for step in range(batches.steps_per_epoch)]
        real = sum((b["attention_mask"] * b["valid"][:, None]).sum() for b in parts)
        room = sum(b["attention_mask"].size for b in parts)
        assert batches.report.filled == pytest.approx(real / room)
        assert batches.report.rows_per_update == pytest.approx(500 / len(parts))
    assert packed.report.filled > 0.97
    assert packed.report.rows_per_update > 4 * padded.report.rows_per_update
    assert "conversations" in str(packed.report)


def test_what_cannot_be_packed_is_refused():
    chat = chat_of([5, 30], 64)
    with pytest.raises(ValueError, match=r"row 1 of the kept ones .* has 30 tokens and a packed"):
        ChatBatches(chat, 2, length=16)
    with pytest.raises(ValueError, match="must be positive"):
        ChatBatches(chat, 0)
    with pytest.raises(ValueError, match="a bin holds 16"):
        best_fit(chat.lengths, 16)
    with pytest.raises(ValueError, match="counted from 0"):
        ChatBatches(chat, 2).at(-1)
