r"""Rotary positions: pairs of a head's entries are turned by an angle that grows with the position.

With the angle $\theta_i = p\,\omega_i$ of position p and the pair (i, i + K/2):

$$ (x_i, x_{i+K/2}) \mapsto (x_i\cos\theta_i - x_{i+K/2}\sin\theta_i,\;
                             x_{i+K/2}\cos\theta_i + x_i\sin\theta_i) $$

$\omega_i = b^{-2i/K}$ with the base b, unless the config scales the frequencies for longer texts.

References:
  RoFormer: Su et al. 2021, arXiv:2104.09864
  linear: Chen et al. 2023, arXiv:2306.15595; yarn: Peng et al. 2023, arXiv:2309.00071
  llama3: Grattafiori et al. 2024, arXiv:2407.21783; dynamic: section 3.4 of yarn's paper
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
"""The `rope_type`s that are built here."""


class Rope(NamedTuple):
    """One way to turn; hashable."""

    kind: str
    """One of `TYPES`."""
    width: int
    """K, the entries that are turned."""
    base: float
    factor: float = 1.0
    """How many times longer texts may be than in pretraining."""
    original: int = 0
    """Length of the texts of pretraining."""
    low: float = 1.0
    """llama3's `low_freq_factor`, yarn's `beta_slow`."""
    high: float = 1.0
    """llama3's `high_freq_factor`, yarn's `beta_fast`."""
    gain: float = 1.0
    """What cosines and sines are multiplied by (yarn)."""
    truncate: bool = True
    """Whether yarn's range is rounded to whole pairs."""


def read_rope(fields: Mapping[str, Any], width: int, longest: int, base: float) -> Rope:
    """Read a config's `rope_parameters` (or `rope_scaling`, as files older than 2026 have it).

    Args:
      fields: the dictionary, possibly empty.
      width: the head's width K.
      longest: `max_position_embeddings`.
      base: `rope_theta` where the fields do not say it.

    Raises:
      ValueError: if the type is unknown, or one of its numbers is missing.

    >>> read_rope({"rope_type": "linear", "factor": 2.0}, 64, 4096, 1e4).factor
    2.0
    """
    kind = fields.get("rope_type", fields.get("type", "default"))
    base = float(fields.get("rope_theta") or base)
    if kind not in TYPES:
        raise ValueError(
            f"rope_type {kind!r} in the config is not built here; {', '.join(TYPES)} are"
        )
    if fields.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"the config's partial_rotary_factor {fields['partial_rotary_factor']} is not "
            "supported (only 1.0): in pretraining a part of each head had no positions, and here "
            "it would; choose a checkpoint without it"
        )
    if width % 2:
        raise ValueError(
            f"rotary positions turn pairs, and the head's width is {width}; the config's head_dim "
            "(or hidden_size / num_attention_heads) must be even"
        )
    if kind == "default":
        return Rope(kind, width, base)
    factor = fields.get("factor")
    original = fields.get("original_max_position_embeddings") or longest
    if factor is None and kind == "yarn":
        factor = longest / original
    if factor is None:
        raise ValueError(
            f"rope_type {kind!r} in the config needs a factor; add the field `factor` to its "
            "rope_scaling (or rope_parameters)"
        )
    if kind == "linear":
        return Rope(kind, width, base, float(factor))
    if kind == "dynamic":
        return Rope(kind, width, base, float(factor), longest)
    if kind == "llama3":
        absent = [n for n in ("low_freq_factor", "high_freq_factor") if fields.get(n) is None]
        if absent:
            raise ValueError(f"rope_type 'llama3' in the config needs {', '.join(absent)}")
        low, high = float(fields["low_freq_factor"]), float(fields["high_freq_factor"])
        return Rope(kind, width, base, float(factor), original, low, high)
    slow, fast = fields.get("beta_slow") or 1, fields.get("beta_fast") or 32
    gain = fields.get("attention_factor")
    if gain is None:
        one, all_dim = fields.get("mscale"), fields.get("mscale_all_dim")
        gain = _mscale(factor)
        if one and all_dim:
            gain = _mscale(factor, one) / _mscale(factor, all_dim)
    truncate = bool(fields.get("truncate", True))
    return Rope(
        kind, width, base, float(factor), original, float(slow), float(fast), float(gain), truncate
    )


def angles(rope: Rope, positions_BT: Array) -> tuple[Array, Array]:
    """Return cosines and sines of the positions' angles.

    Args:
      rope: how to turn.
      positions_BT: (B, T) or (1, T) integers.

    Returns:
      Two (B, T, K/2) float32 arrays.

    >>> cos, sin = angles(Rope("default", 4, 100.0), jnp.array([[0, 10]]))
    >>> cos[0, 1].round(3).tolist()
    [-0.839..., 0.540...]
    """
    places = positions_BT.astype(jnp.float32)[..., None]
    theta = places * _frequencies(rope, positions_BT)
    return jnp.cos(theta) * rope.gain, jnp.sin(theta) * rope.gain


@jax.jit  # blocks that look alike are traced once
def turn(x_BTHK: Array, cos: Array, sin: Array) -> Array:
    """Turn the heads of queries or keys.

    Args:
      x_BTHK: (B, T, H, K).
      cos, sin: (B, T, K/2), from `angles`.

    Returns:
      The same shape and dtype; computed in float32.

    >>> x = jnp.ones((1, 1, 1, 2))
    >>> turn(x, jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))).tolist()
    [[[[-1.0, 1.0]]]]
    """
    one, two = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)
    return turned.astype(x_BTHK.dtype)


def _frequencies(rope: Rope, positions: Array) -> Array:
    # float32 and in torch's order of operations: at position 100 000 the last bit of a frequency
    # is a hundredth of a turn.
    exponent = np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width)
    if rope.kind == "dynamic":
        longest = jnp.maximum(positions.max() + 1, rope.original).astype(jnp.float32)
        grown = rope.factor * longest / rope.original - (rope.factor - 1)
        return 1.0 / ((rope.base * grown ** (rope.width / (rope.width - 2))) ** exponent)
    plain = np.float32(1.0) / np.float32(rope.base) ** exponent
    if rope.kind == "linear":
        return jnp.asarray(plain / np.float32(rope.factor))
    if rope.kind == "llama3":
        return jnp.asarray(_llama3(rope, plain))
    return jnp.asarray(_yarn(rope, plain) if rope.kind == "yarn" else plain)


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    wavelength = 2 * np.pi / plain
    smooth = (rope.original / wavelength - rope.low) / (rope.high - rope.low)
    between = (1 - smooth) * plain / rope.factor + smooth * plain
    slow = wavelength > rope.original / rope.low
    fast = wavelength < rope.original / rope.high
    return np.where(slow, plain / rope.factor, np.where(fast, plain, between)).astype(np.float32)


def _yarn(rope: Rope, plain: np.ndarray) -> np.ndarray:
    def pair(turns: float) -> float:
        """The pair that turns so many times over a text of pretraining."""
        logarithm = math.log(rope.original / (turns * 2 * math.pi))
        return rope.width * logarithm / (2 * math.log(rope.base))

    low, high = pair(rope.high), pair(rope.low)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.width - 1)
    high += 0.001 * (low == high)
    ramp = np.clip((np.arange(rope.width // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return (plain / rope.factor * ramp + plain * (1 - ramp)).astype(np.float32)


def _mscale(scale: float, weight: float = 1.0) -> float:
    return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0
