"""What settings make of the next token's scores: rules on tokens, and what sampling leaves out.

All take scores (R, V) float32 of R rows and return the same; a token that may not come has -inf.
The order of the rules, which matters, is transformers'.
"""

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.evaluate.generate_settings import GenerationSettings

NEVER = -jnp.inf
NOTHING = -1
"""In a history: a place without a token, padding or not yet written."""


def follow_rules(
    scores: Array, history: Array, written: Array, prompt: int, settings: GenerationSettings
) -> Array:
    """Apply the rules that hold however the token is chosen.

    Args:
      scores: (R, V) float32; logits, or log-probabilities in a beam search.
      history: (R, P + N) int32: prompt and new tokens, `NOTHING` elsewhere.
      written: () int32: new tokens so far.
      prompt: P.
      settings: penalties, n-grams, lengths, forced and suppressed tokens.
    """
    s, length = settings, prompt + written
    if s.repetition_penalty != 1.0:
        scores = repetition_penalty(scores, history, s.repetition_penalty)
    if s.no_repeat_ngram_size > 0:
        scores = no_repeat_ngram(scores, history, length, s.no_repeat_ngram_size)
    if s.eos_token_id and s.least(prompt) > 0:
        early = without(scores, s.eos_token_id)
        scores = jnp.where(written < s.least(prompt), early, scores)
    if s.forced_bos_token_id is not None and prompt <= 1:
        scores = jnp.where(length == 1, only(scores, s.forced_bos_token_id), scores)
    if s.forced_eos_token_id is not None:
        last = written == s.room(prompt) - 1
        scores = jnp.where(last, only(scores, s.forced_eos_token_id), scores)
    if s.suppress_tokens:
        scores = without(scores, s.suppress_tokens)
    if s.begin_suppress_tokens:
        first = 0 if prompt > 1 or s.forced_bos_token_id is None else 1
        begun = without(scores, s.begin_suppress_tokens)
        scores = jnp.where(written == first, begun, scores)
    return scores


def narrow(logits: Array, settings: GenerationSettings) -> Array:
    """Apply temperature and leave out what is not to be drawn: top-k, top-p, min-p, in this order.

    >>> narrow(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), GenerationSettings(top_k=2)).tolist()
    [[-0.693..., -1.203..., -inf]]
    """
    s = settings
    if s.temperature != 1.0:
        logits = logits / s.temperature
    if s.top_k > 0:
        logits = top_k(logits, s.top_k)
    if s.top_p < 1.0:
        logits = top_p(logits, s.top_p)
    if s.min_p > 0.0:
        logits = min_p(logits, s.min_p)
    return logits


def repetition_penalty(scores: Array, history: Array, penalty: float) -> Array:
    """Divide the positive scores of tokens that were there by `penalty`, multiply the negative.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1.

    >>> repetition_penalty(jnp.array([[1.0, -1.0, 1.0]]), jnp.array([[0, 1, -1]]), 2.0).tolist()
    [[0.5, -2.0, 1.0]]
    """
    rows, vocabulary = scores.shape
    place = jnp.where(history < 0, vocabulary, history)
    row = jnp.arange(rows)[:, None]
    there = jnp.zeros(scores.shape, bool).at[row, place].set(True, mode="drop")
    punished = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return jnp.where(there, punished, scores)


def no_repeat_ngram(scores: Array, history: Array, length: Array, size: int) -> Array:
    """Forbid each token that would repeat a run of `size` tokens.

    >>> no_repeat_ngram(jnp.zeros((1, 3)), jnp.array([[1, 2, 1, -1]]), jnp.int32(3), 2).tolist()
    [[0.0, 0.0, -inf]]
    """
    rows, vocabulary = scores.shape
    places = history.shape[1] - size + 1
    if places < 1:
        return scores
    # The run that ends the text must be met again at places 0, 1, ... before its own.
    ending = jax.lax.dynamic_slice_in_dim(
        jnp.pad(history, ((0, 0), (size - 1, 0)), constant_values=NOTHING), length, size - 1, 1
    )
    met = jnp.ones((rows, places), bool)
    for offset in range(size - 1):
        run = history[:, offset : offset + places]
        met &= (run == ending[:, offset, None]) & (run >= 0)
    met &= jnp.arange(places) + size - 1 < length
    banned = jnp.where(met, history[:, size - 1 :], vocabulary)
    banned = jnp.where(banned < 0, vocabulary, banned)
    return scores.at[jnp.arange(rows)[:, None], banned].set(NEVER, mode="drop")


def without(scores: Array, tokens: tuple[int, ...]) -> Array:
    """Forbid some tokens."""
    return scores.at[:, jnp.array(tokens)].set(NEVER)


def only(scores: Array, token: int) -> Array:
    """Forbid all tokens but one, whose score becomes 0."""
    return jnp.full_like(scores, NEVER).at[:, token].set(0.0)


def top_k(logits: Array, k: int) -> Array:
    """Keep the k largest (and all that equal the smallest of them)."""
    k = min(k, logits.shape[-1])
    least = jax.lax.top_k(logits, k)[0][:, -1:]
    return jnp.where(logits < least, NEVER, logits)


def top_p(logits: Array, p: float) -> Array:
    """Keep the likeliest tokens that together have probability p, at least one.

    Holtzman et al. 2019, arXiv:1904.09751.

    >>> top_p(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 0.6).tolist()
    [[-0.693..., -1.203..., -inf]]
    """
    order = jnp.argsort(logits, axis=-1)
    rising = jnp.take_along_axis(logits, order, -1)
    out = jnp.cumsum(jax.nn.softmax(rising, -1), -1) <= 1.0 - p
    out = out.at[:, -1].set(False)
    row = jnp.arange(len(logits))[:, None]
    return jnp.where(jnp.zeros(logits.shape, bool).at[row, order].set(out), NEVER, logits)


def min_p(logits: Array, p: float) -> Array:
    """Keep the tokens with at least p times the probability of the likeliest.

    Nguyen et al. 2024, arXiv:2407.01082.

    >>> min_p(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 0.5).tolist()
    [[-0.693..., -1.203..., -inf]]
    """
    likely = jax.nn.softmax(logits, -1)
    return jnp.where(likely < p * likely.max(-1, keepdims=True), NEVER, logits)
