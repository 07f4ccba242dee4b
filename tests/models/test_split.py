"""A model cut between blocks is the model, for every family, cut and head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.models import Head, build, split
from sftjax.models.text_encoder import ENCODERS

TOKENS = 10
SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 14,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
    "max_position_embeddings": 14,
}  # fmt: skip
CASES = [(family, "sequence") for family in ENCODERS] + [
    ("bert", "token"), ("bert", "masked-lm"), ("bert", "mean"),
]  # fmt: skip


def model_of(family, kind):
    config = {"model_type": family, **(DISTILBERT if family == "distilbert" else SIZES)}
    return build(config, Head(kind, ("a", "b", "c") if kind in ("sequence", "token") else ()))


def batch(rows=2):
    ids = np.random.default_rng(0).integers(5, 50, (rows, TOKENS), dtype=np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def outputs(model, params, rows, blocks):
    """What the whole model gives and what its two parts give, one after the other."""
    lower, upper = split(model, blocks)
    hidden = jax.jit(lower)(params, rows)
    whole = jax.jit(model.apply)(params, rows)
    return whole, jax.jit(upper)(params, {**rows, "hidden": hidden}), hidden


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_two_parts_are_the_whole(family, kind):
    model = model_of(family, kind)
    params, rows = model.init(jax.random.key(0)), batch()
    for blocks in range(model.architecture.num_layers + 1):
        whole, parts, _ = outputs(model, params, rows, blocks)
        np.testing.assert_allclose(parts, whole, rtol=0, atol=2e-6)


def test_the_head_alone_needs_only_first_tokens():
    model = model_of("bert", "sequence")
    params = model.init(jax.random.key(0))
    *_, hidden = outputs(model, params, batch(), model.architecture.num_layers)
    assert hidden.ndim == 2


@pytest.mark.parametrize("family", ENCODERS)
def test_first_tokens_alone_are_those_of_all(family):
    """The shortcut of the last block changes neither the value nor the gradient."""
    first, hidden = model_of(family, "first"), model_of(family, "hidden")
    params, rows = first.init(jax.random.key(0)), batch()
    rows["attention_mask"][1, TOKENS // 2 :] = 0

    def short(params):
        return first.apply(params, rows)

    def long(params):
        return hidden.apply(params, rows)[:, 0]

    np.testing.assert_allclose(jax.jit(short)(params), jax.jit(long)(params), atol=2e-6)
    one, other = (
        jax.jit(jax.grad(lambda p, give=give: jnp.sum(jnp.sin(give(p)))))(params)
        for give in (short, long)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, other)


def test_dropout_is_drawn_above_the_cut():
    model = model_of("bert", "sequence")
    params, rows = model.init(jax.random.key(0)), batch()
    lower, upper = split(model, 1)
    given = {**rows, "hidden": lower(params, rows)}
    still, drawn = upper(params, given, None), upper(params, given, jax.random.key(1))
    assert not np.allclose(still, drawn)


def test_a_cut_outside_the_model_is_refused():
    model = model_of("bert", "sequence")
    with pytest.raises(ValueError, match="cannot be cut above"):
        split(model, model.architecture.num_layers + 1)


def test_the_upper_part_asks_for_its_input():
    model = model_of("bert", "sequence")
    with pytest.raises(ValueError, match="the batch has no 'hidden'"):
        split(model, 1).upper(model.shapes(), batch(), None)
