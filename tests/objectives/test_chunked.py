"""Chunked cross-entropy is the plain one, in a fraction of its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from sftjax.objectives.chunked import (
    VocabMesh,
    chunked_cross_entropy,
    token_stats,
    weighted_sum,
)

GIB = 2**30


def plain(hidden, words, labels, weights, *, softcap=None, label_smoothing=0.0, z_loss=0.0):
    z = jnp.einsum("nd,vd->nv", hidden, words, preferred_element_type=jnp.float32)
    if softcap:
        z = softcap * jnp.tanh(z / softcap)
    log_p = jax.nn.log_softmax(z)
    chosen = jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]
    loss = -(1 - label_smoothing) * chosen - label_smoothing * log_p.mean(-1)
    return jnp.sum(weights * (loss + z_loss * jnp.square(jax.nn.logsumexp(z, -1))))


def problem(n=24, v=37, d=8, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    return (
        jax.random.normal(keys[0], (n, d)),
        jax.random.normal(keys[1], (v, d)),
        jax.random.randint(keys[2], (n,), 0, v),
        jax.random.uniform(keys[3], (n,)),
    )


@pytest.mark.parametrize("by", ["tokens", "vocabulary"])
@pytest.mark.parametrize("chunk", [5, 37, 64])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 3.0}, {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 9.0}]
)
def test_value_and_gradients_are_those_of_the_plain_loss(chunk, options, by):
    hidden, words, labels, weights = problem()

    def ours(hidden, words, weights):
        loss = chunked_cross_entropy(hidden, words, labels, weights, chunk=chunk, by=by, **options)
        return loss.sum, loss.weight

    def theirs(hidden, words, weights):
        return plain(hidden, words, labels, weights, **options)

    (value, weight), grads = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(
        hidden, words, weights
    )
    expected, expected_grads = jax.value_and_grad(theirs, (0, 1, 2))(hidden, words, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(weight, weights.sum(), rtol=1e-6)
    for found, wanted in zip(grads, expected_grads, strict=True):
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, atol=1e-6 * scale, rtol=1e-6)


@pytest.mark.parametrize("by", ["tokens", "vocabulary"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}])
@pytest.mark.parametrize("chunk", [5, 64])
def test_words_that_stand_still_give_the_same_gradient_from_one_pass(chunk, options, by):
    hidden, words, labels, weights = problem()

    def ours(hidden, weights):
        loss = chunked_cross_entropy(hidden, words, labels, weights, chunk=chunk, by=by, **options)
        return loss.sum

    def theirs(hidden, weights):
        return plain(hidden, words, labels, weights, **options)

    value, grads = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, weights)
    expected, expected_grads = jax.value_and_grad(theirs, (0, 1))(hidden, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for found, wanted in zip(grads, expected_grads, strict=True):
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, atol=1e-6 * scale, rtol=1e-6)


def test_divergence_from_a_teacher_and_its_gradient():
    hidden, words, labels, _ = problem()
    hidden0, words0, _, _ = problem(d=6, seed=1)

    def ours(hidden, words, hidden0):
        stats = token_stats(hidden, words, labels, teacher=(hidden0, words0), chunk=7, softcap=5.0)
        return stats.kl.sum()

    def theirs(hidden, words):
        log_p = jax.nn.log_softmax(5 * jnp.tanh(hidden @ words.T / 5))
        log_p0 = jax.nn.log_softmax(5 * jnp.tanh(hidden0 @ words0.T / 5))
        return jnp.sum(jnp.exp(log_p0) * (log_p0 - log_p))

    value, grads = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(hidden, words, hidden0)
    expected, expected_grads = jax.value_and_grad(theirs, (0, 1))(hidden, words)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    for found, wanted in zip(grads[:2], expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6 * float(jnp.abs(wanted).max()))
    assert not np.any(grads[2])  # nothing flows into the teacher


@pytest.mark.parametrize("moving", [(0, 1), (0,), (1,)])
def test_by_tokens_every_number_may_count(moving):
    """A law: sums over tokens, a teacher and a cap among them, do not depend on what is sliced."""
    hidden, words, labels, weights = problem(n=23, v=50)
    teacher = problem(n=23, v=50, d=6, seed=1)[:2]

    def each(stats):
        sure = jax.lax.stop_gradient(jnp.exp(-stats.nll))
        return sure * stats.nll + 0.1 * stats.mean + jnp.square(stats.log_sum) + 0.3 * stats.kl

    def run(by, scale, *given):
        options = {"teacher": teacher, "softcap": 5.0, "chunk": 9, "by": by}
        total, stats = weighted_sum(each, *given, labels, weights, **options)
        return scale * total, stats

    found, wanted = (
        jax.jit(jax.value_and_grad(run, [at + 2 for at in moving], has_aux=True), static_argnums=0)(
            by, 0.7, hidden, words
        )
        for by in ("tokens", "vocabulary")
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
    (total, stats), _ = found
    np.testing.assert_allclose(total, 0.7 * jnp.sum(weights * each(stats)), rtol=1e-5)
    plain_run, _ = run("tokens", 0.7, hidden, words)  # without gradients
    np.testing.assert_allclose(total, plain_run, rtol=1e-5)


def test_by_tokens_many_runs_are_one_step():
    hidden, words, labels, weights = problem()
    many = jnp.stack([words, 2 * words])

    def loss(words):
        return chunked_cross_entropy(hidden, words, labels, weights, chunk=7, by="tokens").sum

    found = jax.jit(jax.vmap(jax.grad(loss)))(many)
    for one, alone in zip(found, many, strict=True):
        np.testing.assert_allclose(one, jax.grad(loss)(alone), rtol=1e-5, atol=1e-6)


def test_numbers_of_tokens_pass_no_gradient_on():
    hidden, words, labels, weights = problem()

    def more(words, by):
        total, stats = weighted_sum(lambda stats: stats.nll, hidden, words, labels, weights, by=by)
        return total + 100.0 * stats.nll.sum()

    for by in ("tokens", "vocabulary"):
        found = jax.grad(more)(words, by)
        np.testing.assert_allclose(
            found, jax.grad(lambda w: plain(hidden, w, labels, weights))(words), atol=1e-5
        )


def test_a_vocabulary_cut_over_devices_gives_the_same():
    hidden, words, labels, weights = problem(n=24, v=40)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "vocab"))
    sharded = VocabMesh(mesh, "vocab", "data")
    teacher = problem(n=24, v=40, seed=1)[:2]

    def run(hidden, words, where):
        stats = token_stats(
            hidden, words, labels, teacher=teacher, chunk=4, sharded=where, softcap=6.0
        )
        return jnp.sum(weights * (stats.nll + stats.mean + stats.kl)), stats

    whole = jax.jit(jax.value_and_grad(lambda h, w: run(h, w, None), (0, 1), has_aux=True))
    parts = jax.jit(jax.value_and_grad(lambda h, w: run(h, w, sharded), (0, 1), has_aux=True))
    for found, wanted in zip(
        jax.tree.leaves(parts(hidden, words)), jax.tree.leaves(whole(hidden, words)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    # Words that stand still, with a teacher and without.
    frozen = jax.grad(lambda h: run(h, words, sharded)[0])(hidden)
    np.testing.assert_allclose(frozen, whole(hidden, words)[1][0], rtol=2e-5, atol=2e-5)

    def alone(hidden, where):
        stats = token_stats(hidden, words, labels, chunk=4, sharded=where)
        return jnp.sum(weights * (stats.nll + stats.mean))

    found, wanted = (jax.grad(alone)(hidden, where) for where in (sharded, None))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def compiled(loss, argnums, tokens=4096, vocab=131_072, width=1024):
    shapes = (
        jax.ShapeDtypeStruct((tokens, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((vocab, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    return jax.jit(jax.value_and_grad(loss, argnums)).lower(*shapes).compile()


@pytest.mark.parametrize("by", ["tokens", "vocabulary"])
@pytest.mark.parametrize(("argnums", "most"), [((0, 1), 1.2), (0, 0.8)])
def test_4096_tokens_of_a_128k_vocabulary_take_little_memory(argnums, most, by):
    def ours(hidden, words, labels, weights):
        return chunked_cross_entropy(hidden, words, labels, weights, z_loss=1e-4, by=by).sum

    memory = compiled(ours, argnums).memory_analysis()
    assert memory.temp_size_in_bytes <= most * GIB


@pytest.mark.parametrize("argnums", [(0, 1), 0])
def test_the_plain_loss_takes_several_times_as_much(argnums):
    against = compiled(plain, argnums).memory_analysis()
    assert against.temp_size_in_bytes >= 4.2 * GIB  # so the figures above mean what they say


@pytest.mark.parametrize(
    ("argnums", "softcap", "products"),
    [
        ((0, 1), None, 4),  # forward, again going backward, the gradients of tokens and of words
        (0, 30.0, 3),  # a bent slope must be computed again
        (0, None, 2),  # forward and one gradient, as without slices
    ],
)
def test_the_products_that_are_taken(argnums, softcap, products):
    slices = 8

    def loss(hidden, words, labels, weights):
        options = {"z_loss": 1e-4, "chunk": 1024 // slices, "softcap": softcap}
        return chunked_cross_entropy(hidden, words, labels, weights, **options).sum

    # The compiler counts a loop's body once.
    flops = slices * compiled(loss, argnums, 128, 1024, 64).cost_analysis()["flops"]
    assert products <= flops / (2 * 128 * 1024 * 64) <= products + 0.4


def test_by_tokens_three_products_are_taken():
    slices = 8

    def loss(hidden, words, labels, weights):
        options = {"z_loss": 1e-4, "chunk": 1024 // slices, "by": "tokens"}
        return chunked_cross_entropy(hidden, words, labels, weights, **options).sum

    flops = slices * compiled(loss, (0, 1), 128, 1024, 64).cost_analysis()["flops"]
    # The scaling of the gradients lies outside the loop, and is counted so many times here.
    assert 3 <= flops / (2 * 128 * 1024 * 64) <= 3.6


def test_shapes_that_do_not_fit_are_refused():
    hidden, words, labels, _ = problem()
    with pytest.raises(ValueError, match="do not fit"):
        token_stats(hidden, words[:, :4], labels)
    mesh = Mesh(np.array(jax.devices()[:2]), ("vocab",))
    with pytest.raises(ValueError, match="cannot be cut evenly"):
        token_stats(hidden, words, labels, sharded=VocabMesh(mesh, "vocab"))
    with pytest.raises(ValueError, match="goes by='vocabulary'"):
        chunked_cross_entropy(hidden, words, labels, sharded=VocabMesh(mesh, "vocab"), by="tokens")
