"""Encoders of text (BERT and its kin) as pure functions of params and batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.core import Batch, PyTree
from sftjax.models import bert, distilbert, roberta
from sftjax.models.architecture import Architecture
from sftjax.models.attention import attention_bias
from sftjax.models.embedding import positions
from sftjax.models.encoder import Inputs
from sftjax.models.head import ENCODER_KINDS, PER_TOKEN, Head, check_head
from sftjax.models.shapes import Shaped
from sftjax.models.token_rows import ENTRIES, token_ids


class Encoding(NamedTuple):
    """What differs between the families of encoders."""

    read: Callable[[Mapping[str, Any]], Architecture]
    module: Callable[..., nn.Module]
    counts_from_padding: bool
    """Whether positions are those of RoBERTa: padding has `pad_token_id`, tokens follow it."""
    has_pooler: bool


def _roberta(config: Mapping[str, Any]) -> Architecture:
    return bert.architecture(config, pad_token_id=1)


ENCODERS: dict[str, Encoding] = {
    "bert": Encoding(bert.architecture, bert.Bert, False, True),
    "roberta": Encoding(_roberta, roberta.Roberta, True, True),
    "xlm-roberta": Encoding(_roberta, roberta.Roberta, True, True),
    "distilbert": Encoding(distilbert.architecture, distilbert.DistilBert, False, False),
}
"""`model_type` of a config -> how to build it."""


@dataclass(frozen=True)
class TextEncoder(Shaped):
    """An encoder of text as pure functions; it holds no weights."""

    family: str
    """The config's `model_type`."""
    config: Mapping[str, Any] = field(repr=False)
    """The checkpoint's `config.json`, unknown fields and all."""
    head: Head
    module: nn.Module = field(repr=False)
    architecture: Architecture = field(repr=False)
    max_length: int
    """The longest input, in tokens."""

    def apply(self, params: PyTree, batch: Batch, key: Array | None = None) -> Array:
        """Run the model.

        Args:
          params: as `init` or `hub.load` gives them.
          batch: `input_ids` (B, T) int32; optional `attention_mask` (B, T), `token_type_ids`
            (B, T), `position_ids` (B, T), and `segment_ids` (B, T), within which attention stays
            and positions start anew. Other entries are not looked at.
          key: draws dropout at the config's rates; `None` is no dropout.

        Returns:
          float32; what the head gives (see `Head.kind`).

        Raises:
          ValueError: if there are no `input_ids`, the rows are longer than the model can read, an
            entry is not (B, T) integers, or rows are packed under a head with one output a row.
        """
        ids = self._check(batch)
        if ids.shape[1] > self.max_length:
            raise ValueError(
                f"the rows have {ids.shape[1]} tokens (places of a prompt among them) and this "
                f"{self.family} reads at most {self.max_length}; cut them with max_length="
                f"{self.max_length}, or as many fewer as the prompt has places, when encoding"
            )
        mask, segments = batch.get("attention_mask"), batch.get("segment_ids")
        mask = jnp.ones_like(ids) if mask is None else jnp.asarray(mask)
        places = batch.get("position_ids")
        inputs = Inputs(
            ids,
            batch.get("token_type_ids"),
            self._positions(ids, segments) if places is None else jnp.asarray(places),
            attention_bias(mask, segments),
            mask,
            self._entering(batch),
        )
        rngs = {} if key is None else {"dropout": key}
        return self.module.apply({"params": params}, inputs, rngs=rngs)  # type: ignore[return-value]

    def _entering(self, batch: Batch) -> Array | None:
        """Return the hidden states that the upper part of a split model starts from."""
        span = self.module.span
        if span is None or not span.given:
            return None
        if "hidden" not in batch:
            raise ValueError(
                f"this is the part of a model from block {span.start} on, and the batch has no "
                "'hidden', which the lower part gives (see models.split)"
            )
        return jnp.asarray(batch["hidden"])

    def _check(self, batch: Batch) -> Array:
        ids = token_ids(batch, ENTRIES)
        if batch.get("segment_ids") is not None and self.head.kind not in PER_TOKEN:
            raise ValueError(
                f"segment_ids say that rows hold several examples, and a {self.head.kind!r} head "
                f"gives one output a row; unpack the rows, or use one of {', '.join(PER_TOKEN)}"
            )
        return ids

    def init(self, key: Array) -> PyTree:
        """Return fresh float32 params, drawn as the config says."""
        ids = jnp.zeros((1, min(8, self.max_length)), jnp.int32)
        inputs = Inputs(ids, None, self._positions(ids, None), attention_bias(ids), ids)
        return self.module.init(key, inputs)["params"]

    def _positions(self, ids: Array, segments: Array | None) -> Array:
        if ENCODERS[self.family].counts_from_padding:
            assert self.architecture.pad_token_id is not None
            pad = self.architecture.pad_token_id
            return positions(ids != pad, segments) + pad
        if segments is None:
            return jnp.arange(ids.shape[1])[None]
        return positions(jnp.ones_like(ids, bool), segments) - 1


def build_encoder(config: Mapping[str, Any], head: Head, dtype: DTypeLike) -> TextEncoder:
    """Make an encoder of a checkpoint's config and a head; `build` says how.

    Raises:
      ValueError: if a field is missing or asks for what is not built here, or the head does not
        fit.
    """
    name = config["model_type"]
    family = ENCODERS[name]
    architecture = family.read(config)
    check_head(head)
    if head.kind not in ENCODER_KINDS:
        raise ValueError(
            f"a {name} has no {head.kind!r} head; use one of {', '.join(ENCODER_KINDS)}"
        )
    if head.kind == "pooled" and not family.has_pooler:
        raise ValueError(f"a {name} has no pooler; use the head 'mean' or 'hidden'")
    longest = architecture.max_positions
    if family.counts_from_padding:
        if architecture.pad_token_id is None:
            raise ValueError(
                f"a {name} counts positions from its pad_token_id, and the config has none; add "
                "the field to config.json (1 for RoBERTa's tokenizer)"
            )
        longest -= architecture.pad_token_id + 1
    module = family.module(architecture, head, jnp.dtype(dtype))
    return TextEncoder(name, config, head, module, architecture, longest)
