"""Decoders of text (Llama and its kin) as pure functions of params and batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.core import Batch, PyTree, flatten
from sftjax.models import causal, decoding, gpt2
from sftjax.models.causal import REMAT, Inputs, Settings
from sftjax.models.causal_attention import IMPLEMENTATIONS
from sftjax.models.causal_config import READ, CausalArchitecture
from sftjax.models.causal_decoding import decoder_of
from sftjax.models.embedding import positions
from sftjax.models.head import Head, check_head
from sftjax.models.shapes import Shaped
from sftjax.models.token_rows import token_ids


class Family(NamedTuple):
    """What differs between the families of decoders."""

    read: Callable[[Mapping[str, Any]], CausalArchitecture]
    module: Callable[..., nn.Module]
    words: str
    """Path of the word table."""


DECODERS: dict[str, Family] = {
    name: Family(read, causal.Decoder, "model/embed_tokens/embedding")
    for name, read in READ.items()
} | {"gpt2": Family(gpt2.gpt2, gpt2.Gpt2, "transformer/wte/embedding")}
"""`model_type` of a config -> how to build it."""

KINDS = ("causal-lm", "sequence", "hidden")
"""The heads that a decoder can have."""

ENTRIES = ("input_ids", "attention_mask", "position_ids", "segment_ids")
"""The entries of a batch that a model reads."""


@dataclass(frozen=True)
class CausalModel(Shaped):
    """A decoder of text as pure functions; it holds no weights.

    `dataclasses.replace(model, remat="full")` and `replace(model, attention="xla")` give the same
    model computed in another way.
    """

    family: str
    """The config's `model_type`."""
    config: Mapping[str, Any] = field(repr=False)
    """The checkpoint's `config.json`, unknown fields and all."""
    head: Head
    architecture: CausalArchitecture = field(repr=False)
    dtype: DTypeLike = jnp.float32
    """What it computes in; norms, softmax and logits stay float32."""
    attention: str = "auto"
    """One of `causal_attention.IMPLEMENTATIONS`."""
    remat: str = "none"
    """What a layer keeps for the backward pass: `none` recomputes nothing, `full` everything but
    its input, `dots` all but its Dense layers' outputs. XLA on CPU saves no memory by it unless
    told to (`--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED`)."""

    def __post_init__(self) -> None:
        """Refuse words that are not known."""
        for name, known in (("attention", IMPLEMENTATIONS), ("remat", tuple(REMAT))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; it is one of {', '.join(known)}"
                )

    @property
    def max_length(self) -> int | None:
        """The longest texts of pretraining, in tokens; rotary positions read on beyond it."""
        return self.architecture.max_positions

    @property
    def logit_softcap(self) -> float | None:
        """The cap c that logits z go through, `c tanh(z / c)`; None for none."""
        return self.architecture.logit_softcap

    @property
    def logit_scale(self) -> float:
        """What logits are multiplied by before the cap."""
        return 1.0

    def apply(self, params: PyTree, batch: Batch, key: Array | None = None) -> Array:
        """Run the model.

        Args:
          params: as `init` or `hub.load` gives them.
          batch: `input_ids` (B, T) int32; optional `attention_mask` (B, T), 0 on padding on either
            side; `position_ids` (B, T); and `segment_ids` (B, T), 0 for padding, within which
            attention stays and positions start anew. Other entries are not looked at. Rows with
            padding on the right need no mask: no token looks at what comes after it.
          key: draws dropout at the config's rates; `None` is no dropout.

        Returns:
          float32: logits (B, T, V) of the next tokens ("causal-lm"), logits (B, L) from the last
          token of each row ("sequence"), or the last hidden states (B, T, D) ("hidden").

        Raises:
          ValueError: if there are no `input_ids`, an entry is not (B, T) integers, rows are longer
            than learned positions reach, or packed under a head with one output a row.
        """
        inputs = self._inputs(batch)
        last = self._last(batch, inputs) if self.head.kind == "sequence" else None
        return self._run(self.head.kind, params, inputs, key, last)[0].astype(jnp.float32)

    def hidden(self, params: PyTree, batch: Batch, key: Array | None = None) -> Array:
        """Return the states after the last norm, (B, T, D) in `dtype`: logits are these times
        `words`, scaled and capped."""
        return self._run("hidden", params, self._inputs(batch), key)[0]

    def words(self, params: PyTree) -> Array:
        """Return the output matrix, (V, D): the word table if the config ties them."""
        if self.architecture.tied:
            return flatten(params)[DECODERS[self.family].words]
        return params["lm_head"]["kernel"].T

    @property
    def decoder(self) -> decoding.Decoder:
        """What generating text needs: read a prompt, then take one token after the other."""
        return decoder_of(self, self._inputs, self._run)

    def init(self, key: Array) -> PyTree:
        """Return fresh float32 params, drawn as the config says."""
        ids = jnp.zeros((1, 2), jnp.int32)
        inputs = Inputs(ids, jnp.arange(2)[None], None)
        whole = replace(self, dtype=jnp.float32, attention="xla", remat="none")
        return whole._module(self.head.kind).init(key, inputs)["params"]

    def _module(self, kind: str, keep: bool = False) -> nn.Module:
        settings = Settings(jnp.dtype(self.dtype), self.attention, self.remat, keep)
        labels = len(self.head.labels) if kind == "sequence" else 0
        return DECODERS[self.family].module(self.architecture, settings, kind, labels)

    def _run(
        self,
        kind: str,
        params: PyTree,
        inputs: Inputs,
        key: Array | None = None,
        last: Array | None = None,
        keep: bool = False,
    ) -> tuple[Array, list[Any]]:
        rngs = {} if key is None else {"dropout": key}
        module = self._module(kind, keep)
        return module.apply({"params": params}, inputs, last, rngs=rngs)  # type: ignore[return-value]

    def _inputs(self, batch: Batch) -> Inputs:
        ids = self._check(batch)
        mask, segments = batch.get("attention_mask"), batch.get("segment_ids")
        if segments is not None:
            segments = jnp.asarray(segments)
            if mask is not None:
                segments = jnp.where(jnp.asarray(mask) != 0, segments, 0)
        elif mask is not None:
            segments = (jnp.asarray(mask) != 0).astype(jnp.int32)
        places = batch.get("position_ids")
        if places is not None:
            places = jnp.asarray(places)
        elif segments is None:
            places = jnp.arange(ids.shape[1])[None]
        else:
            # From 0 at the first token of each segment, wherever the padding is.
            places = jnp.maximum(positions(segments != 0, segments) - 1, 0)
        return Inputs(ids, places, segments)

    def _last(self, batch: Batch, inputs: Inputs) -> Array:
        """Return the place of each row's last token, (B,)."""
        real, pad = inputs.segment_ids, self.architecture.pad_token_id
        if real is None and pad is not None:
            real = inputs.input_ids != pad
        if real is None:
            real = jnp.ones_like(inputs.input_ids)
        places = jnp.arange(inputs.input_ids.shape[1])
        return jnp.max(jnp.where(real != 0, places, 0), axis=1)

    def _check(self, batch: Batch) -> Array:
        ids = token_ids(batch, ENTRIES)
        if batch.get("segment_ids") is not None and self.head.kind == "sequence":
            raise ValueError(
                "segment_ids say that rows hold several examples, and a 'sequence' head gives one "
                "output a row; unpack the rows, or use 'causal-lm' or 'hidden'"
            )
        a = self.architecture
        if a.learned_positions and ids.shape[1] > a.max_positions:
            raise ValueError(
                f"the rows have {ids.shape[1]} tokens and this {self.family} reads at most "
                f"{a.max_positions}; cut them with max_length={a.max_positions} when encoding"
            )
        return ids


def build_decoder(config: Mapping[str, Any], head: Head, dtype: DTypeLike) -> CausalModel:
    """Make a decoder of a checkpoint's config and a head; `build` says how.

    Raises:
      ValueError: if a field is missing or asks for what is not built here, or the head does not
        fit.
    """
    name = config["model_type"]
    check_head(head)
    if head.kind not in KINDS:
        raise ValueError(f"a {name} has no {head.kind!r} head; use one of {', '.join(KINDS)}")
    return CausalModel(name, config, head, DECODERS[name].read(config), dtype)
