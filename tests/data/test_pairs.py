"""Pairs: shifted targets, masks that no id decides, policies, and bad rows by number."""

import hashlib

import numpy as np
import pytest

from sftjax.data import PackedPairs, PairBatches, Pairs, Table, columns_of, encode_pairs, fill
from sftjax.data.encoded import pack

END, START = 1, 0


class Letters:
    """One token a letter, the end token after it; it pads with what the decoder starts with."""

    pad_id, sha256, uses_type_ids = 0, hashlib.sha256(b"letters").hexdigest(), False

    def encode(self, texts, pairs=None):
        return [([ord(c) for c in text if c != "\x7f"] + [END], []) for text in texts]


def encoded(documents, summaries, **options):
    table = Table({"document": documents, "summary": summaries}, name="news.csv")
    settings = {
        "start_id": START, "max_source_length": 40, "max_target_length": 12,
        "on_long_source": "error", "on_long_target": "error", **options,
    }  # fmt: skip
    return encode_pairs(table, Letters(), **settings)


@pytest.fixture(scope="module")
def ragged():
    draw = np.random.default_rng(1)
    sizes = draw.integers(1, [38, 11], (53, 2))
    return encoded(["d" * n for n, _ in sizes], ["s" * n for _, n in sizes])


def test_targets_are_the_labels_shifted_right_after_the_start_token():
    batch = PairBatches(encoded(["abc", "ab"], ["xy", "x"]), 2, (8,), (4,), shuffle=False).at(0)
    x, y = ord("x"), ord("y")
    assert batch["labels"].tolist() == [[x, y, END, -100], [x, END, -100, -100]]
    assert batch["decoder_input_ids"].tolist() == [[START, x, y, 0], [START, x, 0, 0]]
    assert batch["loss_weights"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch["loss_weights"].dtype == np.float32


def test_no_mask_comes_from_an_id():
    """Where the padding token is also a real label, the label counts."""
    pairs = Pairs(
        pack([[0, 5, 0]], pad_id=0, max_length=8), pack([[0, 7, 0]], pad_id=0, max_length=8), 0
    )
    batch = PairBatches(pairs, 1, (4,), (4,)).at(0)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1, 0]]
    assert batch["loss_weights"].sum() == 3


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_holds_every_row_once_in_few_shapes(ragged, shuffle):
    batches = PairBatches(ragged, 4, (16, 32, 40), (6, 12), shuffle=shuffle)
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        found = [batches.at(step) for step in steps]
        rows = np.concatenate([batch["index"] for batch in found])
        assert sorted(rows[rows >= 0]) == list(range(53))
        shapes = [(b["input_ids"].shape[1], b["labels"].shape[1]) for b in found]
        assert {shape: shapes.count(shape) for shape in shapes} == batches.shapes
        tokens = sum(batch["loss_weights"].sum() for batch in found)
        assert tokens == ragged.target.offsets[-1]  # fillers count nothing
    assert len(batches.shapes) <= 6
    assert all(0 < share < 0.7 for share in batches.padding)


def test_a_batch_is_a_function_of_its_number(ragged):
    one, other = (PairBatches(ragged, 4, seed=5) for _ in range(2))
    one.at(0)
    for step in (17, 3, 29):
        same = other.at(step)
        assert all(np.array_equal(value, same[name]) for name, value in one.at(step).items())
    assert not np.array_equal(one.at(3)["index"], PairBatches(ragged, 4, seed=6).at(3)["index"])


@pytest.mark.parametrize("shuffle", [False, True])
def test_packed_rows_hold_every_pair_once_with_the_same_segment_on_both_sides(ragged, shuffle):
    packed = PackedPairs(ragged, 3, 40, 24, shuffle=shuffle)
    assert sorted(pair for row in packed.rows for pair in row) == list(range(53))
    assert len(packed.rows) < 40
    tokens = 0
    for step in range(packed.steps_per_epoch):
        batch = packed.at(step)
        tokens += batch["loss_weights"].sum()
        for row, number in enumerate(batch["index"]):
            if number < 0:
                assert not batch["loss_weights"][row].any()
                continue
            for segment, pair in enumerate(packed.rows[number], start=1):
                here = batch["segment_ids"][row] == segment
                there = batch["decoder_segment_ids"][row] == segment
                assert batch["input_ids"][row, here].tolist() == ids(ragged.source, pair)
                assert batch["labels"][row, there].tolist() == ids(ragged.target, pair)
                wanted = [START, *ids(ragged.target, pair)[:-1]]
                assert batch["decoder_input_ids"][row, there].tolist() == wanted
    assert tokens == ragged.target.offsets[-1]
    assert packed.padding[0] < PairBatches(ragged, 3, (40,), (12,)).padding[0]


def ids(side, row):
    return side.ids[side.offsets[row] : side.offsets[row + 1]].tolist()


@pytest.mark.parametrize(
    ("policy", "left"), [("cut-end", "abcd"), ("cut-start", "fghi"), ("cut-middle", "abhi")]
)
def test_what_is_too_long_is_cut_where_it_was_said_and_keeps_its_end_token(policy, left):
    pairs = encoded(["abcdefghi", "abc"], ["x", "y"], max_source_length=5, on_long_source=policy)
    assert ids(pairs.source, 0) == [*map(ord, left), END]
    assert (pairs.source.truncated, pairs.source.lost, pairs.target.truncated) == (1, 5, 0)
    assert "1 cut, 5 tokens lost" in pairs.told()


def test_refused_with_row_numbers():
    with pytest.raises(
        ValueError, match=r"news.csv row 2: the document \(column 'document'\) is em"
    ):
        encoded(["a", " "], ["x", "y"])
    with pytest.raises(ValueError, match=r"rows 1, 3: the summary \(column 'summary'\) is empty"):
        encoded(["a", "b", "c"], [None, "y", ""])
    with pytest.raises(ValueError, match="row 2: the summary has up to 21 tokens, and at most 12"):
        encoded(["a", "b"], ["x", "y" * 20])
    with pytest.raises(
        ValueError, match=r"row 1: the document has up to 51.*--on-long-source cut-end"
    ):
        encoded(["a" * 50], ["x"])
    with pytest.raises(ValueError, match="row 2: the tokenizer makes no token of the summary"):
        encoded(["a", "b"], ["x", "\x7f"])
    with pytest.raises(ValueError, match="names no decoder_start_token_id"):
        encoded(["a"], ["x"], start_id=None)
    with pytest.raises(ValueError, match="there is no tokenizer"):
        encode_pairs(
            Table({"document": ["a"], "summary": ["b"]}, "t"), None, start_id=0,
            max_source_length=4, max_target_length=4, on_long_source="error",
            on_long_target="error",
        )  # fmt: skip
    with pytest.raises(ValueError, match="--on-long-target is 'cut'"):
        encoded(["a"], ["x"], on_long_target="cut")
    with pytest.raises(TypeError, match="on_long_source"):
        encode_pairs(Table({"document": ["a"]}, "t"), Letters())


def test_targets_that_are_all_masked_are_refused():
    source, target = (pack([[5, 1], [6, 1]], pad_id=0, max_length=4) for _ in range(2))
    weights = np.array([1, 1, 0, 0], np.float32)
    with pytest.raises(ValueError, match="targets that are all masked, in rows 1"):
        Pairs(source, target, 0, weights)
    half = Pairs(source, target, 0, np.array([0, 1, 0.5, 0], np.float32))
    batch = PairBatches(half, 2, (4,), (2,), shuffle=False).at(0)
    assert batch["loss_weights"].tolist() == [[0, 1], [0.5, 0]]


def test_columns_by_their_usual_names_and_templates():
    table = Table({"article": ["It {rains}."], "highlights": ["Rain."], "tone": ["dry"]}, "news")
    assert columns_of(table, None, None) == ("article", "highlights")
    assert columns_of(table, None, "tone") == ("article", "tone")
    with pytest.raises(ValueError, match=r"no column 'articel'.*Did you mean 'article'"):
        columns_of(table, "articel", None)
    with pytest.raises(ValueError, match="none of the usual pairs document/summary"):
        columns_of(Table({"a": [1], "b": [2]}, "t"), None, None)
    assert fill(table, "TL;DR ", "article") == ["TL;DR It {rains}."]
    assert fill(table, "{tone}: {document}", "article") == ["dry: It {rains}."]
    with pytest.raises(ValueError, match="no column 'mood'"):
        fill(table, "{mood} {document}", "article")
