r"""Causal self-attention through one function: on CPU, with cuDNN, and with splash on a TPU.

$$ o_t = \sum_{s \le t} \mathrm{softmax}_s\big(c \tanh(\alpha\, q_t\cdot k_s / c)\big)\, v_s $$

over the tokens s of t's own segment, no further back than the window. Without a cap c the scores
are $\alpha\, q_t \cdot k_s$. Each key and value serves H/J queries (grouped queries).

Shapes are in the names: B rows, T tokens (S where they are looked at), H heads of queries, J of
keys and values, K the width of a head. Segment 0 is padding.

References:
  grouped queries: Ainslie et al. 2023, arXiv:2305.13245; windows: Beltagy et al. 2020,
  arXiv:2004.05150; soft caps: Gemma Team 2024, arXiv:2408.00118
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import platform, target_devices
from sftjax.models.attention import batched_dot
from sftjax.models.block_attention import NEVER, attend_by_blocks

IMPLEMENTATIONS = ("auto", "xla", "blocks", "cudnn", "splash", "splash-interpret")
"""Ways to compute it. `auto`: cuDNN on a GPU, splash on a single TPU and `blocks` for long rows on
a CPU where dtype and shapes allow, else XLA. `blocks` holds one block of scores at a time and skips
those that no token may see. `splash-interpret` runs the TPU's kernel on CPU, for tests."""

LONG = 256
"""From so many tokens a row on, blocks are the faster on a CPU."""

LANES = 128
"""Splash takes rows of a multiple of so many tokens."""


def attend(
    q_BTHK: Array,
    k_BTJK: Array,
    v_BTJK: Array,
    *,
    scale: float,
    segment_ids: Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    implementation: str = "auto",
    dropout: Callable[[Array], Array] | None = None,
) -> Array:
    """Return what each token gathers from the tokens up to it.

    Args:
      q_BTHK: (B, T, H, K).
      k_BTJK, v_BTJK: (B, T, J, K), J a divisor of H.
      scale: what scores are multiplied by, usually K**-0.5.
      segment_ids: (B, T) integers; attention stays within equal ones, and 0 is padding. None where
        each row is one example without padding, or with padding on the right: what real tokens
        gather is then the same, since they only look back. The tokens of a segment lie together.
      window: how many tokens back one can look, itself included; None for all.
      softcap: c above.
      implementation: one of `IMPLEMENTATIONS`.
      dropout: applied to the (B, J, H/J, T, T) weights; only XLA can, and `auto` turns to it.

    Returns:
      (B, T, H, K) in v's dtype. Rows of padding hold finite numbers that mean nothing.

    Raises:
      ValueError: if an implementation was asked for by name that cannot do this.

    >>> one = jnp.ones((1, 3, 2, 4))
    >>> attend(one, one, one, scale=0.5).shape
    (1, 3, 2, 4)
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r} is unknown: {', '.join(IMPLEMENTATIONS)}")
    if window is not None and window >= q_BTHK.shape[1]:
        window = None
    if implementation == "auto":
        implementation = _best(q_BTHK, softcap, dropout)
    refused = {
        "blocks": lambda: blocks_refuse(dropout),
        "cudnn": lambda: cudnn_refuses(q_BTHK, softcap, dropout),
        "splash": lambda: splash_refuses(q_BTHK, dropout),
        "splash-interpret": lambda: splash_refuses(q_BTHK, dropout),
    }.get(implementation, lambda: None)()
    if refused:
        raise ValueError(f"attention {implementation!r} cannot be used: {refused}; use 'xla'")
    if implementation == "blocks":
        return attend_by_blocks(
            q_BTHK, k_BTJK, v_BTJK,
            scale=scale, segment_ids=segment_ids, window=window, softcap=softcap,
        )  # fmt: skip
    if implementation == "cudnn":
        return _cudnn(q_BTHK, k_BTJK, v_BTJK, scale, segment_ids, window)
    if implementation.startswith("splash"):
        interpret = implementation == "splash-interpret"
        return _splash(q_BTHK, k_BTJK, v_BTJK, scale, segment_ids, window, softcap, interpret)
    seen = seen_by(segment_ids, q_BTHK.shape[1], window)
    k_BJSK, v_BJSK = k_BTJK.transpose(0, 2, 1, 3), v_BTJK.transpose(0, 2, 1, 3)
    return gather(q_BTHK, k_BJSK, v_BJSK, seen, scale=scale, softcap=softcap, dropout=dropout)


def seen_by(segment_ids: Array | None, length: int, window: int | None) -> Array:
    """Return who may look at whom, (B or 1, T, T) booleans over (looking, looked at).

    >>> seen_by(None, 3, 2).astype(int).tolist()
    [[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]
    """
    back = jnp.arange(length)[:, None] - jnp.arange(length)[None]
    seen = (back >= 0)[None]
    if window is not None:
        seen &= back < window
    if segment_ids is not None:
        seen = seen & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return seen


def gather(
    q_BTHK: Array,
    k_BJSK: Array,
    v_BJSK: Array,
    seen_BTS: Array,
    *,
    scale: float,
    softcap: float | None = None,
    dropout: Callable[[Array], Array] | None = None,
) -> Array:
    """Return what queries gather from the keys that they may see, by plain products.

    Args:
      q_BTHK: (B, T, H, K).
      k_BJSK, v_BJSK: (B, J, S, K), as a cache keeps them.
      seen_BTS: (B or 1, T, S) booleans.
      scale, softcap, dropout: as for `attend`.

    Returns:
      (B, T, H, K) in v's dtype; scores and softmax are float32.
    """
    w_BJHTS = _weights(q_BTHK, k_BJSK, seen_BTS, scale, softcap).astype(v_BJSK.dtype)
    return _gathered(w_BJHTS if dropout is None else dropout(w_BJHTS), v_BJSK)


@functools.partial(jax.jit, static_argnums=(3, 4))  # blocks that look alike are traced once
def _weights(
    q_BTHK: Array, k_BJSK: Array, seen_BTS: Array, scale: float, softcap: float | None
) -> Array:
    """Return the softmax over S, (B, J, H/J, T, S) float32."""
    rows, length, _, width = q_BTHK.shape
    groups = k_BJSK.shape[1]
    # One matrix product for each head of keys, whose queries lie below each other: on CPU five
    # times the speed of the same einsum over (B, T, H, K).
    q_PRK = (q_BTHK * scale).reshape(rows, length, groups, -1, width).transpose(0, 2, 3, 1, 4)
    q_PRK = q_PRK.reshape(rows * groups, -1, width)
    s_PRS = batched_dot(q_PRK, k_BJSK.reshape(rows * groups, -1, width), 2, 2)
    if softcap is not None:
        s_PRS = softcap * jnp.tanh(s_PRS / softcap)
    s_BJHTS = s_PRS.reshape(rows, groups, -1, length, k_BJSK.shape[2])
    # Finite, so that a token that sees nothing (padding) gives no NaN.
    return jax.nn.softmax(jnp.where(seen_BTS[:, None, None], s_BJHTS, NEVER), axis=-1)


@jax.jit
def _gathered(w_BJHTS: Array, v_BJSK: Array) -> Array:
    """Return what weights gather of the values, (B, T, H, K)."""
    rows, groups, shared, length, seen = w_BJHTS.shape
    width = v_BJSK.shape[-1]
    w_PRS, v_PSK = w_BJHTS.reshape(rows * groups, -1, seen), v_BJSK.reshape(-1, seen, width)
    o_PRK = batched_dot(w_PRS, v_PSK, 2, 1).astype(v_BJSK.dtype)
    o_BJHTK = o_PRK.reshape(rows, groups, shared, length, width)
    return o_BJHTK.transpose(0, 3, 1, 2, 4).reshape(rows, length, -1, width)


def blocks_refuse(dropout: object = None) -> str | None:
    """Say why blocks cannot be used, or None if they can.

    >>> blocks_refuse(dropout=lambda weights: weights)
    'they drop no weights'
    """
    return "they drop no weights" if dropout is not None else None


def cudnn_refuses(q_BTHK: Array, softcap: float | None, dropout: object = None) -> str | None:
    """Say why cuDNN's kernel cannot be used, or None if it can.

    >>> cudnn_refuses(jnp.ones((1, 2, 1, 64)), None)
    'it computes in bfloat16 or float16, not float32'
    """
    width = q_BTHK.shape[-1]
    if q_BTHK.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16 or float16, not {q_BTHK.dtype}"
    if width % 8 or width > 128:
        return f"it takes heads of a multiple of 8 up to 128, not {width}"
    if softcap is not None:
        return "it does not cap scores"
    if q_BTHK.shape[1] % 2:
        return f"it takes an even number of tokens, not {q_BTHK.shape[1]}"
    return "it drops no weights here" if dropout is not None else None


def splash_refuses(q_BTHK: Array, dropout: object = None) -> str | None:
    """Say why the TPU's kernel cannot be used, or None if it can.

    >>> splash_refuses(jnp.ones((1, 100, 1, 64)))
    'it takes rows of a multiple of 128 tokens, not 100'
    """
    if q_BTHK.shape[1] % LANES:
        return f"it takes rows of a multiple of {LANES} tokens, not {q_BTHK.shape[1]}"
    return "it drops no weights" if dropout is not None else None


def _best(q_BTHK: Array, softcap: float | None, dropout: object) -> str:
    backend = platform()
    if backend == "gpu" and cudnn_refuses(q_BTHK, softcap, dropout) is None:
        return "cudnn"
    if backend == "cpu" and q_BTHK.shape[1] >= LONG and blocks_refuse(dropout) is None:
        return "blocks"
    # On a mesh a Pallas kernel would have to be split by hand; one chip is what can be promised.
    alone = backend == "tpu" and len(target_devices()) == 1
    return "splash" if alone and splash_refuses(q_BTHK, dropout) is None else "xla"


def _cudnn(
    q: Array, k: Array, v: Array, scale: float, segment_ids: Array | None, window: int | None
) -> Array:
    mask = None
    if segment_ids is not None:
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    # (left, right): how many further tokens are seen on each side; the right is causality's.
    local = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, is_causal=True, local_window_size=local,
        implementation="cudnn",
    )  # fmt: skip


def _splash(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    segment_ids: Array | None,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    kernel = _splash_kernel(q.shape[1], q.shape[2], window, softcap, interpret)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * scale, k, v))
    if segment_ids is None:
        out = jax.vmap(kernel)(q, k, v)
    else:
        out = jax.vmap(kernel)(q, k, v, SegmentIds(segment_ids, segment_ids))
    return out.transpose(0, 2, 1, 3)


@functools.lru_cache(maxsize=32)  # its tables of blocks are made on the host, once for all layers
def _splash_kernel(
    length: int, heads: int, window: int | None, softcap: float | None, interpret: bool
) -> Callable[..., Array]:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (length, length)
    if window is None:
        one = splash.CausalMask(shape)
    else:
        one = splash.LocalMask(shape, window_size=(window - 1, 0), offset=0)
    with jax.ensure_compile_time_eval():
        kernel: Any = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([one] * heads), attn_logits_soft_cap=softcap, interpret=interpret
        )
    return kernel
