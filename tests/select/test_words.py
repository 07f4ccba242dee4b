"""The words of rules: each finds its leaves in any family's tree, and yields to a literal path."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import Aux, Loss, combine, flatten, matches
from sftjax.select.rules import phases_of, select, unfreezing
from sftjax.select.words import first_blocks, is_bias, is_norm, one_block
from sftjax.train.step import compile_step, init, make_step

LEAF = jnp.zeros(2)


def bert(layers=4):
    dense = {"kernel": LEAF, "bias": LEAF}
    norm = {"scale": LEAF, "bias": LEAF}
    block = {"attention": {"query": dense, "LayerNorm": norm}, "output": dense}
    return {
        "bert": {
            "embeddings": {"word_embeddings": {"embedding": LEAF}, "LayerNorm": norm},
            "encoder": {"layer": {str(i): block for i in range(layers)}},
            "pooler": dense,
        },
        "classifier": dense,
    }


def resnet():
    block = {"conv1": {"kernel": LEAF}, "bn1": {"scale": LEAF, "bias": LEAF}, "ln": LEAF}
    return {
        "stem": {"conv": {"kernel": LEAF}, "norm": {"gamma": LEAF, "beta": LEAF}},
        "block_0": block,
        "block_1": block,
        "Dense_0": {"kernel": LEAF, "bias": LEAF},
    }


def seq2seq():
    def run(n):
        return {"block": [{"layer_norm": {"weight": LEAF}, "wo": LEAF} for _ in range(n)]}

    return {"shared": LEAF, "encoder": run(3), "decoder": run(2), "lm_head": {"kernel": LEAF}}


def moving(params, rules, **options):
    chosen = select(params, rules, **options)
    return {path for path, moves in flatten(chosen.trainable).items() if moves}


def test_bias_is_every_bias_and_nothing_else():
    names = moving(bert(), "bias")
    assert names == {path for path in flatten(bert()) if path.endswith("/bias")}
    assert moving(resnet(), "bias") == {
        "stem/norm/beta", "block_0/bn1/bias", "block_1/bn1/bias", "Dense_0/bias"
    }  # fmt: skip


def test_norm_is_scales_and_biases_of_norms():
    assert moving(bert(1), "norm") == {
        "bert/embeddings/LayerNorm/scale", "bert/embeddings/LayerNorm/bias",
        "bert/encoder/layer/0/attention/LayerNorm/scale",
        "bert/encoder/layer/0/attention/LayerNorm/bias",
    }  # fmt: skip
    assert moving(resnet(), "norm") == {
        "stem/norm/gamma", "stem/norm/beta", "block_0/bn1/scale", "block_0/bn1/bias", "block_0/ln",
        "block_1/bn1/scale", "block_1/bn1/bias", "block_1/ln",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "norm"),
    [
        ("transformer/layer/0/sa_layer_norm/scale", True),
        ("model/layers/3/input_layernorm/weight", True),
        ("BatchNorm_0/scale", True),
        ("GroupNorm_1/bias", True),
        ("normalization/scale", True),
        ("h/0/ln_1/g", True),
        ("ln_f/b", True),
        ("attn_ln/scale", True),
        ("block/ln1_scale", True),
        ("bn2/scale/value", True),
        ("LayerNorm/dense/kernel", False),
        ("normal/loc", False),
        ("lnx/kernel", False),
        ("column/kernel", False),
        ("attention/value/kernel", False),
    ],
)
def test_a_norm_is_known_by_its_name(path, norm):
    assert is_norm(path) is norm


@pytest.mark.parametrize(
    ("path", "bias"),
    [
        ("cls/predictions/bias", True),
        ("cell/b", True),
        ("attn/q_bias", True),
        ("dense/bias/value", True),
        ("attn/relative_position_bias", False),
        ("relative_attention_bias/embedding", False),
        ("bias_net/kernel", False),
    ],
)
def test_a_bias_is_known_by_its_name(path, bias):
    assert is_bias(path) is bias


def test_one_block_of_every_stack_and_nothing_else():
    assert moving(bert(), "block:0") == {
        path for path in flatten(bert()) if matches("bert/encoder/layer/0", path)
    }
    assert moving(bert(), "block:-1") == moving(bert(), "block:3")
    assert one_block(seq2seq(), -1) == ["decoder/block/1", "encoder/block/2"]


def test_first_blocks_and_last_blocks_share_the_tree():
    below, above = moving(bert(), "first:1"), moving(bert(), "last:3")
    assert below | above == set(flatten(bert()))
    assert not below & above
    assert moving(bert(), "first:0") == moving(bert(), "embeddings")
    assert first_blocks(seq2seq(), 1) == ["decoder/block/0", "encoder/block/0", "shared"]


def test_embeddings_are_what_lies_below():
    assert moving(seq2seq(), "embeddings") == {"shared"}
    assert moving(resnet(), "embeddings") == {path for path in flatten(resnet()) if "stem" in path}


@pytest.mark.parametrize("word", ["bias", "norm", "embeddings", "head"])
def test_a_path_of_the_words_own_name_is_that_path(word):
    params = bert(2) | {word: {"kernel": LEAF}}
    assert moving(params, word) == {f"{word}/kernel"}


def test_words_take_rates_and_the_first_match_wins():
    rates = flatten(select(bert(2), [("bias", 2.0), ("norm", 0.5), ("block:-1", 0.1)]).rate)
    layer = "bert/encoder/layer/1/attention"
    assert rates[f"{layer}/LayerNorm/bias"] == 2.0
    assert rates[f"{layer}/LayerNorm/scale"] == 0.5
    assert rates[f"{layer}/query/kernel"] == 0.1
    assert rates["bert/encoder/layer/0/attention/query/kernel"] == 0.0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("bias", "'bias' matches none of the 5 leaves: the word looks for leaves named bias"),
        ("norm", "'norm' matches none .* LayerNorm"),
        ("embeddings", "'embeddings' matches none"),
        ("block:2", "asks for block 2, but .* has 2 blocks; use a number from -2 to 1"),
        ("block:-3", "asks for block -3"),
        ("block:", "'block:' and a whole number"),
        ("first:3", "asks for 3 blocks"),
        ("first:-1", "'first:' and a whole number"),
        ("bias:2", "matches none"),
    ],
)
def test_words_that_find_nothing_say_what_they_look_for(rules, message):
    block = {"kernel": LEAF, "w": LEAF}
    with pytest.raises(ValueError, match=message):
        select({"layer": {"0": block, "1": block}, "head": LEAF}, rules)


def test_words_that_need_blocks_say_so():
    for rule in ("block:0", "first:1"):
        with pytest.raises(ValueError, match=r"needs numbered blocks .* Top level: a"):
            select({"a": LEAF}, rule)


def test_bitfit_moves_only_biases():
    """Twenty donated AdamW steps with decay: every byte that is not a bias's stays."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "layer": {
            str(i): {"kernel": jax.random.normal(keys[i], (4, 4)), "bias": jnp.zeros(4)}
            for i in range(2)
        },
        "head": {"kernel": jax.random.normal(keys[2], (4, 2)), "bias": jnp.zeros(2)},
    }

    def objective(params, model_state, batch, key):
        x = batch["x"]
        for block in params["layer"].values():
            x = jnp.tanh(x @ block["kernel"] + block["bias"])
        error = x @ params["head"]["kernel"] + params["head"]["bias"] - 1.0
        return Loss(jnp.sum(error**2), error.shape[0]), Aux({})

    before = {path: np.asarray(leaf).tobytes() for path, leaf in flatten(params).items()}
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state, fixed = init(params, select(params, "bias").trainable, tx, jax.random.key(0))
    step = compile_step(make_step(objective, tx))
    for _ in range(20):
        state, _ = step(state, fixed, {"x": jnp.ones((3, 4))})
    after = flatten(combine(state.trainable, fixed.frozen))
    moved = {path for path, leaf in after.items() if np.asarray(leaf).tobytes() != before[path]}
    assert moved == {"layer/0/bias", "layer/1/bias", "head/bias"}


def test_phases_of_rules():
    params, new = bert(2), ["classifier/kernel", "classifier/bias"]
    probe, tune = phases_of(params, ["new", ["all"]], new=new)
    assert {path for path, moves in flatten(probe.trainable).items() if moves} == set(new)
    assert all(flatten(tune.trainable).values())
    # A head that an earlier phase trained may rest in a later one; an untrained one may not.
    phases_of(params, ["new", "block:0"], new=new)
    with pytest.raises(ValueError, match=r"phase 1 \('block:0'\): .* no pretrained value"):
        phases_of(params, ["block:0", "new"], new=new)
    with pytest.raises(ValueError, match=r"phase 2 .* no leaf would move"):
        phases_of(params, ["new", ("all", 0.0)], new=new)
    with pytest.raises(ValueError, match="list of phases is empty"):
        phases_of(params, [])
    with pytest.raises(ValueError, match="one rule 'all'"):
        phases_of(params, "all")


def test_unfreezing_goes_top_down_until_everything_moves():
    params = bert(4)
    assert unfreezing(params, 3) == [["last:0"], ["last:3"], ["last:4"], ["all"]]
    grown = [
        {path for path, moves in flatten(chosen.trainable).items() if moves}
        for chosen in phases_of(params, unfreezing(params))
    ]
    assert all(less < more for less, more in itertools.pairwise(grown))
    assert grown[0] == moving(params, "head")
    assert grown[-1] == set(flatten(params))
    assert unfreezing(seq2seq()) == [["last:0"], ["last:1"], ["last:2"], ["all"]]
    with pytest.raises(ValueError, match="needs numbered blocks"):
        unfreezing({"a": LEAF})
    with pytest.raises(ValueError, match="per_phase is 0"):
        unfreezing(params, 0)
