r"""A frozen base in 8 or 4 bits: quantized once, kept so in memory, dequantized inside the step.

Entries of the last axis share a scale in blocks of 64. In NF4 each entry is the nearest of 16
levels, quantiles of a normal distribution; in int8 one of 255 even ones:

$$ \hat w_i = s_b\, c_{k_i}, \quad s_b = \max_{i\in b}|w_i| $$

Why not qwix 0.1.8, which has NF4: it keeps codes as uint4, a whole byte each on CPU; it has no
quantized scales; it quantizes what dots, einsums and convolutions read, not look-ups in tables; and
it works by replacing functions of jax.numpy while a model runs, where these are functions of a
tree. Its levels are the same, from the same table of the paper.

References:
  QLoRA, NF4 and double quantization: Dettmers et al. 2023, arXiv:2305.14314, appendix E
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from sftjax.core import PyTree, Quantized, flatten, is_quantized, map_with_path, matches, nearest
from sftjax.core.quantized import How

LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
], np.float32)  # fmt: skip
"""The 16 values of NF4."""

EDGES = (LEVELS[1:] + LEVELS[:-1]) / 2
"""Between two levels, where the nearer one changes."""

BLOCK, OUTER_BLOCK = 64, 256
"""Entries to a scale, and scales to a scale of theirs, as in QLoRA."""

LEAVES = ("**/kernel", "**/embedding")
"""What is quantized if nothing is said: linear layers and tables."""

_CHUNK = 1 << 18  # entries worked on at a time: what quantizing needs beside input and output


def quantize(leaf: Any, how: How = "nf4", *, double: bool = False, block: int = BLOCK) -> Quantized:
    """Quantize one array, on the host.

    Args:
      leaf: (..., width), float of any width; or a `jax.ShapeDtypeStruct`, of which come shapes.
      how: `"nf4"` or `"int8"`.
      double: quantize the scales too, to int8 around their mean, 256 to a scale.
      block: entries of the last axis that share a scale; even.

    Returns:
      A `Quantized`; NF4 takes 4.5 bits an entry, 4.13 with `double`, int8 8.5 and 8.13.

    Raises:
      ValueError: if the array has no axis, is no float or not finite, or a setting is unknown.

    >>> found = quantize(np.linspace(-1, 1, 64, dtype=np.float32)[None], "int8")
    >>> float(jnp.abs(dequantize(found) - jnp.linspace(-1, 1, 64)).max()) < 0.5 / 127
    True
    """
    if how not in ("nf4", "int8"):
        raise ValueError(f"how={how!r}; known: nf4, int8")
    if block < 2 or block % 2:
        raise ValueError(f"block={block}; it is an even number of entries, 64 is usual")
    dtype = jnp.dtype(leaf.dtype)
    if not leaf.ndim or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"an array of shape {leaf.shape} and dtype {dtype} cannot be quantized")
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return _shapes(leaf, how, double, block)
    values = np.asarray(leaf)
    shape, width = values.shape, values.shape[-1]
    blocks = -(-width // block)
    rows = values.reshape(-1, width)
    codes = np.empty((len(rows), blocks * block // (2 if how == "nf4" else 1)), _CODES[how])
    scales = np.empty((len(rows), blocks), np.float32)
    step = max(1, _CHUNK // max(width, 1))
    for start in range(0, len(rows), step):
        chunk = np.zeros((len(rows[start : start + step]), blocks * block), np.float32)
        chunk[:, :width] = rows[start : start + step]
        found = _encode(chunk.reshape(len(chunk), blocks, block), how)
        codes[start : start + step], scales[start : start + step] = found
    if not np.isfinite(scales).all():
        raise ValueError("the array holds NaN or infinity and cannot be quantized")
    lead = shape[:-1]
    outer = mean = None
    kept: np.ndarray = scales
    if double:
        kept, outer, mean = _quantized_scales(scales)
    put = jax.device_put
    return Quantized(
        put(codes.reshape(*lead, -1)),
        put(kept.reshape(*lead, blocks)),
        None if outer is None else put(outer),
        None if mean is None else put(mean),
        how,
        tuple(shape),
        dtype,
        block,
    )


def _shapes(leaf: jax.ShapeDtypeStruct, how: How, double: bool, block: int) -> Quantized:
    *lead, width = leaf.shape
    blocks = -(-width // block)
    count = math.prod(lead) * blocks
    shape = jax.ShapeDtypeStruct
    stored = blocks * block // (2 if how == "nf4" else 1)
    return Quantized(
        shape((*lead, stored), _CODES[how]),
        shape((*lead, blocks), jnp.int8 if double else jnp.float32),  # type: ignore[arg-type]
        shape((-(-count // OUTER_BLOCK),), jnp.float32) if double else None,  # type: ignore[arg-type]
        shape((), jnp.float32) if double else None,  # type: ignore[arg-type]
        how,
        tuple(leaf.shape),
        jnp.dtype(leaf.dtype),
        block,
    )


def dequantize(q: Quantized, dtype: DTypeLike | None = None) -> Array:
    """Return the array that codes and scales stand for.

    Args:
      q: from `quantize`.
      dtype: of the result; that of the array quantized if None.
    """
    return _decode(q, q.codes, _scales(q)).astype(q.dtype if dtype is None else dtype)


def quantize_base(
    params: PyTree,
    how: How = "nf4",
    *,
    double: bool = False,
    patterns: Collection[str] = LEAVES,
    exclude: Collection[str] = (),
    block: int = BLOCK,
) -> PyTree:
    """Quantize the large leaves of a frozen base; biases, norms and narrow layers stay.

    Args:
      params: the base.
      how: `"nf4"` or `"int8"`.
      double: quantize the scales too.
      patterns: of leaves to quantize; of these, matrices whose last axis fills a block.
      exclude: patterns of leaves to leave (a head that is trained).
      block: entries to a scale.

    Returns:
      The tree with a `Quantized` in place of each such leaf.

    Raises:
      ValueError: if a pattern names no leaf, nothing can be quantized, or a leaf is not finite.

    >>> base = {"q": {"kernel": jnp.ones((8, 64)), "bias": jnp.ones(64)}}
    >>> print(describe_quantized(quantize_base(base)))
    nf4   1 leaf   512 parameters   288 B  4.50 bits each
    kept  1 leaf   64 parameters   256 B  32.00 bits each
    """
    paths = list(flatten(params))
    for pattern in (*(patterns if patterns is not LEAVES else ()), *exclude):
        if not any(matches(pattern, path) for path in paths):
            raise ValueError(
                f"pattern {pattern!r} names no leaf; nearest: {', '.join(nearest(pattern, paths))}"
            )
    chosen = {
        path for path, leaf in flatten(params).items() if fits(path, leaf, patterns, exclude, block)
    }
    if not chosen:
        raise ValueError(
            f"nothing is quantized: no leaf named is a float matrix of at least {block} columns; "
            "name larger ones (patterns), or take smaller blocks (block)"
        )

    def convert(path: str, leaf: Any) -> Any:
        if path not in chosen:
            return leaf
        try:
            return quantize(leaf, how, double=double, block=block)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    return map_with_path(convert, params)


def fits(
    path: str,
    leaf: Any,
    patterns: Collection[str] = LEAVES,
    exclude: Collection[str] = (),
    block: int = BLOCK,
) -> bool:
    """Tell whether a leaf (an array or a shape) is one that `quantize_base` takes."""
    return (
        len(leaf.shape) == 2
        and leaf.shape[-1] >= block
        and jnp.issubdtype(leaf.dtype, jnp.floating)
        and any(matches(pattern, path) for pattern in patterns)
        and not any(matches(pattern, path) for pattern in exclude)
    )


def dequantize_tree(params: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """Return params of plain arrays: for any function, at the price of the memory saved."""
    return jax.tree.map(
        lambda leaf: dequantize(leaf, dtype) if is_quantized(leaf) else leaf,
        params,
        is_leaf=is_quantized,
    )


def shapes_behind(params: PyTree) -> PyTree:
    """Return the shapes and dtypes of the arrays that a tree, quantized or not, stands for."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        params,
        is_leaf=is_quantized,
    )


@jax.custom_vjp
def quantized_dot(q: Quantized, x: Array) -> Array:
    r"""Return `x @ dequantize(q)` in x's dtype, keeping no dequantized weights for the gradient.

    The backward pass, $\bar x = \bar y \hat W^\top$, dequantizes again; the weights get no
    gradient.

    Args:
      q: (in, out).
      x: (..., in).
    """
    return x @ dequantize(_after(x, q), x.dtype)


def _forward(q: Quantized, x: Array) -> tuple[Array, Quantized]:
    return quantized_dot(q, x), q


def _backward(q: Quantized, slope: Array) -> tuple[Any, Array]:
    none = jax.tree.map(
        lambda leaf: (
            jnp.zeros_like(leaf)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else np.zeros(leaf.shape, jax.dtypes.float0)
        ),
        q,
    )
    return none, slope @ dequantize(_after(slope, q), slope.dtype).T


def _after(x: Array, q: Quantized) -> Quantized:
    """Return the same codes, which the compiler cannot know before it knows x.

    Else it may dequantize all layers first, or keep the forward pass's weights for the backward
    pass: an optimization barrier orders neither on CPU. Nothing is above infinity, NaN included.
    """
    never = x.ravel()[:1].max(initial=-jnp.inf) > jnp.inf
    return dataclasses.replace(q, codes=q.codes ^ never.astype(q.codes.dtype))


quantized_dot.defvjp(_forward, _backward)


def quantized_rows(q: Quantized, ids: Array) -> Array:
    """Return `dequantize(q)[ids]`, dequantizing the rows that are read; an id outside is NaN."""
    rows = _decode(q, q.codes.at[ids].get(mode="fill"), _scales(q).at[ids].get(mode="fill"))
    inside = (ids >= 0) & (ids < q.shape[0])
    return jnp.where(inside[..., None], rows, jnp.nan).astype(q.dtype)


def describe_quantized(params: PyTree) -> str:
    """Return a line for each way of keeping leaves: how many, how large, bits a parameter."""
    groups: dict[str, list[Any]] = {}
    for leaf in jax.tree.leaves(params, is_leaf=is_quantized):
        name = "kept"
        if is_quantized(leaf):
            name = leaf.how + ("" if leaf.outer is None else " double")
        groups.setdefault(name, []).append(leaf)
    lines = []
    width = max(map(len, groups))
    for name in sorted(groups, key=lambda name: name == "kept"):
        scalars = sum(math.prod(leaf.shape) for leaf in groups[name])
        size = sum(
            math.prod(part.shape) * part.dtype.itemsize for part in jax.tree.leaves(groups[name])
        )
        leaves = f"{len(groups[name])} lea{'f' if len(groups[name]) == 1 else 'ves'}"
        lines.append(
            f"{name:<{width}}  {leaves}   {scalars:,} parameters   {_size(size)}  "
            f"{8 * size / max(scalars, 1):.2f} bits each"
        )
    return "\n".join(lines)


_CODES = {"nf4": np.uint8, "int8": np.int8}


def _encode(chunk: np.ndarray, how: How) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, bytes) codes and (rows, blocks) scales of (rows, blocks, block)."""
    scales = np.abs(chunk).max(-1)
    if how == "int8":
        scales = scales / np.float32(127)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where(scales[..., None] > 0, chunk / scales[..., None], np.float32(0))
    if how == "int8":
        return np.rint(unit).astype(np.int8).reshape(len(chunk), -1), scales
    numbers = np.searchsorted(EDGES, unit).astype(np.uint8).reshape(len(chunk), -1)
    return numbers[:, 0::2] | (numbers[:, 1::2] << 4), scales


def _quantized_scales(scales: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return int8 scales, their own float32 scales, and the mean that was taken off."""
    mean = np.float32(scales.mean(dtype=np.float64))
    flat = (scales - mean).reshape(-1)
    padded = np.zeros(-(-flat.size // OUTER_BLOCK) * OUTER_BLOCK, np.float32)
    padded[: flat.size] = flat
    blocks = padded.reshape(-1, OUTER_BLOCK)
    outer = np.abs(blocks).max(-1) / np.float32(127)
    codes = np.rint(blocks / np.where(outer > 0, outer, 1)[:, None]).astype(np.int8)
    return codes.reshape(-1)[: flat.size].reshape(scales.shape), outer, np.asarray(mean)


def _scales(q: Quantized) -> Array:
    """Return (..., blocks) float32."""
    if q.outer is None or q.mean is None:
        return q.scales
    flat = q.scales.reshape(-1).astype(jnp.float32)
    padding = -flat.size % OUTER_BLOCK
    blocks = jnp.pad(flat, (0, padding)).reshape(-1, OUTER_BLOCK) * q.outer[:, None]
    return blocks.reshape(-1)[: flat.size].reshape(q.scales.shape) + q.mean


def _decode(q: Quantized, codes: Array, scales: Array) -> Array:
    """Return (..., width) float32 of (..., bytes) codes and (..., blocks) scales."""
    if q.how == "nf4":
        numbers = jnp.stack([codes & 15, codes >> 4], axis=-1)
        unit = jnp.asarray(LEVELS)[numbers]
    else:
        unit = codes.astype(jnp.float32)
    blocks = unit.reshape(*scales.shape, q.block) * scales[..., None]
    return blocks.reshape(*scales.shape[:-1], -1)[..., : q.shape[-1]]


def _size(count: float) -> str:
    power = min(int(math.log10(max(count, 1)) // 3), 3)
    return f"{count} B" if not power else f"{count / 1000**power:.1f} {'kMG'[power - 1]}B"
