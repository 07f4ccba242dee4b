"""RoBERTa (Liu et al. 2019, arXiv:1907.11692) and XLM-R: BERT's trunk with other heads.

Positions are counted from `pad_token_id + 1`, and padding has position `pad_token_id`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import Architecture
from sftjax.models.dropout import Dropout
from sftjax.models.encoder import Inputs, Span, Trunk, dense, mean_pool, word_scores
from sftjax.models.head import FIRST_TOKEN, Head
from sftjax.models.norm import LayerNorm


class Classification(nn.Module):
    """`out_proj(tanh(dense(.)))` of the first token, with dropout before each."""

    architecture: Architecture
    num_labels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_BD: Array) -> Array:
        a = self.architecture
        x_BD = Dropout(a.classifier_dropout)(x_BD)
        x_BD = jnp.tanh(dense(a.hidden_size, a, self.dtype, "dense")(x_BD))
        x_BD = Dropout(a.classifier_dropout)(x_BD)
        return dense(self.num_labels, a, jnp.float32, "out_proj")(x_BD)


class WordHead(nn.Module):
    """The masked-LM head, whose activation is GELU whatever the config says."""

    architecture: Architecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_BTD: Array, words_VD: Array) -> Array:
        a = self.architecture
        y_ND = dense(a.hidden_size, a, self.dtype, "dense")(x_BTD.reshape(-1, a.hidden_size))
        y_ND = ACTIVATIONS["gelu"](y_ND)
        y_ND = LayerNorm(epsilon=a.layer_norm_eps, dtype=self.dtype, name="layer_norm")(y_ND)
        return word_scores(self, y_ND.reshape(x_BTD.shape), words_VD, a)


class Roberta(nn.Module):
    """RoBERTa or XLM-R with one head."""

    architecture: Architecture
    head: Head
    dtype: DTypeLike
    span: Span | None = None

    @nn.compact
    def __call__(self, inputs: Inputs) -> Array:
        a, head, dtype = self.architecture, self.head, self.dtype
        first, pool = head.kind in FIRST_TOKEN, head.kind == "pooled"
        x, words_VD = Trunk(a, dtype, first, pool, self.span, name="roberta")(inputs)
        match head.kind:
            case "sequence":
                return Classification(a, len(head.labels), dtype, name="classifier")(x)
            case "token":
                x = Dropout(a.classifier_dropout)(x)
                return dense(len(head.labels), a, jnp.float32, "classifier")(x)
            case "masked-lm":
                return WordHead(a, dtype, name="lm_head")(x, words_VD)
            case "mean":
                return mean_pool(x, inputs.mask)
            case _:
                return x.astype(jnp.float32)
