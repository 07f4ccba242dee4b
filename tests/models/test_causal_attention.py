"""One attention function, the same numbers by every way there is here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.core import compiling_for
from sftjax.models.block_attention import attend_by_blocks
from sftjax.models.causal_attention import attend, cudnn_refuses, gather, seen_by, splash_refuses

ROWS, LENGTH, HEADS, GROUPS, WIDTH = 2, 128, 4, 2, 16
SEGMENTS = np.array([[1] * 50 + [2] * 60 + [0] * 18, [1] * 128], np.int32)
WAYS = {
    "causal": {},
    "window": {"window": 20},
    "segments": {"segment_ids": SEGMENTS},
    "capped": {"softcap": 2.0},
    "all": {"window": 20, "segment_ids": SEGMENTS, "softcap": 2.0},
}


def drawn(length=LENGTH):
    heads = (HEADS, GROUPS, GROUPS)
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((ROWS, length, h, WIDTH), np.float32)) for h in heads]


def by_the_formula(q, k, v, scale, segment_ids=None, window=None, softcap=None):
    """Token by token, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for row in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = [
                s for s in range(t + 1)
                if (window is None or t - s < window)
                and (segment_ids is None or segment_ids[row][s] == segment_ids[row][t])
            ]  # fmt: skip
            for h in range(HEADS):
                j = h // (HEADS // GROUPS)
                z = k[row, seen, j] @ q[row, t, h] * scale
                z = z if softcap is None else softcap * np.tanh(z / softcap)
                w = np.exp(z - z.max())
                out[row, t, h] = (w / w.sum()) @ v[row, seen, j]
    return out


@pytest.mark.parametrize("way", WAYS)
def test_xla_is_the_formula_and_the_others_are_xla(way):
    q, k, v = drawn()
    options = {"scale": 0.3, **WAYS[way]}
    weight = jnp.where(SEGMENTS[..., None, None] != 0, jnp.cos(jnp.arange(WIDTH)), 0)

    def total(q, k, v, how):
        y = attend(q, k, v, implementation=how, **options)
        return (y * weight).sum(), y

    run = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True), static_argnums=3)
    (_, plain), gradients = run(q, k, v, "xla")
    real = SEGMENTS != 0
    np.testing.assert_allclose(
        np.asarray(plain)[real], by_the_formula(q, k, v, **options)[real], atol=2e-6
    )
    for how in ("splash-interpret", "blocks"):
        (_, kernel), theirs = run(q, k, v, how)
        np.testing.assert_allclose(np.asarray(kernel)[real], np.asarray(plain)[real], atol=2e-6)
        for one, other in zip(theirs, gradients, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_blocks_of_other_segments_are_not_even_read():
    """What is not a number in one example would reach the next by a product with 0."""
    q, k, v = (x[:, :100] for x in drawn())
    segments = np.repeat([[1, 2, 0]], [50, 40, 10], axis=1).repeat(ROWS, 0)
    after = np.asarray(segments[0] == 2)
    dirty = [jnp.where(jnp.arange(100)[:, None, None] < 48, jnp.nan, x) for x in (k, v)]

    def of_the_second(q, k, v):
        y = attend_by_blocks(q, k, v, scale=0.3, segment_ids=jnp.asarray(segments), block=16)
        return y[:, after].sum(), y[:, after]

    run = jax.jit(jax.value_and_grad(of_the_second, has_aux=True))
    (_, y), d_q = run(q, k, v)
    # From token 64 on a block's first token is of the second segment.
    (_, same), d_same = run(q, *dirty)
    np.testing.assert_array_equal(same[:, 14:], y[:, 14:])
    np.testing.assert_array_equal(d_same[:, 64:], d_q[:, 64:])
    expected = by_the_formula(q, k, v, 0.3, segments)
    np.testing.assert_allclose(y, expected[:, after], atol=2e-6)


def test_one_device_goes_row_by_row_to_the_same_numbers_and_gradients():
    q, k, v = drawn()

    def total(q, k, v):
        y = attend_by_blocks(q, k, v, scale=0.3, segment_ids=jnp.asarray(SEGMENTS), block=16)
        return (jnp.where(SEGMENTS[..., None, None] > 0, y, 0.0) ** 2).sum(), y

    def found():
        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)

    together = found()
    with compiling_for(jax.devices()[:1]):
        apart = found()
    for one, other in zip(jax.tree.leaves(apart), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_row_of_padding_is_finite_and_so_are_its_gradients():
    q, k, v = drawn(8)
    nothing = jnp.zeros((1, 8, 8), bool)

    def total(q):
        k_BJSK, v_BJSK = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        return gather(q, k_BJSK, v_BJSK, nothing, scale=1.0).sum()

    assert np.isfinite(jax.jit(jax.grad(total))(q)).all()


def test_who_sees_whom():
    seen = seen_by(jnp.array([[1, 1, 1, 2, 2, 0]]), 6, 2)[0].astype(int).tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1],
    ]  # fmt: skip


@pytest.mark.parametrize(("how", "change", "message"), [
    ("flash", {}, "attention 'flash' is unknown"),
    ("cudnn", {}, "bfloat16 or float16, not float32"),
    ("splash", {}, "multiple of 128 tokens, not 100"),
    ("splash-interpret", {"dropout": lambda w: w}, "multiple of 128"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_with_the_reason(how, change, message):
    with pytest.raises(ValueError, match=message):
        attend(*drawn(100), scale=1.0, implementation=how, **change)


def test_reasons_of_the_kernels():
    half = jnp.ones((1, 128, 2, 64), jnp.bfloat16)
    assert cudnn_refuses(half, None) is None
    assert "does not cap" in cudnn_refuses(half, 50.0)
    assert "256" in cudnn_refuses(jnp.ones((1, 2, 1, 256), jnp.bfloat16), None)
    assert "even" in cudnn_refuses(half[:, :-1], None)
    assert splash_refuses(half) is None
