"""Beam search in one loop, each row for itself, as transformers does it step for step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch, PyTree
from sftjax.evaluate.generate_rows import rows_of, until_ended
from sftjax.evaluate.generate_scores import follow_rules
from sftjax.evaluate.generate_settings import GenerationSettings
from sftjax.models.decoding import Cache, Decoder, for_beams, take_beams, take_rows

LOST = -1.0e9
"""The score of a beam that is not one."""


class Beams(NamedTuple):
    """A search after `written` tokens; B rows of K beams."""

    written: Array
    history: Array
    """(B, K, P + N): the running beams."""
    scores: Array
    """(B, K): their log-probabilities, falling."""
    done: Array
    """(B, K, P + N): the best finished beams."""
    done_scores: Array
    """(B, K): log-probabilities over lengths, falling."""
    is_done: Array
    """(B, K): whether there is one."""
    hope: Array
    """(B,): whether a running beam may still become one of them."""
    stuck: Array
    """(B,): whether all that could be continued was at its end."""
    cache: Cache


def search(
    decoder: Decoder,
    params: PyTree,
    batch: Batch,
    settings: GenerationSettings,
    history: Array,
    prompt: int,
) -> tuple[Array, Array]:
    """Return the new tokens (B, N) of the best beams, and their scores (B,).

    Args:
      decoder: the model.
      params: its weights.
      batch: what it reads.
      settings: with `num_beams` above 1.
      history: (B, P + N) int32, the prompt and `NOTHING`.
      prompt: P.
    """
    beams, room = settings.num_beams, settings.room(prompt)
    rows = len(history)
    logits, cache = decoder.start(params, batch, room)
    many = jnp.repeat(history[:, None], beams, 1)
    state = Beams(
        jnp.int32(0),
        many,
        jnp.full((rows, beams), LOST).at[:, 0].set(0.0),
        many,
        jnp.full((rows, beams), LOST),
        jnp.zeros((rows, beams), bool),
        jnp.ones(rows, bool),
        jnp.zeros(rows, bool),
        for_beams(cache, beams),
    )
    state = _choose(state, jnp.repeat(logits, beams, 0), settings, prompt)

    def is_open(state: Beams) -> Array:
        may_improve = state.hope & ~state.stuck
        if settings.early_stopping is True:
            may_improve &= ~state.is_done.all(1)
        return may_improve & (state.written < room)

    def advance(state: Beams) -> Beams:
        last = jax.lax.dynamic_index_in_dim(state.history, prompt + state.written - 1, 2, False)
        logits, cache = decoder.step(params, last.reshape(-1), state.cache)
        return _choose(state._replace(cache=cache), logits, settings, prompt)

    def take(state: Beams, order: Array) -> Beams:
        cache = take_rows(state.cache, order, beams)
        return rows_of(state._replace(cache=None), order)._replace(cache=cache)

    return until_ended(
        state,
        advance=advance,
        is_open=is_open,
        take=take,
        result=lambda state: (state.done[:, 0, prompt:], state.done_scores[:, 0]),
    )


def _choose(state: Beams, logits: Array, settings: GenerationSettings, prompt: int) -> Beams:
    """Continue the running beams by one token each and put aside those that end."""
    s, rows, beams = settings, *state.scores.shape
    room, length = s.room(prompt), prompt + state.written
    flat = state.history.reshape(rows * beams, -1)
    likely = follow_rules(jax.nn.log_softmax(logits, -1), flat, state.written, prompt, s)
    vocabulary = likely.shape[-1]
    total = (likely.reshape(rows, beams, -1) + state.scores[..., None]).reshape(rows, -1)
    # Enough to go on with if every beam's likeliest continuations are its ends.
    keep = max(2, 1 + len(s.eos_token_id)) * beams
    scores, index = jax.lax.top_k(total, min(keep, total.shape[1]))
    parent, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    history = jnp.take_along_axis(state.history, parent[..., None], 1)
    history = jax.lax.dynamic_update_slice_in_dim(history, token[..., None], length, 2)

    ends = jnp.isin(token, jnp.array(s.eos_token_id)) if s.eos_token_id else token < 0
    ends |= state.written + 1 >= room
    running, chosen = jax.lax.top_k(scores + ends * LOST, beams)
    parent = jnp.take_along_axis(parent, chosen, 1)

    finished = ends & (jnp.arange(ends.shape[1]) < beams)
    final = scores / (state.written + 1).astype(jnp.float32) ** s.length_penalty
    if s.early_stopping is True:
        final += state.is_done.all(1, keepdims=True) * LOST
    final += ~state.hope[:, None] * LOST
    final += ~finished * LOST
    done_scores, kept = jax.lax.top_k(jnp.concatenate([state.done_scores, final], 1), beams)
    is_done = jnp.take_along_axis(jnp.concatenate([state.is_done, finished], 1), kept, 1)
    done = jnp.take_along_axis(jnp.concatenate([state.done, history], 1), kept[..., None], 1)

    written = state.written + 1
    longest = room if s.early_stopping == "never" and s.length_penalty > 0 else written
    best = running[:, 0] / jnp.float32(longest) ** s.length_penalty
    worst = jnp.where(is_done, done_scores.min(1, keepdims=True), LOST)
    source = (jnp.arange(rows)[:, None] * beams + parent).reshape(-1)
    return Beams(
        written,
        jnp.take_along_axis(history, chosen[..., None], 1),
        running,
        done,
        done_scores,
        is_done,
        state.hope & (best[:, None] > worst).any(1),
        ends.all(1),
        take_beams(state.cache, source),
    )
