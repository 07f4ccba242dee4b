"""Steps of few rows multiply by transposed kernels: the same numbers, in the better layout."""

import gc
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.evaluate.generate import compile_generate, compile_stream, generate
from sftjax.evaluate.generate_settings import GenerationSettings
from sftjax.models import Head, build
from sftjax.models.few_rows import FEW, LastTurned, times, turned, with_turned

T5 = {
    "model_type": "t5", "vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1,
    "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
BART = {
    "model_type": "bart", "vocab_size": 50, "d_model": 32, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 20,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
}  # fmt: skip
ROWS = 6
BATCH = {"input_ids": np.random.default_rng(0).integers(5, 50, (ROWS, 7), dtype=np.int32)}
SETTINGS = GenerationSettings(max_new_tokens=5, eos_token_id=(1,), pad_token_id=0)


@pytest.fixture(scope="module", params=[T5, BART, LLAMA], ids=lambda config: config["model_type"])
def made(request):
    kind = "causal-lm" if request.param is LLAMA else "seq2seq-lm"
    model = build(request.param, Head(kind))
    return model.decoder, jax.tree.map(lambda leaf: 3 * leaf, model.init(jax.random.key(0)))


def dots(decoder, params, kernels):
    """The shapes of the products with matrices in the compiled program of a step."""
    _, cache = decoder.start(params, BATCH, 5)

    def step(params, kernels, tokens, cache):
        return with_turned(decoder, params, kernels).step(params, tokens, cache)

    tokens = jnp.ones(ROWS, jnp.int32)
    text = jax.jit(step).lower(params, kernels, tokens, cache).compile().as_text()
    return re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", text)


def test_a_step_gives_the_same_with_its_kernels_turned(made):
    decoder, params = made
    quick = with_turned(decoder, params, turned(params, decoder.read_once))
    logits, cache = decoder.start(params, BATCH, 5)
    also, _ = quick.start(params, BATCH, 5)
    np.testing.assert_allclose(also, logits, atol=2e-4)
    tokens = jnp.arange(ROWS, dtype=jnp.int32)
    for one, other in zip(
        jax.tree.leaves(quick.step(params, tokens, cache)),
        jax.tree.leaves(decoder.step(params, tokens, cache)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_every_matrix_of_a_step_is_multiplied_from_the_left(made):
    """So the result lies as (outputs, rows), which XLA on a CPU computes without a new layout."""
    decoder, params = made
    plain = dots(decoder, params, None)
    quick = dots(decoder, params, turned(params, decoder.read_once))
    assert len(quick) == len(plain) > 6
    assert all(columns == str(ROWS) for _, columns in quick)
    assert any(rows == str(ROWS) for rows, _ in plain)


def test_texts_are_the_same_one_by_one_and_together(made):
    """One row multiplies as ever, several by turned kernels; streams and pure calls as well."""
    decoder, params = made
    run = compile_generate(decoder, SETTINGS)
    together = np.asarray(run(params, BATCH).tokens)
    for row in range(ROWS):
        alone = run(params, {"input_ids": BATCH["input_ids"][row : row + 1]}).tokens
        assert np.array_equal(alone[0], together[row])
    assert np.array_equal(generate(decoder, params, BATCH, SETTINGS).tokens, together)
    streamed = compile_stream(decoder, SETTINGS)(params, BATCH, lambda tokens: None)
    assert np.array_equal(streamed.tokens, together)


def test_the_encoder_is_not_turned_and_nothing_but_float32_matrices_is():
    params = build(T5, Head("seq2seq-lm")).init(jax.random.key(0))
    leaves = jax.tree.leaves_with_path(params)
    for (path, leaf), kernel in zip(leaves, turned(params, "encoder"), strict=True):
        names = [key.key for key in path]
        assert (kernel is not None) == (names[0] != "encoder" and names[-1] == "kernel")
        assert kernel is None or np.array_equal(kernel, leaf.T)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert not any(kernel is not None for kernel in turned(half, "encoder"))


@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_is_the_same_however_many_rows(rows, dtype):
    rng = np.random.default_rng(rows)
    x, w = (jnp.asarray(rng.normal(size=(n, 24)), dtype) for n in (rows, 9))
    found = jax.jit(times)(x, w)
    assert found.shape == (rows, 9)
    assert found.dtype == jnp.float32
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(found, exact, atol=1e-4)
    gradient = jax.grad(lambda w: times(x, w).sum())(w)
    np.testing.assert_allclose(
        gradient.astype(float),
        np.tile(np.asarray(x, np.float64).sum(0), (9, 1)),
        rtol=1e-2,
        atol=1e-4 if dtype == jnp.float32 else 0.1,
    )


def test_kernels_are_turned_once_for_the_same_weights_and_forgotten_with_them():
    decoder = build(T5, Head("seq2seq-lm")).decoder
    params = build(T5, Head("seq2seq-lm")).init(jax.random.key(0))
    last = LastTurned(decoder)
    assert last.of(params, 1) is None
    first = last.of(params, 2)
    assert last.of(dict(params), 2) is first
    other = params | {"lm_head": {"kernel": params["lm_head"]["kernel"] + 1}}
    assert np.array_equal(last.of(other, 2)[-2], other["lm_head"]["kernel"].T)
    ours = last.of(params, 2)
    assert ours is not first
    del params, other
    gc.collect()
    assert not last._turned


def test_arrays_that_may_change_are_turned_anew():
    decoder = build(T5, Head("seq2seq-lm")).decoder
    params = jax.tree.map(
        lambda leaf: np.array(leaf), build(T5, Head("seq2seq-lm")).init(jax.random.key(0))
    )
    last = LastTurned(decoder)
    before = last.of(params, 2)
    params["lm_head"]["kernel"][:] = 7
    after = last.of(params, 2)
    changed = [
        not np.array_equal(a, b) for a, b in zip(before, after, strict=True) if a is not None
    ]
    assert sum(changed) == 1
