"""A prompt is words of its own before each row: the model on a longer vocabulary says the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.adapters import (
    attach,
    describe_adapter,
    lora,
    merge_adapter,
    plan_adapter,
    prompt_tuning,
    side_branch,
)
from sftjax.core import flatten, unflatten
from sftjax.models import build

P = 3
CASES = [
    (family, kind)
    for family in ("bert", "roberta", "distilbert")
    for kind in ("sequence", "token", "masked-lm")
] + [("bert", "mean"), ("distilbert", "first"), ("roberta", "hidden")]


def fresh(params, kind=None):
    plan = plan_adapter(params, kind or prompt_tuning(P))
    return plan, attach(params, plan, jax.random.key(4))[0]


def with_words(small, prompt):
    """The same model with P more words in its vocabulary, the prompt's, before each row."""
    model, params, batch = small
    words = len(prompt)
    vocabulary = model.config["vocab_size"] + words
    longer = build({**model.config, "vocab_size": vocabulary}, model.head)
    leaves = {
        path: jnp.concatenate([leaf, prompt]) if path.endswith("word_embeddings/embedding")
        else jnp.pad(leaf, (0, words)) if leaf.shape == (vocabulary - words,)
        else leaf
        for path, leaf in flatten(params).items()
    }  # fmt: skip
    rows = len(batch["input_ids"])
    ids = jnp.broadcast_to(jnp.arange(vocabulary - words, vocabulary), (rows, words))
    before = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    before["token_type_ids"] = jnp.zeros_like(ids)
    joined = {name: jnp.concatenate([before[name], batch[name]], 1) for name in batch}
    return jax.jit(longer.apply)(unflatten(leaves), joined)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_prompt_is_words_before_the_row(small, moved, family, kind):
    case = small(family, kind)
    plan, adapter = fresh(case.params)
    (prompt,) = jax.tree.leaves(adapter := moved(adapter, by=0.2))
    found = jax.jit(side_branch(case.model.apply, plan))(
        {"adapter": adapter, "base": case.params}, case.batch
    )
    base = jax.jit(case.model.apply)(case.params, case.batch)
    wanted = with_words(case, prompt)
    if kind in ("token", "masked-lm", "hidden"):
        wanted = wanted[:, P:, : base.shape[-1]]
    assert found.shape == base.shape
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert float(jnp.abs(found - base).max()) > 1e-2


class TestStart:
    def test_at_words_of_the_table(self, small):
        case = small("bert", "sequence")
        _, adapter = fresh(case.params)
        table = case.params["bert"]["embeddings"]["word_embeddings"]["embedding"]
        for vector in jax.tree.leaves(adapter)[0]:
            assert (vector == table).all(-1).any()

    def test_at_given_words_repeated_or_cut(self, small):
        case = small("bert", "sequence")
        table = case.params["bert"]["embeddings"]["word_embeddings"]["embedding"]
        for ids, taken in (([7], [7, 7, 7]), ([5, 6], [5, 6, 5]), (range(9), [0, 1, 2])):
            plan, adapter = fresh(case.params, prompt_tuning(P, prompt_tuning_init=list(ids)))
            assert (jax.tree.leaves(adapter)[0] == table[jnp.array(taken)]).all()
            assert plan.kinds[0].config["prompt_tuning_init"] == "TEXT"

    def test_at_random_with_deviation_one(self, small):
        case = small("bert", "sequence")
        _, adapter = fresh(case.params, prompt_tuning(8, prompt_tuning_init="RANDOM"))
        assert 0.8 < float(jnp.std(jax.tree.leaves(adapter)[0])) < 1.2


def test_gradients_are_of_every_place_and_of_finite_differences(small, moved):
    case = small("roberta", "token")
    plan, adapter = fresh(case.params)
    run = side_branch(case.model.apply, plan)
    weights = jax.random.normal(jax.random.key(0), case.batch["input_ids"].shape)[..., None]

    @jax.jit
    def loss(adapter):
        return jnp.mean(weights * run({"adapter": adapter, "base": case.params}, case.batch))

    (gradient,) = jax.tree.leaves(jax.grad(loss)(adapter))
    assert gradient.shape == (P, 32)
    assert (jnp.abs(gradient).max(1) > 1e-5).all()
    (along,) = jax.tree.leaves(direction := moved(jax.tree.map(jnp.zeros_like, adapter), by=1.0))

    def at(h):
        return float(loss(jax.tree.map(lambda a, d: a + h * d, adapter, direction)))

    slope = (at(0.01) - at(-0.01)) / 0.02
    assert slope == pytest.approx(float(jnp.vdot(gradient, along)), rel=0.02)


def test_positions_that_are_given_are_moved_behind_the_prompt(small):
    for family in ("bert", "roberta"):
        case = small(family, "sequence")
        plan, adapter = fresh(case.params)
        run = side_branch(case.model.apply, plan)
        joined = {"adapter": adapter, "base": case.params}
        start = 2 if family == "roberta" else 0
        given = jnp.broadcast_to(jnp.arange(start, start + 8), (3, 8))
        np.testing.assert_allclose(
            run(joined, {**case.batch, "position_ids": given}), run(joined, case.batch), atol=1e-6
        )


class Twice(nn.Module):
    """Reads one table for two sequences, as an encoder-decoder does."""

    @nn.compact
    def __call__(self, ids):
        words = nn.Embed(50, 4, name="words")
        return words(ids), words(jnp.array([[1, 2, 3, 4]]))


def test_only_the_places_made_for_it_hold_the_prompt():
    ids = jnp.array([[7, 8], [9, 6]])
    params = Twice().init(jax.random.key(0), ids)["params"]
    plan = plan_adapter(params, prompt_tuning(P), target_modules=["words"])
    adapter = attach(params, plan, jax.random.key(1))[0]

    read = {}

    def run(params, batch):
        read["first"], read["second"] = Twice().apply({"params": params}, batch["input_ids"])
        return read["first"]

    found = side_branch(run, plan)({"adapter": adapter, "base": params}, {"input_ids": ids})
    table = params["words"]["embedding"]
    assert (read["first"][:, :P] == adapter["words"]["prompt"]).all()
    assert (found == table[ids]).all()
    assert (read["second"] == table[jnp.array([[1, 2, 3, 4]])]).all()


def test_it_goes_with_a_lora_elsewhere(small, moved):
    case = small("distilbert", "sequence")
    plan = plan_adapter(case.params, prompt_tuning(P)) + plan_adapter(
        case.params, lora(r=2), target_modules=["q_lin"]
    )
    adapter = attach(case.params, plan, jax.random.key(0))[0]
    run = jax.jit(side_branch(case.model.apply, plan))
    before, after = (
        run({"adapter": leaves, "base": case.params}, case.batch)
        for leaves in (adapter, moved(adapter, by=0.3))
    )
    assert float(jnp.abs(after - before).max()) > 1e-3
    assert {row.kind for row in describe_adapter(case.params, plan).rows} == {"prompt", "lora"}


class TestRefused:
    @pytest.mark.parametrize("p", [0, -1, 2.0, True])
    def test_numbers_of_places_that_are_none(self, p):
        with pytest.raises(ValueError, match=r"num_virtual_tokens=.* an integer of 1 or more"):
            prompt_tuning(p)

    @pytest.mark.parametrize(
        ("start", "words"),
        [
            ("random", "prompt_tuning_init='random'; known: SAMPLE_VOCAB, RANDOM, or the ids"),
            ([], r"starts from the ids \[\]; give one or more"),
            ([3, -1], r"starts from the ids \[3, -1\]; give one or more, 0 or above"),
        ],
    )
    def test_starts_that_are_none(self, start, words):
        with pytest.raises(ValueError, match=words):
            prompt_tuning(P, prompt_tuning_init=start)

    def test_an_id_outside_the_table(self, small):
        with pytest.raises(
            ValueError, match=r"id 50, and bert/embeddings/word_embeddings has the ids 0 to 49"
        ):
            fresh(small("bert", "sequence").params, prompt_tuning(P, prompt_tuning_init=[50]))

    def test_rows_too_long_with_the_prompt(self, small):
        case = small("bert", "sequence")
        plan, adapter = fresh(case.params, prompt_tuning(9))
        with pytest.raises(ValueError, match=r"17 tokens \(places of a prompt among them\).* 16;"):
            side_branch(case.model.apply, plan)(
                {"adapter": adapter, "base": case.params}, case.batch
            )

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"segment_ids": jnp.ones((3, 8), int)}, "unpack the rows"),
            ({"hidden": jnp.ones((3, 8, 32))}, "ran without the prompt"),
            ({"input_ids": jnp.ones(8, int)}, r"no input_ids \(B, T\)"),
            ({"input_ids": None}, r"no input_ids \(B, T\)"),
        ],
    )
    def test_batches_that_no_prompt_can_stand_before(self, small, more, words):
        case = small("bert", "token")
        plan, adapter = fresh(case.params)
        with pytest.raises(ValueError, match=words):
            side_branch(case.model.apply, plan)(
                {"adapter": adapter, "base": case.params}, {**case.batch, **more}
            )

    def test_a_scale(self, small):
        case = small("bert", "sequence")
        plan, adapter = fresh(case.params)
        joined = {"adapter": adapter, "base": case.params}
        for scale in (0.0, jnp.ones(())):
            with pytest.raises(ValueError, match="a prompt has no scale"):
                side_branch(case.model.apply, plan, scale=scale)(joined, case.batch)

    def test_a_merge(self, small):
        case = small("bert", "sequence")
        plan, adapter = fresh(case.params)
        with pytest.raises(ValueError, match="a prompt adapter cannot be merged"):
            merge_adapter(case.params, adapter, plan)

    def test_a_place_other_than_a_table(self, small):
        with pytest.raises(ValueError, match=r"names .*query .* prompt sits beside a embedding"):
            plan_adapter(
                small("bert", "sequence").params, prompt_tuning(P), target_modules=["query"]
            )
