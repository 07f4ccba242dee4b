"""Attention is the textbook's formula, in value and in slope, and stays inside its segment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.models.attention import attend, attention_bias

B, T, H, K = 2, 6, 2, 4
MASK = jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


def qkv(dtype=jnp.float32):
    return tuple(
        jax.random.normal(key, (B * T, H * K), dtype)
        for key in jax.random.split(jax.random.key(0), 3)
    )


def textbook(q, k, v, bias):
    q, k, v = (x.reshape(B, T, H, K) for x in (q, k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / K**0.5 + bias[:, None]
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v).reshape(B * T, H * K)


@pytest.mark.parametrize("segments", [None, jnp.array([[1, 1, 2, 2, 2, 3], [1, 2, 2, 0, 0, 0]])])
def test_value_and_gradient_are_the_textbook_s(segments):
    bias, weight = attention_bias(MASK, segments), jnp.arange(B * T * H * K).reshape(B * T, H * K)

    def total(function):
        return lambda q, k, v: (function(q, k, v) * jnp.sin(weight)).sum()

    ours = jax.value_and_grad(total(lambda *x: attend(*x, bias, H)), (0, 1, 2))(*qkv())
    theirs = jax.value_and_grad(total(lambda *x: textbook(*x, bias)), (0, 1, 2))(*qkv())
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_forward_mode_agrees_with_reverse_mode():
    bias, (q, k, v) = attention_bias(MASK), qkv()
    _, slope = jax.jvp(lambda q: attend(q, k, v, bias, H).sum(), (q,), (k,))
    reverse = jax.grad(lambda q: attend(q, k, v, bias, H).sum())(q)
    np.testing.assert_allclose(slope, (reverse * k).sum(), atol=1e-5)


def test_what_may_not_be_seen_changes_nothing():
    segments = jnp.array([[1, 1, 1, 2, 2, 2]] * B)
    bias, (q, k, v) = attention_bias(jnp.ones((B, T)), segments), qkv()
    far = (jnp.arange(B * T) % T >= 3)[:, None]
    before = attend(q, k, v, bias, H)
    after = attend(q, jnp.where(far, 9.0, k), jnp.where(far, -7.0, v), bias, H)
    near = ~np.asarray(far)[:, 0]
    assert np.array_equal(np.asarray(before)[near], np.asarray(after)[near])
    assert not np.allclose(np.asarray(before)[~near], np.asarray(after)[~near])


def test_a_row_of_padding_is_finite_in_value_and_gradient():
    bias = attention_bias(jnp.zeros((B, T)))
    value, slopes = jax.value_and_grad(lambda *x: attend(*x, bias, H).sum(), (0, 1, 2))(*qkv())
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_scores_are_float32_whatever_the_inputs():
    bias = attention_bias(MASK)
    exact = attend(*qkv(), bias, H)
    coarse = attend(*qkv(jnp.bfloat16), bias, H)
    assert coarse.dtype == jnp.bfloat16
    jaxpr = str(jax.make_jaxpr(lambda *x: attend(*x, bias, H))(*qkv(jnp.bfloat16)))
    assert "exp" in jaxpr
    assert all("f32" in line.split("=")[0] for line in jaxpr.splitlines() if "= exp" in line)
    assert exact.shape == coarse.shape
