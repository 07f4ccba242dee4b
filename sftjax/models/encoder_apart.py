"""An encoder-decoder in two parts: what the encoder gives can be computed once and kept."""

from collections.abc import Callable
from typing import Any

from jax import Array

from sftjax.core import Batch, PyTree
from sftjax.core.beside import Outside, beside
from sftjax.models.seq2seq_model import Seq2SeqModel
from sftjax.models.split import Split


def encoder_apart(
    model: Seq2SeqModel,
    of: Callable[[PyTree, Batch, Array | None], Array] | None = None,
) -> Split:
    """Cut an encoder-decoder between its encoder and its decoder.

    Args:
      model: from `build` or `hub.load`.
      of: what the upper part gives; `model.apply` if None, or `model.hidden`.

    Returns:
      A `Split`: `lower(params, batch)` is the encoder's last states (B, T, D), and
      `upper(params, {**batch, "hidden": lower(params, batch)}, key)` is what the model gives.

    >>> import jax, jax.numpy as jnp
    >>> from sftjax.models import Head, build
    >>> names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    >>> config = {"model_type": "t5", "decoder_start_token_id": 0, **dict.fromkeys(names, 4)}
    >>> model = build(config, Head("seq2seq-lm"))
    >>> params, ids = model.init(jax.random.key(0)), jnp.array([[1, 2, 3]])
    >>> batch = {"input_ids": ids, "decoder_input_ids": ids}
    >>> lower, upper = encoder_apart(model)
    >>> same = upper(params, {**batch, "hidden": lower(params, batch)}, None)
    >>> bool((same == model.apply(params, batch)).all())
    True
    """
    run = model.apply if of is None else of

    def lower(params: PyTree, batch: Batch) -> Array:
        seen: list[Array] = []
        encoding = {name: x for name, x in batch.items() if not name.startswith("decoder_")}
        ids = batch["input_ids"]
        # One target token: what the decoder makes of it is not used, and so not computed.
        batch = {**encoding, "decoder_input_ids": ids[:, :1]}
        if "segment_ids" in batch:
            batch["decoder_segment_ids"] = batch["segment_ids"][:, :1]

        def look(run: Callable[[], Array]) -> Array:
            seen.append(run())
            return seen[0]

        with beside(_encoding(look)):
            model.hidden(params, batch)
        return seen[0].reshape(*ids.shape, -1)

    def upper(params: PyTree, batch: Batch, key: Array | None) -> Array:
        hidden = batch["hidden"].astype(model.dtype)
        flat = hidden.reshape(-1, hidden.shape[-1])
        with beside(_encoding(lambda _: flat)):
            return run(params, batch, key)

    return Split(lower, upper)


def _encoding(give: Callable[[Callable[[], Array]], Array]) -> Outside:
    """Return what stands before `encode` of the whole model.

    So that every family is cut by one function: each has an `encode` that gives (B*T, D).
    """

    def intercept(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
        whole = context.method_name == "encode" and not context.module.path
        return give(lambda: run(*args, **kwargs)) if whole else run(*args, **kwargs)

    return Outside(intercept)
