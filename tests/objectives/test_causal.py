"""The next token: what counts, DFT, ASFT, NEFTune, and that no cut of a batch changes an update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.adapters import base_outputs, lora, plan_adapter, side_branch, with_adapter
from sftjax.objectives.causal import neftune, next_token, targets
from sftjax.train import init, make_step

V, D = 11, 6


def params(seed=0):
    one, two, three = jax.random.split(jax.random.key(seed), 3)
    return {
        "words": jax.random.normal(one, (V, D)),
        "mix": jax.random.normal(two, (D, D)),
        "head": jax.random.normal(three, (V, D)),
    }


def embed(params, batch):
    return params["words"][batch["input_ids"]]


def rest(params, h, batch, key):
    """Return a causal model of each segment: a running sum of what it saw."""
    segments = batch.get("segment_ids", jnp.ones_like(batch["input_ids"]))
    length = h.shape[1]
    seen = (segments[:, :, None] == segments[:, None, :]) & jnp.tri(length, dtype=bool)
    return jnp.tanh(jnp.einsum("bqk,bkd->bqd", seen.astype(h.dtype), h) @ params["mix"])


def hidden(params, batch, key):
    return rest(params, embed(params, batch), batch, key)


def head(params):
    return params["head"]


def batch_of(rows, length, seed=1):
    """Return rows of these lengths, padded, with some tokens that count."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((len(rows), length), np.int32)
    weights = np.zeros((len(rows), length), np.float32)
    segments = np.zeros((len(rows), length), np.int32)
    for i, size in enumerate(rows):
        ids[i, :size] = rng.integers(1, V, size)
        weights[i, size // 2 : size] = 1.0
        segments[i, :size] = 1
    return {"input_ids": ids, "loss_weights": weights, "segment_ids": segments}


def grad_of(objective, params, batch, key=None):
    def mean(params):
        loss, _ = objective(params, {}, batch, key)
        return loss.sum / loss.weight

    return jax.jit(jax.value_and_grad(mean))(params)


def test_a_first_token_is_no_target_even_if_it_has_a_weight():
    batch = {
        "input_ids": jnp.array([[3, 4, 5, 6]]),
        "loss_weights": jnp.ones((1, 4)),
        "segment_ids": jnp.array([[1, 1, 2, 0]]),
    }
    labels, weights = targets(batch)
    np.testing.assert_array_equal(labels, [4, 5, 6, 0])
    np.testing.assert_array_equal(weights, [1, 0, 0, 0])
    _, weights = targets({**batch, "valid": jnp.zeros(1)})
    assert not weights.any()


def test_equals_the_plain_loss_of_logits():
    batch = batch_of([7, 4], 8)

    def plain(params):
        z = hidden(params, batch, None) @ params["head"].T
        log_p = jax.nn.log_softmax(z[:, :-1])
        labels, weights = batch["input_ids"][:, 1:], batch["loss_weights"][:, 1:]
        nll = -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
        return (weights * nll).sum() / weights.sum()

    value, grads = grad_of(next_token(hidden, head, chunk=4), params(), batch)
    expected, wanted = jax.value_and_grad(plain)(params())
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, wanted)


def test_dft_has_the_gradient_of_the_probability():  # oracle O17
    batch = batch_of([7, 4], 8)

    def probability(params):
        log_p = jax.nn.log_softmax(hidden(params, batch, None) @ params["head"].T)
        labels, weights = targets(batch)
        p = jnp.exp(jnp.take_along_axis(log_p.reshape(-1, V), labels[:, None], 1)[:, 0])
        return -(weights * p).sum() / weights.sum()

    grads = grad_of(next_token(hidden, head, dft=True), params(), batch)[1]
    wanted = jax.grad(probability)(params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, wanted)


def test_asft_adds_nothing_at_the_base_and_a_pull_away_from_it():  # oracle O17
    base = params()
    batch = batch_of([7, 4], 8)
    frozen = jax.tree.map(jnp.copy, base)
    teacher = (lambda _, batch, key: hidden(frozen, batch, key), lambda _: frozen["head"])
    near = next_token(hidden, head, dft=True, base=teacher, base_weight=0.5)
    alone = next_token(hidden, head, dft=True)
    with_kl, without = grad_of(near, base, batch), grad_of(alone, base, batch)
    np.testing.assert_allclose(with_kl[0], without[0], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), with_kl[1], without[1])
    moved = params(3)
    _, aux = near(moved, {}, batch, None)
    assert float(aux.metrics["base_kl"].mean) > 0.1
    np.testing.assert_allclose(
        grad_of(near, moved, batch)[0],
        grad_of(alone, moved, batch)[0] + 0.5 * aux.metrics["base_kl"].mean,
        rtol=1e-5,
    )


def test_with_an_adapter_the_teacher_is_the_same_weights_at_scale_zero():
    import flax.linen as nn

    class Mix(nn.Module):
        @nn.compact
        def __call__(self, h):
            return jnp.tanh(nn.Dense(D, name="mix")(h))

    module, words = Mix(), jax.random.normal(jax.random.key(0), (V, D))
    trunk = module.init(jax.random.key(1), jnp.zeros((1, D)))["params"]

    def apply(params, batch, key=None):
        return module.apply({"params": params}, words[batch["input_ids"]])

    plan = plan_adapter(trunk, lora(r=2))
    joined = with_adapter(trunk, plan, jax.random.key(2))
    alone, objective = (
        next_token(
            side_branch(apply, plan),
            lambda params: words,
            base=(base_outputs(apply, plan), lambda params: words),
            base_weight=weight,
        )
        for weight in (0.0, 1.0)
    )
    batch = batch_of([7, 4], 8)
    assert float(objective(joined, {}, batch, None)[1].metrics["base_kl"].sum) < 1e-5
    joined["adapter"]["mix"]["lora_b"] += 0.5
    _, aux = objective(joined, {}, batch, None)
    assert float(aux.metrics["base_kl"].sum) > 1e-2
    # The pull comes back through the adapter alone.
    pull = jax.grad(
        lambda p: objective(p, {}, batch, None)[0].sum - alone(p, {}, batch, None)[0].sum
    )(joined)
    assert float(jnp.abs(pull["adapter"]["mix"]["lora_b"]).max()) > 1e-3


@pytest.mark.parametrize("pieces", [1, 3])
def test_micro_batches_of_ragged_rows_are_one_big_batch(pieces):  # oracle O10
    rows = [2, 7, 20, 3, 11, 5]
    batch = batch_of(rows, 20)
    order = np.array([4, 0, 2, 5, 1, 3])
    tx, objective = optax.sgd(0.1), next_token(hidden, head, z_loss=1e-3, label_smoothing=0.1)
    every = jax.tree.map(lambda _: True, params())

    def updated(batch, accumulate):
        state, fixed = init(params(), every, tx, jax.random.key(0))
        return make_step(objective, tx, accumulate=accumulate)(state, fixed, batch)

    whole, metrics = updated(batch, 1)
    state, found = updated({name: value[order] for name, value in batch.items()}, pieces)
    np.testing.assert_allclose(metrics["loss"], found["loss"], rtol=1e-6)
    assert float(metrics["weight"]) == float(found["weight"]) == batch["loss_weights"].sum()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole.trainable, state.trainable
    )


def test_padding_and_packing_change_neither_loss_nor_gradient():  # oracle O28
    objective = next_token(hidden, head)
    short, long = batch_of([7, 4], 8), batch_of([7, 4], 8)
    long = {name: np.pad(value, ((0, 0), (0, 5))) for name, value in long.items()}
    packed = {
        "input_ids": np.concatenate([short["input_ids"][0, :7], short["input_ids"][1, :4]])[None],
        "loss_weights": np.concatenate(
            [short["loss_weights"][0, :7], short["loss_weights"][1, :4]]
        )[None],
        "segment_ids": np.array([[1] * 7 + [2] * 4]),
    }
    value, grads = grad_of(objective, params(), short)
    for other in (long, packed):
        again, found = grad_of(objective, params(), other)
        np.testing.assert_allclose(value, again, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, found)


def test_noise_is_of_the_size_that_real_tokens_give():
    alpha = 5.0
    noisy = neftune(embed, lambda params, h, batch, key: h, alpha)
    batch = batch_of([7, 4], 16)
    clean = embed(params(), batch)
    noise = np.asarray(noisy(params(), batch, jax.random.key(0)) - clean)
    np.testing.assert_array_equal(noisy(params(), batch, None), clean)
    for row, size in enumerate((7, 4)):
        bound = alpha / np.sqrt(size * D)
        assert not noise[row, size:].any()
        assert 0.8 * bound < np.abs(noise[row]).max() <= bound
    # A packed row: each segment has its own length.
    ids = np.concatenate([batch["input_ids"][0, :7], batch["input_ids"][1, :4]])[None]
    packed = {"input_ids": ids, "segment_ids": np.array([[1] * 7 + [2] * 4])}
    noise = np.asarray(noisy(params(), packed, jax.random.key(0)) - embed(params(), packed))
    assert np.abs(noise[0, :7]).max() <= alpha / np.sqrt(7 * D)
    assert alpha / np.sqrt(7 * D) < np.abs(noise[0, 7:]).max() <= alpha / np.sqrt(4 * D)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="beside it `base`"):
        next_token(hidden, head, base_weight=0.1)
    with pytest.raises(ValueError, match="no loss_weights"):
        next_token(hidden, head)(params(), {}, {"input_ids": jnp.ones((1, 2), int)}, None)
