"""Norm, activations and dropout against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.dropout import Dropout
from sftjax.models.norm import LayerNorm, standardize

X = jax.random.normal(jax.random.key(0), (5, 7)) * 3 + 1


def plain(x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


@pytest.mark.parametrize("epsilon", [1e-12, 0.1])
def test_the_norm_s_slopes_are_those_of_the_plain_formula(epsilon):
    weight = jnp.sin(jnp.arange(35.0)).reshape(5, 7)
    ours = jax.grad(lambda x: (standardize(x, jnp.float32(epsilon)) * weight).sum())(X)
    theirs = jax.grad(lambda x: (plain(x, epsilon) * weight).sum())(X)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    _, forward = jax.jvp(lambda x: standardize(x, jnp.float32(epsilon)), (X,), (weight,))
    _, expected = jax.jvp(lambda x: plain(x, epsilon), (X,), (weight,))
    np.testing.assert_allclose(forward, expected, atol=1e-6)


def test_the_norm_s_statistics_are_float32():
    module = LayerNorm(1e-12, jnp.bfloat16)
    far = (1000 + X).astype(jnp.float32)  # bfloat16 statistics would lose all of it
    y = module.apply(module.init(jax.random.key(0), far), far)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), plain(far, 1e-12), atol=0.02)


def test_gelu_is_the_gaussian_integral():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    exact = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)]
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.asarray(x)), exact, atol=5e-7)


@pytest.mark.torch
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_the_one_transformers_calls_so(name):
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    x = np.linspace(-12, 12, 401, dtype=np.float32)
    theirs = torch.from_numpy(x).requires_grad_()
    value = ACT2FN[name](theirs)
    value.sum().backward()
    ours, slope = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(jnp.asarray(x))
    np.testing.assert_allclose(ours, value.detach().numpy(), atol=2e-6)
    smooth = np.abs(x[:, None] - np.array([-3.0, 0.0, 3.0, 6.0, -10.0, 10.0])).min(1) > 0.01
    np.testing.assert_allclose(np.asarray(slope)[smooth], theirs.grad.numpy()[smooth], atol=5e-6)


def test_dropout_keeps_the_mean_and_zeroes_its_share():
    x = jnp.ones((400, 251))  # an odd width takes half a word
    y = np.asarray(Dropout(0.1).apply({}, x, rngs={"dropout": jax.random.key(0)}))
    assert abs((y == 0).mean() - 0.1) < 0.004
    assert abs(y.mean() - 1) < 0.005
    assert len(np.unique(y)) == 2
    columns = (y == 0).mean(0)
    assert columns.min() > 0.04  # both halves of a word are random
    assert columns.max() < 0.17


def test_no_key_and_no_rate_are_no_dropout():
    assert np.array_equal(Dropout(0.5).apply({}, X), X)
    assert np.array_equal(Dropout(0.0).apply({}, X, rngs={"dropout": jax.random.key(0)}), X)
