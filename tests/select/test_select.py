"""Rules decide in order, cover what they say, and refuse what they cannot mean."""

import jax
import jax.numpy as jnp
import optax
import pytest

from sftjax.core import count, flatten, nbytes, partition
from sftjax.select import describe, last_blocks, select, stacks


def bert_like(layers=12):
    block = {"attention": {"kernel": jnp.zeros((4, 4))}, "output": {"bias": jnp.zeros(4)}}
    return {
        "bert": {
            "embeddings": {"word": jnp.zeros((10, 4)), "LayerNorm": {"scale": jnp.zeros(4)}},
            "encoder": {"layer": {str(i): dict(block) for i in range(layers)}},
            "pooler": {"kernel": jnp.zeros((4, 4))},
        },
        "classifier": {"kernel": jnp.zeros((4, 2))},
    }


def moving(params, rules, **options):
    chosen = select(params, rules, **options)
    return {path for path, moves in flatten(chosen.trainable).items() if moves}


def test_last_blocks_take_numbers_not_names():
    names = moving(bert_like(), "last:2")
    assert "bert/encoder/layer/11/output/bias" in names
    assert "bert/encoder/layer/10/output/bias" in names
    assert "bert/encoder/layer/1/output/bias" not in names
    assert "bert/encoder/layer/9/output/bias" not in names
    assert {"bert/pooler/kernel", "classifier/kernel"} <= names
    assert not any("embeddings" in name for name in names)


def test_last_0_is_head_and_last_all_leaves_only_what_lies_below():
    params = bert_like(3)
    assert moving(params, "last:0") == moving(params, "head")
    below = set(flatten(params)) - moving(params, "last:3")
    assert below == {"bert/embeddings/word", "bert/embeddings/LayerNorm/scale"}


@pytest.mark.parametrize("names", [["block_0", "block_1"], ["Dense0", "Dense1"]])
def test_blocks_of_a_users_own_tree(names):
    params = {name: {"w": jnp.zeros(2)} for name in names} | {"out": {"w": jnp.zeros(2)}}
    assert [stack.blocks for stack in stacks(params)] == [tuple(names)]
    assert moving(params, "last:1") == {f"{names[1]}/w", "out/w"}


def test_blocks_of_lists_and_of_two_stacks():
    tree = {"encoder": [{"w": jnp.zeros(1)}] * 3, "decoder": [{"w": jnp.zeros(1)}] * 2}
    assert moving(tree, "last:1") == {"encoder/2/w", "decoder/1/w"}


def test_numbered_parts_inside_a_block_belong_to_it():
    tree = {"block": {str(i): {"layer": {"0": {"w": 1}, "1": {"w": 1}}} for i in range(2)}}
    assert stacks(tree)[0].blocks == ("block/0", "block/1")
    assert len(stacks(tree)) == 1


def test_first_match_wins():
    chosen = select(bert_like(2), [("**/bias", 0.0), ("last:1", 0.5), ("classifier", 2.0)][:2])
    rates = flatten(chosen.rate)
    assert rates["bert/encoder/layer/1/output/bias"] == 0.0
    assert rates["bert/encoder/layer/1/attention/kernel"] == 0.5
    assert rates["bert/encoder/layer/0/attention/kernel"] == 0.0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("bert/encoder/layers/1", "matches none .* did you mean 'bert/encoder/layer"),
        ("last:99", "asks for 99 blocks"),
        ("last:two", "whole number"),
        (["all", "classifier"], "decides nothing"),
        ([("all", 0.0)], "no leaf would move"),
        ([("all", -1.0)], "rate -1"),
        ([("all", float("nan"))], "rate nan"),
    ],
)
def test_rules_that_cannot_be_meant(rules, message):
    with pytest.raises(ValueError, match=message):
        select(bert_like(), rules)


def test_a_tree_without_blocks_says_so():
    with pytest.raises(ValueError, match="Top level: a, b"):
        last_blocks({"a": jnp.zeros(1), "b": jnp.zeros(1)}, 1)


def test_a_new_leaf_must_not_stay_random_unsaid():
    params, new = bert_like(2), ["classifier/kernel"]
    with pytest.raises(ValueError, match="classifier/kernel has no pretrained value"):
        select(params, "bert/encoder/layer/1", new=new)
    assert "classifier/kernel" in moving(params, ["bert/encoder/layer/1", "new"], new=new)
    select(params, ["bert/encoder/layer/1", ("classifier", 0.0)], new=new)  # said knowingly


def test_description_accounts_for_every_leaf_and_every_moment():
    params = bert_like(4)
    chosen = select(params, [("classifier", 5.0), "last:1"])
    tx = optax.adamw(1e-3)
    moves = partition(params, chosen.trainable)[0]
    report = describe(params, chosen, tx=tx, anchor={"bert": moves["bert"], "classifier": None})
    assert sum(row.leaves for row in report.rows) == report.total.leaves == len(flatten(params))
    assert sum(row.parameters for row in report.rows) == count(params)
    moments = [leaf for leaf in jax.tree.leaves(tx.init(moves)) if leaf.ndim > 0]
    assert report.total.optimizer_bytes == nbytes(moments)
    by_rule = {row.rule: row for row in report.rows}
    assert by_rule["classifier"].anchored == 0
    assert by_rule["last:1"].anchored == by_rule["last:1"].leaves
    assert by_rule["(frozen)"].optimizer_bytes == 0
    assert "trainable%" in str(report)
