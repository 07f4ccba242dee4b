"""The weight maps of encoder-decoders, and whose word counts about their heads."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sftjax.hub.names import Row, WeightMap, dense, embedding, norm, parameter

HEAD = "lm_head.weight"


def _without_bias(*modules: str) -> tuple[Row, ...]:
    return tuple(row for module in modules for row in dense(module)[:1])


def _t5() -> WeightMap:
    rows = [*embedding("shared"), *_without_bias("lm_head")]
    for stack in ("encoder", "decoder"):
        layer = f"{stack}.block.{{}}.layer"
        own = f"{layer}.{{}}.SelfAttention"
        rows += _without_bias(*(f"{own}.{name}" for name in "qkvo"))
        rows += embedding(f"{own}.relative_attention_bias")
        if stack == "decoder":
            rows += _without_bias(*(f"{layer}.{{}}.EncDecAttention.{name}" for name in "qkvo"))
        middle = f"{layer}.{{}}.DenseReluDense"
        rows += _without_bias(*(f"{middle}.{name}" for name in ("wi", "wi_0", "wi_1", "wo")))
        rows += norm(f"{layer}.{{}}.layer_norm")[:1]
        rows += norm(f"{stack}.final_layer_norm")[:1]
    return WeightMap(
        stem="T5",
        trunk="",
        rows=tuple(rows),
        ties=(
            (HEAD, "shared.weight"),
            ("encoder.embed_tokens.weight", "shared.weight"),
            ("decoder.embed_tokens.weight", "shared.weight"),
        ),
        output={"seq2seq-lm": "lm_head"},
    )


def _bart(stem: str) -> WeightMap:
    rows = [*embedding("model.shared"), *parameter("final_logits_bias"), *_without_bias("lm_head")]
    for stack in ("encoder", "decoder"):
        block = f"model.{stack}.layers.{{}}"
        rows += embedding(f"model.{stack}.embed_positions")
        rows += norm(f"model.{stack}.layernorm_embedding") + norm(f"model.{stack}.layer_norm")
        for attention in ("self_attn", "encoder_attn")[: 1 if stack == "encoder" else 2]:
            for name in ("q", "k", "v", "out"):
                rows += dense(f"{block}.{attention}.{name}_proj")
            rows += norm(f"{block}.{attention}_layer_norm")
        rows += dense(f"{block}.fc1") + dense(f"{block}.fc2")
        rows += norm(f"{block}.final_layer_norm")
    return WeightMap(
        stem=stem,
        trunk="model",
        rows=tuple(rows),
        ties=tuple(
            (alias, "model.shared.weight")
            for alias in (HEAD, *(f"model.{s}.embed_tokens.weight" for s in ("encoder", "decoder")))
        ),
    )


def _sinusoidal(table: WeightMap) -> WeightMap:
    """Places are computed; files written long ago have them as tensors."""
    places = tuple(f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder"))
    rows = tuple(row for row in table.rows if row.tensor not in places)
    return table._replace(rows=rows, buffers=places)


SEQ2SEQ: dict[str, WeightMap] = {
    "t5": _t5(),
    "mt5": _t5()._replace(stem="MT5"),
    "bart": _bart("Bart"),
    "mbart": _bart("MBart"),
    "pegasus": _sinusoidal(_bart("Pegasus")),
    "marian": _sinusoidal(_bart("Marian"))._replace(classes={"seq2seq-lm": "MTModel"}),
}
"""`model_type` of the config -> its table."""


def settled(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a T5's config with the ties that its file has; any other config as it is.

    transformers 5 writes `tie_word_embeddings: true` beside heads of their own (T5 1.1, Flan), and
    opens such a file untied; whether the head's input is scaled stands in `scale_decoder_outputs`
    or, before that field, in `tie_word_embeddings`.

    >>> config = {"model_type": "t5", "tie_word_embeddings": False}
    >>> settled(config, {"shared.weight": np.ones(2)})["tie_word_embeddings"]
    True
    """
    config = dict(config)
    if config.get("model_type") not in ("t5", "mt5"):
        return config
    said = config.get("tie_word_embeddings") is not False
    tables = [
        alias for alias in ("shared.weight", "encoder.embed_tokens.weight") if alias in tensors
    ]
    if HEAD not in tensors:
        tied = True
    else:
        tied = said and bool(tables) and np.array_equal(tensors[HEAD], tensors[tables[0]])
    if tied != said:
        config["tie_word_embeddings"] = tied
        config.setdefault("scale_decoder_outputs", said)
    return config
