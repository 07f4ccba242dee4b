"""Text from a model, one token after the other: a pure function, compiled once for each shape.

The model is a `Decoder`: two functions, of a decoder alone or beside an encoder, or one's own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from sftjax.core import Batch, PyTree
from sftjax.evaluate.generate_beam import search
from sftjax.evaluate.generate_rows import rows_of, until_ended
from sftjax.evaluate.generate_scores import NOTHING, follow_rules, narrow
from sftjax.evaluate.generate_settings import GenerationSettings, checked
from sftjax.models.decoding import Cache, Decoder
from sftjax.models.few_rows import LastTurned, Turned, ever_pays, turned, with_turned


class Generated(NamedTuple):
    """What came after the prompts."""

    tokens: Array
    """(B, N) int32: new tokens, the one that ends a row among them, then padding."""
    lengths: Array
    """(B,) int32: new tokens of each row."""
    scores: Array | None
    """(B,) float32: log-probability over length, of a beam search; None otherwise."""


class Text(NamedTuple):
    """Rows in the making."""

    written: Array
    """() int32: new tokens so far."""
    history: Array
    """(B, P + N) int32."""
    ended: Array
    """(B,) bool."""
    cache: Cache
    keys: Array | None
    """(B,): what each row draws with."""


Generate = Callable[[PyTree, Batch, Array | None], Generated]
"""`(params, batch, key) -> Generated`; the key draws samples."""


def generate(
    decoder: Decoder,
    params: PyTree,
    batch: Batch,
    settings: GenerationSettings,
    key: Array | None = None,
    *,
    rows: Array | None = None,
) -> Generated:
    """Continue each row of a batch until its end.

    The likeliest token (`num_beams=1`), the likeliest text that a beam search finds, or a sample.
    The loop stops when all rows have ended. Where a step's time grows with its rows, on a CPU, a
    quarter of the rows goes on alone as soon as no more than that are open.

    Args:
      decoder: the model, as `model.decoder` gives it.
      params: its weights.
      batch: what its `start` reads.
      settings: how long, and how to choose.
      key: draws samples, a stream of its own for each row; needed with `do_sample` alone.
      rows: (B,) int32, the numbers that tell the rows' streams apart; 0, 1, ... if None.

    Returns:
      `Generated`; tokens of rows that ended are followed by `pad_token_id`.

    Raises:
      ValueError: if settings cannot be followed, nothing may be written, or the key is missing.

    >>> counting = Decoder(  # says 1, 2, 3, ... whatever it reads
    ...     lambda params, batch, room: (jax.nn.one_hot(batch["input_ids"][:, -1] + 1, 9), ()),
    ...     lambda params, tokens, cache: (jax.nn.one_hot(tokens + 1, 9), cache),
    ... )
    >>> settings = GenerationSettings(max_new_tokens=4, eos_token_id=(7,))
    >>> generate(counting, {}, {"input_ids": jnp.array([[2], [5]])}, settings).tokens.tolist()
    [[3, 4, 5, 6], [6, 7, 0, 0]]
    """
    texts = len(decoder.prompt(batch)[0]) * checked(settings).num_beams
    kernels = turned(params, decoder.read_once) if ever_pays(texts) else None
    return _generate(decoder, params, kernels, batch, settings, key, rows)


def _generate(
    decoder: Decoder,
    params: PyTree,
    kernels: Turned | None,
    batch: Batch,
    settings: GenerationSettings,
    key: Array | None,
    rows: Array | None,
) -> Generated:
    decoder = with_turned(decoder, params, kernels)
    settings, history, prompt = _begin(decoder, batch, settings, key)
    if settings.num_beams > 1:
        tokens, scores = search(decoder, params, batch, settings, history, prompt)
    else:
        room, scores = settings.room(prompt), None
        keys = _keys(key, len(history), rows)
        tokens = until_ended(
            _first(decoder, params, batch, settings, history, prompt, keys),
            advance=lambda text: _next(decoder, params, text, settings, prompt),
            is_open=lambda text: ~text.ended & (text.written < room),
            take=rows_of,
            result=lambda text: text.history[:, prompt:],
        )
    lengths = (tokens != NOTHING).sum(1)
    tokens = jnp.where(tokens == NOTHING, settings.pad_token_id, tokens)
    return Generated(tokens, lengths.astype(jnp.int32), scores)


def compile_generate(
    decoder: Decoder, settings: GenerationSettings, *, mesh: Mesh | None = None
) -> Generate:
    """Return `generate` for a model and settings, compiled once for each shape of a batch.

    On a CPU, for more than one row, the float32 kernels that steps read are transposed once for the
    same params (steps are then up to three times as fast) and kept beside them, as long as these
    are.

    Args:
      decoder: the model.
      settings: how long, and how to choose.
      mesh: rows are dealt out along its first axis; each device stops when its own rows have
        ended, and nothing is sent between devices. The params are on every device.

    Returns:
      `(params, batch, key) -> Generated`.

    Raises:
      ValueError: as `generate`; on a call, if the rows cannot be dealt out evenly.
    """
    settings = checked(settings)
    last = LastTurned(decoder)

    def run(
        params: PyTree, kernels: Turned | None, batch: Batch, key: Array | None, rows: Array
    ) -> Generated:
        return _generate(decoder, params, kernels, batch, settings, key, rows)

    if mesh is None:
        compiled = jax.jit(run)
    else:
        shared, dealt = PartitionSpec(), PartitionSpec(mesh.axis_names[0])
        compiled = jax.jit(
            jax.shard_map(
                run,
                mesh=mesh,
                in_specs=(shared, shared, dealt, shared, dealt),
                out_specs=dealt,
                check_vma=False,  # the loops of devices are of different lengths
            )
        )

    def call(params: PyTree, batch: Batch, key: Array | None = None) -> Generated:
        count = len(jax.tree.leaves(dict(batch))[0])
        shares = 1 if mesh is None else mesh.shape[mesh.axis_names[0]]
        if count % shares:
            raise ValueError(
                f"{count} rows cannot be dealt out to {shares} devices; fill the batch up to a "
                f"multiple of {shares}"
            )
        kernels = last.of(params, count // shares * settings.num_beams)
        return compiled(params, kernels, dict(batch), key, np.arange(count, dtype=np.int32))

    return call


def compile_stream(
    decoder: Decoder, settings: GenerationSettings
) -> Callable[[PyTree, Batch, Callable[[np.ndarray], None], Array | None], Generated]:
    """Return a generation that says each token as soon as it is chosen.

    Args:
      decoder: the model.
      settings: with one beam: a beam search knows its first token last.

    Returns:
      `(params, batch, say, key) -> Generated`; `say` is given the (B,) tokens of each step, padding
      in rows that have ended. The result is what `generate` gives.

    Raises:
      ValueError: as `generate`, or for several beams.
    """
    settings = checked(settings)
    if settings.num_beams > 1:
        raise ValueError(
            f"a search with num_beams={settings.num_beams} knows its first token only at its end; "
            "stream with num_beams=1"
        )

    last = LastTurned(decoder)

    def begin(params: PyTree, kernels: Turned | None, batch: Batch, key: Array | None) -> Text:
        _, history, prompt = _begin(decoder, batch, settings, key)
        keys = _keys(key, len(history), None)
        quick = with_turned(decoder, params, kernels)
        return _first(quick, params, batch, settings, history, prompt, keys)

    def advance(params: PyTree, kernels: Turned | None, text: Text, prompt: int) -> Text:
        return _next(with_turned(decoder, params, kernels), params, text, settings, prompt)

    begin = jax.jit(begin)
    advance = jax.jit(advance, static_argnums=3, donate_argnums=2)

    def call(
        params: PyTree,
        batch: Batch,
        say: Callable[[np.ndarray], None],
        key: Array | None = None,
    ) -> Generated:
        batch = dict(batch)
        rows, prompt = jax.eval_shape(decoder.prompt, batch)[0].shape
        kernels = last.of(params, rows)
        text = begin(params, kernels, batch, key)
        for place in range(prompt, prompt + settings.room(prompt)):
            if place > prompt:
                if bool(text.ended.all()):
                    break
                text = advance(params, kernels, text, prompt)
            column = np.asarray(text.history[:, place])
            say(np.where(column == NOTHING, settings.pad_token_id, column))
        tokens = text.history[:, prompt:]
        lengths = (tokens != NOTHING).sum(1).astype(jnp.int32)
        return Generated(jnp.where(tokens == NOTHING, settings.pad_token_id, tokens), lengths, None)

    return call


def _begin(
    decoder: Decoder, batch: Batch, settings: GenerationSettings, key: Array | None
) -> tuple[GenerationSettings, Array, int]:
    """Check, and lay the prompts out at the right of their P places, before N empty ones."""
    settings = checked(settings)
    if settings.do_sample and key is None:
        raise ValueError("do_sample needs a key to draw from: pass key=jax.random.key(...)")
    tokens, mask = decoder.prompt(batch)
    prompt = tokens.shape[1]
    room = settings.room(prompt)
    if room < 1:
        raise ValueError(
            f"max_length={settings.max_length} leaves no room after prompts of {prompt} tokens; "
            "raise it, or set max_new_tokens"
        )
    order = jnp.argsort(mask != 0, axis=1, stable=True)
    packed = jnp.take_along_axis(jnp.where(mask != 0, tokens, NOTHING), order, 1)
    empty = jnp.full((len(tokens), room), NOTHING, jnp.int32)
    return settings, jnp.concatenate([packed.astype(jnp.int32), empty], 1), prompt


def _keys(key: Array | None, count: int, rows: Array | None) -> Array | None:
    if key is None:
        return None
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(
        jnp.arange(count) if rows is None else rows
    )


def _first(
    decoder: Decoder,
    params: PyTree,
    batch: Batch,
    settings: GenerationSettings,
    history: Array,
    prompt: int,
    keys: Array | None,
) -> Text:
    logits, cache = decoder.start(params, batch, settings.room(prompt))
    text = Text(jnp.int32(0), history, jnp.zeros(len(history), bool), cache, keys)
    return _write(text, logits, settings, prompt)


def _next(
    decoder: Decoder, params: PyTree, text: Text, settings: GenerationSettings, prompt: int
) -> Text:
    last = jax.lax.dynamic_index_in_dim(text.history, prompt + text.written - 1, 1, False)
    last = jnp.where(last == NOTHING, settings.pad_token_id, last)
    logits, cache = decoder.step(params, last, text.cache)
    return _write(text._replace(cache=cache), logits, settings, prompt)


def _write(text: Text, logits: Array, settings: GenerationSettings, prompt: int) -> Text:
    """Choose the next token of each row and write it down."""
    s = settings
    scores = follow_rules(logits.astype(jnp.float32), text.history, text.written, prompt, s)
    if s.do_sample:
        assert text.keys is not None
        drawn = jax.vmap(lambda key: jax.random.fold_in(key, text.written))(text.keys)
        token = jax.vmap(jax.random.categorical)(drawn, narrow(scores, s))
    else:
        token = jnp.argmax(scores, -1)
    token = jnp.where(text.ended, NOTHING, token.astype(jnp.int32))
    history = jax.lax.dynamic_update_slice_in_dim(
        text.history, token[:, None], prompt + text.written, 1
    )
    ended = text.ended
    if s.eos_token_id:
        ended |= jnp.isin(token, jnp.array(s.eos_token_id))
    return text._replace(written=text.written + 1, history=history, ended=ended)
