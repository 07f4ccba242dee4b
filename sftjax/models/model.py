"""What a model is to every other room, and the one way to make one: a config and a head."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.core import Batch, PyTree
from sftjax.models.head import Head
from sftjax.models.seq2seq_model import SEQ2SEQ, build_seq2seq
from sftjax.models.text_encoder import ENCODERS, build_encoder


class Model(Protocol):
    """A model as pure functions; it holds no weights."""

    @property
    def family(self) -> str:
        """The config's `model_type`."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's `config.json`, unknown fields and all."""
        ...

    @property
    def head(self) -> Head:
        """What it gives back."""
        ...

    @property
    def max_length(self) -> int | None:
        """The longest input, in tokens; `None` where there is no such limit."""
        ...

    def apply(self, params: PyTree, batch: Batch, key: Array | None = None) -> Array:
        """Run the model; the key draws dropout, `None` is no dropout."""
        ...

    def init(self, key: Array) -> PyTree:
        """Return fresh float32 params, drawn as the config says."""
        ...

    def shapes(self) -> PyTree:
        """Return the params as `jax.ShapeDtypeStruct`s; nothing is allocated."""
        ...


Build = Callable[[Mapping[str, Any], Head, DTypeLike], Model]
"""`(config, head, dtype) -> model`."""

FAMILIES: dict[str, Build] = {
    **dict.fromkeys(ENCODERS, build_encoder),
    **dict.fromkeys(SEQ2SEQ, build_seq2seq),
}
"""`model_type` of a config -> how to build it."""


def build(config: Mapping[str, Any], head: Head, *, dtype: DTypeLike = jnp.float32) -> Model:
    """Make a model of a checkpoint's config and a head.

    Args:
      config: the content of `config.json`.
      head: what the model gives back.
      dtype: what it computes in; norms, softmax and logits stay float32.

    Raises:
      ValueError: if the family is unknown, a field is missing or asks for what is not built here,
        or the head does not fit.

    >>> import jax
    >>> from sftjax.models import bert
    >>> sizes = dict.fromkeys(bert.SIZES, 4)
    >>> model = build({"model_type": "bert", **sizes}, Head("sequence", ("bad", "good")))
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, {"input_ids": jnp.array([[1, 2, 3]])}).shape
    (1, 2)
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        raise ValueError(
            f"model_type {name!r} is not one of the families that can be built here: "
            f"{', '.join(FAMILIES)}; choose a checkpoint of one of them"
        )
    return FAMILIES[name](config, head, dtype)
