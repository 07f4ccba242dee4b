"""Vision transformers: ViT (arXiv:2010.11929), DeiT (2012.12877), DINOv2 (2304.07193).

Tokens are `x_ND`, those of all images in one matrix (see `attention`); of each image first come
those that are no patch: the class token and DeiT's distillation token.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.alike import Alike
from sftjax.models.architecture import given, require
from sftjax.models.attention import attend, attention_weights
from sftjax.models.convolution import conv
from sftjax.models.dropout import Dropout, DropPath
from sftjax.models.image_config import known_activation, size
from sftjax.models.level import at
from sftjax.models.norm import LayerNorm
from sftjax.models.passage import Final, Passage
from sftjax.models.position_table import interpolate

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class ViT:
    """What the computation depends on."""

    num_channels: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    intermediate_size: int
    image_size: int
    patch: int
    """Side of a patch, in pixels."""
    prefix: int
    """How many tokens are no patch."""
    activation: str
    epsilon: float
    qkv_bias: bool
    hidden_dropout: float
    attention_dropout: float
    drop: float
    """Stochastic depth, of every branch."""
    layer_scale: float | None
    """Start of the branches' scales; `None` where there are none."""
    swiglu: bool
    distilled: bool
    """Whether a second classifier reads the distillation token (DeiT with its teacher)."""
    patches_read: bool
    """Whether the classifier reads the mean of the patches beside the class token (DINOv2)."""
    initializer_range: float

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the maps: what leaves each block, before the last norm."""
        return ("stem", *(f"stage{number}" for number in range(1, self.num_blocks + 1)))


def read(config: Mapping[str, Any]) -> ViT:
    """Read the `config.json` of a ViT, DeiT or DINOv2; absent fields take transformers' defaults.

    Raises:
      ValueError: if a size is missing or does not fit, or a value is not supported.

    >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> read({"model_type": "deit", **sizes}).prefix
    2
    """
    require(config, SIZES)
    family = config["model_type"]
    dino = family == "dinov2"
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if hidden % heads:
        raise ValueError(f"the hidden size {hidden} is not a multiple of the {heads} heads")
    swiglu = dino and bool(given(config, "use_swiglu_ffn", False))
    if dino:
        inner = int(hidden * given(config, "mlp_ratio", 4))
        inner = (int(inner * 2 / 3) + 7) // 8 * 8 if swiglu else inner
    else:
        inner = size(config, "intermediate_size", 3072)
    patch = size(config, "patch_size", 14 if dino else 16)
    image = size(config, "image_size", 224)
    if image % patch:
        raise ValueError(f"the image size {image} is not a multiple of the patch's, {patch}")
    return ViT(
        num_channels=size(config, "num_channels", 3),
        hidden_size=hidden,
        num_blocks=config["num_hidden_layers"],
        num_heads=heads,
        intermediate_size=inner,
        image_size=image,
        patch=patch,
        prefix=2 if family == "deit" else 1,
        activation=known_activation(config, "gelu"),
        epsilon=given(config, "layer_norm_eps", 1e-6 if dino else 1e-12),
        qkv_bias=bool(given(config, "qkv_bias", True)),
        hidden_dropout=given(config, "hidden_dropout_prob", 0.0),
        attention_dropout=given(config, "attention_probs_dropout_prob", 0.0),
        drop=given(config, "drop_path_rate", 0.0) if dino else 0.0,
        layer_scale=given(config, "layerscale_value", 1.0) if dino else None,
        swiglu=swiglu,
        distilled=any("WithTeacher" in name for name in config.get("architectures") or ()),
        patches_read=dino,
        initializer_range=given(config, "initializer_range", 0.02),
    )


class Embeddings(nn.Module):
    """Patches, the tokens before them, and their positions, as (B*T, D)."""

    a: ViT
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, grid: tuple[int, int]) -> Array:
        a = self.a
        normal = nn.initializers.truncated_normal(a.initializer_range)
        valid = ((0, 0), (0, 0))
        project = lambda x: conv(  # noqa: E731
            a.hidden_size, a.patch, a.patch, valid, self.dtype, "projection", bias=True, init=normal
        )(x)
        x_BTD = at("patch_embeddings", project, x).reshape(len(x), -1, a.hidden_size)
        names = ("cls_token", "distillation_token")[: a.prefix]
        tokens = [self.param(name, normal, (1, 1, a.hidden_size)) for name in names]
        patches = (a.image_size // a.patch) ** 2
        table = self.param("position_embeddings", normal, (1, a.prefix + patches, a.hidden_size))[0]
        prefix = jnp.concatenate(tokens, axis=1).astype(self.dtype) + table[: a.prefix]
        x_BTD += interpolate(table[a.prefix :], grid).astype(self.dtype)
        prefix = jnp.broadcast_to(prefix, (len(x), a.prefix, a.hidden_size)).astype(self.dtype)
        x_BTD = jnp.concatenate([prefix, x_BTD], axis=1)
        return Dropout(a.hidden_dropout)(x_BTD.reshape(-1, a.hidden_size))


class Scale(nn.Module):
    """A factor for each channel."""

    a: ViT

    @nn.compact
    def __call__(self, x: Array) -> Array:
        assert self.a.layer_scale is not None
        start = nn.initializers.constant(self.a.layer_scale)
        return x * self.param("lambda1", start, (x.shape[-1],)).astype(x.dtype)


LOOKS = "looks"
"""The collection in which attention weights are handed out, if it is mutable."""


class Attention(nn.Module):
    """Self-attention over the tokens of an image."""

    a: ViT
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_ND: Array, rows: int) -> Array:
        a = self.a

        def gather(x_ND: Array) -> Array:
            q, k, v = (
                dense(a.hidden_size, a, self.dtype, name, bias=a.qkv_bias)(x_ND)
                for name in ("query", "key", "value")
            )
            bias = jnp.zeros((rows, 1, len(x_ND) // rows), jnp.float32)
            if self.is_mutable_collection(LOOKS):  # somebody wants to see them
                self.sow(LOOKS, "weights", attention_weights(q, k, bias, a.num_heads))
            return attend(q, k, v, bias, a.num_heads, Dropout(a.attention_dropout))

        gathered = at("attention", gather, x_ND)
        return at("output", lambda x: dense(a.hidden_size, a, self.dtype, "dense")(x), gathered)


class Layer(nn.Module):
    """A pre-norm block of ViT and DeiT."""

    a: ViT
    dtype: DTypeLike
    rows: int
    """How many images the tokens are of."""

    @nn.compact
    def __call__(self, x_ND: Array) -> Array:
        """Return (N, D) from the same."""
        a, drop = self.a, Dropout(self.a.hidden_dropout)
        y = LayerNorm(a.epsilon, self.dtype, name="layernorm_before")(x_ND)
        x_ND += drop(Attention(a, self.dtype, name="attention")(y, self.rows))
        y = LayerNorm(a.epsilon, self.dtype, name="layernorm_after")(x_ND)
        wide = lambda y: dense(a.intermediate_size, a, self.dtype, "dense")(y)  # noqa: E731
        y = ACTIVATIONS[a.activation](at("intermediate", wide, y))
        y = at("output", lambda y: dense(a.hidden_size, a, self.dtype, "dense")(y), y)
        return x_ND + Dropout(a.hidden_dropout)(y)


class ScaledLayer(nn.Module):
    """A pre-norm block of DINOv2, whose branches are scaled channel by channel."""

    a: ViT
    dtype: DTypeLike
    rows: int
    """How many images the tokens are of."""

    @nn.compact
    def __call__(self, x_ND: Array) -> Array:
        """Return (N, D) from the same."""
        a = self.a
        y = LayerNorm(a.epsilon, self.dtype, name="norm1")(x_ND)
        y = Attention(a, self.dtype, name="attention")(y, self.rows)
        x_ND += self._branch(y, "layer_scale1")
        y = LayerNorm(a.epsilon, self.dtype, name="norm2")(x_ND)
        return x_ND + self._branch(at("mlp", mlp, a, self.dtype, y), "layer_scale2")

    def _branch(self, y: Array, name: str) -> Array:
        y = Scale(self.a, name=name)(y)
        return DropPath(self.a.drop)(y.reshape(self.rows, -1)).reshape(y.shape)


def mlp(a: ViT, dtype: DTypeLike, y: Array) -> Array:
    """Return what the feed-forward half of a DINOv2 block adds, before its scale."""
    if not a.swiglu:
        y = dense(a.intermediate_size, a, dtype, "fc1")(y)
        return dense(a.hidden_size, a, dtype, "fc2")(ACTIVATIONS[a.activation](y))
    y = dense(2 * a.intermediate_size, a, dtype, "weights_in")(y)
    gate, up = jnp.split(y, 2, axis=-1)
    return dense(a.hidden_size, a, dtype, "weights_out")(ACTIVATIONS["silu"](gate) * up)


def dense(width: int, a: ViT, dtype: DTypeLike, name: str, *, bias: bool = True) -> nn.Dense:
    """Return a Dense layer that starts as the config says."""
    normal = nn.initializers.truncated_normal(a.initializer_range)
    return nn.Dense(width, use_bias=bias, dtype=dtype, kernel_init=normal, name=name)


def blocks(a: ViT, x: Array, passage: Passage, dtype: DTypeLike) -> Array:
    """Run embeddings and blocks on images, or blocks on tokens (B, T, D); (B, T, D)."""
    rows = len(x)

    def laid_out(x_ND: Array) -> Array:
        x_BTD = x_ND.reshape(rows, -1, a.hidden_size)[:, a.prefix :]
        return x_BTD.reshape(rows, *grid_of(a, x_BTD, passage), a.hidden_size)

    if passage.given:
        x_ND = x.reshape(-1, a.hidden_size).astype(dtype)
    else:
        grid = (x.shape[1] // a.patch, x.shape[2] // a.patch)
        passage.grid = grid
        x_ND = Embeddings(a, dtype, name="embeddings")(x, grid)

    def layers(x_ND: Array) -> Array:
        if passage.start == 0:
            passage.maps["stem"] = laid_out(x_ND)
        kind, call = Layer if a.layer_scale is None else ScaledLayer, Alike()
        for number in passage.blocks(a.num_blocks):
            x_ND = call(kind(a, dtype, rows, name=str(number)), x_ND)
            passage.maps[f"stage{number + 1}"] = laid_out(x_ND)
        return x_ND

    return at("encoder/layer", layers, x_ND).reshape(rows, -1, a.hidden_size)


def grid_of(a: ViT, patches: Array, passage: Passage) -> tuple[int, int]:
    """Return rows and columns of the patches, which are square where nobody knows."""
    if passage.grid is not None:
        return passage.grid
    side = math.isqrt(patches.shape[1])
    return side, patches.shape[1] // side


def finish(a: ViT, x: Array, passage: Passage, dtype: DTypeLike) -> Final:
    """Norm the tokens; the features are the class token."""
    x_BTD = LayerNorm(a.epsilon, jnp.float32, name="layernorm")(x)
    patches = x_BTD[:, a.prefix :]
    grid = patches.reshape(len(x), *grid_of(a, patches, passage), a.hidden_size)
    features = x_BTD[:, 0]
    read = features
    if a.patches_read:
        read = jnp.concatenate([features, patches.mean(1)], axis=-1)
    elif a.distilled:
        read = x_BTD[:, :2].reshape(len(x), -1)
    return Final(x_BTD, grid, features, read)


def classify(a: ViT, final: Final, classes: int) -> Array:
    """Return (B, L) float32 logits; of two classifiers, the mean."""
    if not a.distilled:
        return dense(classes, a, jnp.float32, "classifier")(final.read)
    one, other = jnp.split(final.read, 2, axis=-1)
    one = dense(classes, a, jnp.float32, "cls_classifier")(one)
    return (one + dense(classes, a, jnp.float32, "distillation_classifier")(other)) / 2
