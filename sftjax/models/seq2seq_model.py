"""Encoder-decoders (T5, BART and their kin) as pure functions of params and batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.core import Batch, PyTree
from sftjax.models import bart, t5, t5_architecture
from sftjax.models.attention import attention_bias
from sftjax.models.decoding import Decoder, WithSource
from sftjax.models.embedding import positions
from sftjax.models.head import Head
from sftjax.models.seq2seq import LOWEST, Kept, KeysValues, Now, Pair, causal_bias, cross_bias
from sftjax.models.shapes import Shaped


class Family(NamedTuple):
    """What differs between the families of encoder-decoders."""

    read: Callable[[Mapping[str, Any]], Any]
    """config -> architecture."""
    module: Callable[[Any, DTypeLike], nn.Module]
    """Has the methods `hidden`, `encode`, `step` and `scores`, as `t5.T5` has them."""
    room: Callable[[Any, int, int, DTypeLike], tuple[Kept, ...]]
    words: Callable[[Any, Mapping[str, Any]], Array]
    encoder: str
    """The path of its params."""
    start: int | None
    """The decoder's start token where the config has none."""
    max_length: Callable[[Any], int | None]


def _max_positions(architecture: Any) -> int:
    return architecture.max_positions


def _bart(start: int | None) -> Family:
    return Family(
        *(bart.architecture, bart.Bart, bart.room, bart.words, "model/encoder", start),
        _max_positions,
    )


def _t5() -> Family:
    return Family(
        *(t5_architecture.architecture, t5.T5, t5.room, t5.words, "encoder", None),
        lambda architecture: None,
    )


SEQ2SEQ: dict[str, Family] = {
    "t5": _t5(),
    "mt5": _t5(),
    "bart": _bart(2),
    "mbart": _bart(None),
    "pegasus": _bart(0),
    "marian": _bart(58100),
}
"""`model_type` of a config -> how to build it."""

SOURCE = ("input_ids", "attention_mask", "segment_ids")
TARGET = ("decoder_input_ids", "decoder_attention_mask", "decoder_segment_ids")


class Memory(NamedTuple):
    """Where the past of each row of tokens lies."""

    lineage: Array
    """(R, N) int32: the beam whose place holds each token of this row's past."""
    place: Array
    """(R,) int32, all equal: tokens read so far."""


class Source(NamedTuple):
    """What a decoder read of the source, and where there is any."""

    blocks: tuple[KeysValues, ...]
    """A block's keys and values, (B, H, S, K)."""
    mask: Array
    """(B, S)."""


@dataclass(frozen=True)
class Seq2SeqModel(Shaped):
    """An encoder-decoder as pure functions; it holds no weights."""

    family: str
    """The config's `model_type`."""
    config: Mapping[str, Any] = field(repr=False)
    """The checkpoint's `config.json`, unknown fields and all."""
    head: Head
    module: nn.Module = field(repr=False)
    architecture: Any = field(repr=False)
    dtype: DTypeLike
    """What it computes in."""
    max_length: int | None
    """The longest source and the longest target, in tokens; None where distances are all that the
    family knows of places."""

    def apply(self, params: PyTree, batch: Batch, key: Array | None = None) -> Array:
        """Return what the decoder expects after each token of the targets.

        Args:
          params: as `init` or `hub.load` gives them.
          batch: `input_ids` (B, T) and `decoder_input_ids` (B, U) int32 (see `shift_right`);
            optional `attention_mask` (B, T) and `decoder_attention_mask` (B, U); for rows of
            several examples `segment_ids` (B, T) and `decoder_segment_ids` (B, U), within which
            attention of all three kinds stays and positions start anew. Other entries are not
            looked at.
          key: draws dropout at the config's rates; `None` is no dropout.

        Returns:
          (B, U, V) float32 logits.

        Raises:
          ValueError: if an entry is missing, misshapen, no integers, or too long.
        """
        return self._run(params, self._pair(batch), key)

    def hidden(self, params: PyTree, batch: Batch, key: Array | None = None) -> Array:
        """Return (B, U, D), the decoder's last states.

        `hidden @ words.T + final_bias` are the logits: for losses that make them in chunks.
        """
        return self._run(params, self._pair(batch), key, method="hidden")

    def words(self, params: PyTree) -> Array:
        """Return the (V, D) float32 matrix that turns `hidden` into logits, scale and all."""
        return SEQ2SEQ[self.family].words(self.architecture, params)

    def final_bias(self, params: PyTree) -> Array | None:
        """Return what is added to the logits, (V,) float32; None where nothing is."""
        bias = params.get("final_logits_bias")
        return None if bias is None else bias[0].astype(jnp.float32)

    @property
    def decoder(self) -> Decoder:
        """One token after the other; `start` reads the sources of a batch and the start token."""
        return Decoder(self._start, self._step, self._prompt, SEQ2SEQ[self.family].encoder)

    @property
    def decoder_start_token_id(self) -> int:
        """The token that the decoder reads first.

        Raises:
          ValueError: if the config names none.
        """
        token = self.config.get("decoder_start_token_id", SEQ2SEQ[self.family].start)
        if not isinstance(token, int):
            raise ValueError(
                f"the config of this {self.family} has no decoder_start_token_id, so nothing says "
                "what its decoder reads first; add the field to config.json (T5: the pad token, 0; "
                "BART: the end token, 2)"
            )
        return token

    @property
    def pad_token_id(self) -> int:
        """What fills rows up; the decoder's start token where the config names none."""
        token = self.config.get("pad_token_id")
        return token if isinstance(token, int) else self.decoder_start_token_id

    def cache_bytes(self, rows: int, source_length: int, new_tokens: int, beams: int = 1) -> int:
        """Return the bytes of keys and values while generating.

        `2 * blocks * heads * K * itemsize * rows * (beams * new_tokens + source_length)`: the beams
        of a row share what was read of its source.

        Args:
          rows: of the batch.
          source_length: tokens of a padded source.
          new_tokens: the most that are generated.
          beams: of each row.
        """
        one = SEQ2SEQ[self.family].room(self.architecture, 1, 1, self.dtype)
        per_token = sum(leaf.nbytes for leaf in jax.tree.leaves(one))
        return per_token * rows * (beams * new_tokens + source_length)

    def init(self, key: Array) -> PyTree:
        """Return fresh float32 params, drawn as the config says."""
        ids = jnp.zeros((1, 2), jnp.int32)
        pair = self._pair({"input_ids": ids, "decoder_input_ids": ids})
        return self.module.init(key, pair)["params"]

    def _run(self, params: PyTree, *inputs: Any, method: str | None = None) -> Any:
        *given, key = inputs
        rngs = {} if key is None else {"dropout": key}
        return self.module.apply({"params": params}, *given, rngs=rngs, method=method)

    def _start(self, params: PyTree, batch: Batch, new_tokens: int) -> tuple[Array, WithSource]:
        ids = _entry(batch, "input_ids", None)
        self._fits("input_ids", ids.shape[1])
        self._fits("new tokens", new_tokens)
        if new_tokens < 1:
            raise ValueError(
                f"room for {new_tokens} new tokens was asked for; at least 1 is needed"
            )
        mask = _entry(batch, "attention_mask", ids.shape, jnp.ones_like(ids))
        if batch.get("segment_ids") is not None:
            raise ValueError("rows of several examples cannot be continued; unpack them first")
        bias, places = attention_bias(mask), jnp.arange(ids.shape[1])[None]
        source = self._run(params, ids, bias, places, None, method="encode")
        rows = len(ids)
        kept = SEQ2SEQ[self.family].room(self.architecture, rows, new_tokens, self.dtype)
        tokens = jnp.full((rows,), self.decoder_start_token_id, jnp.int32)
        nothing = Memory(jnp.zeros((rows, new_tokens), jnp.int32), jnp.zeros(rows, jnp.int32))
        return self._advance(params, tokens, source, kept, nothing, mask)

    def _prompt(self, batch: Batch) -> tuple[Array, Array]:
        rows = len(_entry(batch, "input_ids", None))
        start = jnp.full((rows, 1), self.decoder_start_token_id, jnp.int32)
        return start, jnp.ones_like(start)

    def _step(self, params: PyTree, tokens: Array, cache: WithSource) -> tuple[Array, WithSource]:
        memory, own, (blocks, mask) = cache
        kept = tuple(Kept(*pair) for pair in zip(own, blocks, strict=True))
        return self._advance(params, tokens, None, kept, memory, mask)

    def _advance(
        self,
        params: PyTree,
        tokens: Array,
        source: Array | None,
        kept: tuple[Kept, ...],
        memory: Memory,
        mask: Array,
    ) -> tuple[Array, WithSource]:
        rows, _, beams, room, _ = kept[0].own.k_BHSK.shape
        place, beam = memory.place[0], jnp.arange(beams)
        lineage = jax.lax.dynamic_update_slice(
            memory.lineage, jnp.tile(beam, rows)[:, None], (0, place)
        )
        past = (lineage[:, None] == beam[:, None]) & (jnp.arange(room) <= place)
        own_bias = jnp.where(past, 0.0, LOWEST).astype(jnp.float32)
        now = Now(
            place,
            jnp.tile(jnp.arange(room), beams),
            own_bias.reshape(rows, 1, beams, beams * room),
            attention_bias(mask)[:, None],
        )
        logits, new = self._run(params, tokens, source, kept, now, None, method="step")
        return logits, WithSource(
            Memory(lineage, memory.place + 1),
            tuple(block.own for block in new),
            Source(tuple(block.source for block in new), mask),
        )

    def _pair(self, batch: Batch) -> Pair:
        ids, targets = (_entry(batch, name, None) for name in ("input_ids", "decoder_input_ids"))
        if len(ids) != len(targets):
            raise ValueError(f"there are {len(ids)} sources and {len(targets)} targets in a batch")
        mask = _entry(batch, "attention_mask", ids.shape, jnp.ones_like(ids))
        target_mask = _entry(batch, "decoder_attention_mask", targets.shape, jnp.ones_like(targets))
        segments = _entry(batch, "segment_ids", ids.shape, False)
        target_segments = _entry(batch, "decoder_segment_ids", targets.shape, False)
        if (segments is None) != (target_segments is None):
            lone = "decoder_segment_ids" if segments is None else "segment_ids"
            raise ValueError(f"{lone} alone cannot say which source a target belongs to; give both")
        self._fits("input_ids", ids.shape[1])
        self._fits("decoder_input_ids", targets.shape[1])
        return Pair(
            ids,
            targets,
            attention_bias(mask, segments),
            causal_bias(target_mask, target_segments),
            cross_bias(mask, segments, target_segments),
            _places(ids, segments),
            _places(targets, target_segments),
        )

    def _fits(self, what: str, length: int) -> None:
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"{what}: {length} tokens a row, and this {self.family} reads and writes at most "
                f"{self.max_length}; cut them when encoding"
            )


def _entry(batch: Batch, name: str, shape: tuple[int, ...] | None, default: Any = None) -> Any:
    """Return an entry of a batch as integers of the right shape."""
    value = batch.get(name)
    if value is None:
        if default is None:
            raise ValueError(f"the batch has no {name}, only {sorted(batch)}")
        return None if default is False else default
    if len(jnp.shape(value)) != 2 or (shape is not None and jnp.shape(value) != shape):
        ids = "decoder_input_ids" if name.startswith("decoder") else "input_ids"
        need = "a batch is (rows, tokens)" if shape is None else f"{ids} have shape {shape}"
        raise ValueError(f"{name} has shape {jnp.shape(value)}; {need}")
    dtype = jnp.result_type(value)
    if not name.endswith("attention_mask") and not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{name} must hold integers, not {dtype}")
    return jnp.asarray(value)


def _places(ids: Array, segments: Array | None) -> Array:
    if segments is None:
        return jnp.arange(ids.shape[1])[None]
    return positions(jnp.ones_like(ids, bool), segments) - 1


def build_seq2seq(config: Mapping[str, Any], head: Head, dtype: DTypeLike) -> Seq2SeqModel:
    """Make an encoder-decoder of a checkpoint's config; `build` says how.

    Raises:
      ValueError: if a field is missing or asks for what is not built here, or the head does not
        fit.
    """
    name = config["model_type"]
    family = SEQ2SEQ[name]
    if head != Head("seq2seq-lm"):
        raise ValueError(
            f"a {name} has the head 'seq2seq-lm' and no other, not {head.kind!r}: pass "
            'head="seq2seq-lm"'
        )
    architecture = family.read(config)
    dtype = jnp.dtype(dtype)
    return Seq2SeqModel(
        *(name, config, head, family.module(architecture, dtype), architecture, dtype),
        family.max_length(architecture),
    )
