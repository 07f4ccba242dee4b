r"""Weight-decomposed low-rank adapters: a length for each output, and a direction."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sftjax.adapters.kind import Call, Kind, Leaves, Site, dropped, kernel_of, with_kernel
from sftjax.adapters.lora import lora, low_rank, product, scaling_of, wide


def dora(
    r: int = 8,
    lora_alpha: float | None = None,
    *,
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
) -> Kind:
    r"""Return the kind that learns the length of each output's weights apart from their direction.

    $$ W' = (\lVert W\rVert + m) \odot \frac{W + s A B}{\lVert W + s A B\rVert} $$

    Norms are of each output's weights, and the denominator takes no gradient (section 4.3 of the
    paper). The leaf `magnitude` holds $m$, the *change* of the lengths: zero at the start, so
    that a fresh adapter is the base to the bit, and decay of it pulls to the pretrained lengths.
    The product $A B$ is not built for the norms either:
    $\lVert W + sAB\rVert^2 = \lVert W\rVert^2 + 2 s\,(W^\top A) \cdot B + s^2 B^\top(A^\top A)B$.

    Args:
      r, lora_alpha, lora_dropout, use_rslora: as of `lora`.

    Returns:
      A `Kind` with leaves `lora_a`, `lora_b` and `magnitude` (out,).

    References:
      Liu et al. 2024, arXiv:2402.09353
    """
    low = lora(r, lora_alpha, lora_dropout=lora_dropout, use_rslora=use_rslora)
    s = scaling_of(r, low.config["lora_alpha"], use_rslora)

    def init(site: Site, key: Array, params: Leaves) -> dict[str, Array]:
        return {**low.init(site, key, params), "magnitude": jnp.zeros(site.shape[-1])}

    def branch(leaves: Leaves, call: Call) -> Array:
        y = call.base()
        kernel = kernel_of(call.params)
        ratio = _ratio(leaves, kernel, s, call.scale).astype(y.dtype)
        x = dropped(call.x, lora_dropout, call.key)
        if x is call.x:
            straight = y - jnp.asarray(call.params.get("bias", 0.0), y.dtype)
        else:
            straight = call.linear(x.astype(y.dtype), kernel.astype(y.dtype))
        turned = low_rank(leaves, call._replace(x=x), 0.0, s).astype(y.dtype)
        return y + (ratio - 1) * straight + ratio * turned

    def merge(leaves: Leaves, params: Leaves, scale: Array | float = 1.0) -> dict[str, Array]:
        kernel = wide(kernel_of(params))
        ratio = _ratio(leaves, kernel, s, scale)
        return with_kernel(params, ratio * (kernel + scale * s * product(leaves)))

    def unmerge(leaves: Leaves, params: Leaves) -> dict[str, Array]:
        return with_kernel(params, _before(wide(kernel_of(params)), leaves, s))

    def scaled(leaves: Leaves, c: float) -> dict[str, Array]:
        return {
            "lora_a": leaves["lora_a"],
            "lora_b": c * leaves["lora_b"],
            "magnitude": c * leaves["magnitude"],
        }

    return Kind(
        "dora", init, branch, merge, unmerge, scaled,
        linear=("lora_b", "magnitude"), flops=low.flops, check=low.check,
        config={**low.config, "use_dora": True},
    )  # fmt: skip


def _ratio(leaves: Leaves, kernel: Array, s: float, scale: Array | float) -> Array:
    """Return (out,), the new length over that of `W + s A B`, exactly 1 for fresh leaves."""
    before = jnp.square(wide(kernel)).sum(tuple(range(kernel.ndim - 1)))
    after = jax.lax.stop_gradient(before + _growth(leaves, wide(kernel), scale * s))
    floor = jnp.finfo(after.dtype).tiny
    length = jnp.sqrt(jnp.maximum(before, floor)) + scale * leaves["magnitude"]
    return length / jnp.sqrt(jnp.maximum(after, floor))


def _growth(leaves: Leaves, kernel: Array, s: Array | float) -> Array:
    """Return `|W + s A B|^2 - |W|^2` of each output, from products of width r alone."""
    a = wide(leaves["lora_a"]).reshape(-1, leaves["lora_a"].shape[-1])
    b = wide(leaves["lora_b"])
    across = a.T @ kernel.reshape(-1, kernel.shape[-1])
    return 2 * s * (across * b).sum(0) + s * s * ((a.T @ a @ b) * b).sum(0)


def _before(merged: Array, leaves: Leaves, s: float) -> Array:
    r"""Return the W that these leaves turned into `merged`.

    W's length is that of `merged` less $m$, and $W = c\,\hat u - s A B$ for the unit vector
    $\hat u$ along `merged`: the c that gives W its length. There is one such c if the product is
    shorter than W, and one such length if $m$ did not turn the weights round.

    Raises:
      ValueError: if there is none, or more than one.
    """
    axes = tuple(range(merged.ndim - 1))
    after = jnp.sqrt(jnp.square(merged).sum(axes))
    before = after - leaves["magnitude"]
    unit = merged / after
    change = s * product(leaves)
    along = (unit * change).sum(axes)
    shorter = jnp.square(before) - jnp.square(change).sum(axes)
    several = np.asarray((shorter <= 0) | (-leaves["magnitude"] >= after))
    if several.any():
        raise ValueError(
            f"DoRA changes outputs {np.flatnonzero(several)[:5].tolist()} by as much as their "
            "weights are long, so that several bases would merge into these weights (or none, if "
            "this adapter was not merged); keep the base beside them"
        )
    return (along + jnp.sqrt(jnp.square(along) + shorter)) * unit - change
