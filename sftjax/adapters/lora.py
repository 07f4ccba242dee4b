r"""Low-rank adapters: $y = x W + s\,(x A) B$, with the product $A B$ never built.

A kernel is (..., in, out), A (..., in, r) and B (r, out): the same for a Dense layer, for a
convolution (A keeps its window, B is 1 x 1) and for an embedding (A is looked up).
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.adapters.kind import (
    Call,
    Kind,
    Leaves,
    Site,
    dropped,
    kernel_of,
    product_of,
    with_kernel,
)
from sftjax.core import PyTree, map_with_path

Start = Literal["default", "gaussian", "pissa", "olora"]


def lora(
    r: int = 8,
    lora_alpha: float | None = None,
    *,
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
    init_lora_weights: Start = "default",
) -> Kind:
    r"""Return the kind that adds a product of rank r to a kernel.

    $$ y = x W + s\,(x A) B, \quad s = \alpha / r \text{ or, rsLoRA, }\alpha/\sqrt r$$

    Args:
      r: the rank.
      lora_alpha: $\alpha$; r itself if None, so that s is 1 (without rsLoRA).
      lora_dropout: of the branch's input.
      use_rslora: divide by the square root of the rank.
      init_lora_weights: `"default"`: A uniform within $1/\sqrt{\text{in}}$ and B zero, as in PEFT
        (of an embedding: A zero, B normal); `"gaussian"`: A normal with deviation 1/r; `"pissa"`:
        the r largest singular values and vectors of W, so that what is frozen is the rest;
        `"olora"`: the first columns of W's QR decomposition.

    Returns:
      A `Kind` with leaves `lora_a` (..., in, r) and `lora_b` (r, out).

    Raises:
      ValueError: if the rank is below 1, a rate no probability, or the start unknown; from
        `plan_adapter`, if the rank is larger than a dimension of the leaf.

    References:
      Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732; PiSSA: Meng et
      al. 2024, arXiv:2404.02948; OLoRA: Büyükakyüz 2024, arXiv:2406.01775

    >>> kind = lora(r=2)
    >>> leaves = kind.init(Site("q", "kernel", (4, 3)), jax.random.key(0), {})
    >>> leaves["lora_a"].shape, leaves["lora_b"].tolist()
    ((4, 2), [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    """
    check_numbers(r, lora_alpha, lora_dropout)
    alpha = float(r if lora_alpha is None else lora_alpha)
    if init_lora_weights not in STARTS:
        raise ValueError(f"init_lora_weights={init_lora_weights!r}; known: {', '.join(STARTS)}")
    s = scaling_of(r, alpha, use_rslora)
    start = STARTS[init_lora_weights]

    def init(site: Site, key: Array, params: Leaves) -> dict[str, Array]:
        a, b = start(site, key, params, r, s)
        return {"lora_a": a, "lora_b": b}

    def branch(leaves: Leaves, call: Call) -> Array:
        y = call.base()
        return y + low_rank(leaves, call, lora_dropout, s).astype(y.dtype)

    def merge(leaves: Leaves, params: Leaves, scale: Array | float = 1.0) -> dict[str, Array]:
        return with_kernel(params, wide(kernel_of(params)) + scale * s * product(leaves))

    def unmerge(leaves: Leaves, params: Leaves) -> dict[str, Array]:
        return merge(leaves, params, -1.0)

    def distance(leaves: Leaves, start: Leaves | None, params: Leaves) -> Array:
        return s * s * squared_product(leaves, start)

    return Kind(
        "lora",
        init,
        branch,
        merge,
        unmerge,
        lambda leaves, c: {**leaves, "lora_b": c * leaves["lora_b"]},
        side_by_side,
        distance,
        linear=("lora_b",),
        flops=lambda site: flops_of(r, site),
        leaves=("kernel", "embedding"),
        check=lambda site: check_rank(r, site),
        starts_at_base=init_lora_weights in ("default", "gaussian"),
        config={
            "peft_type": "LORA",
            "r": r,
            "lora_alpha": alpha,
            "lora_dropout": lora_dropout,
            "use_rslora": use_rslora,
            "use_dora": False,
            "init_lora_weights": init_lora_weights,
        },
    )


def scaling_of(r: int, lora_alpha: float, use_rslora: bool) -> float:
    r"""Return $s$, what the product is multiplied by.

    >>> scaling_of(4, 8.0, False), scaling_of(4, 8.0, True)
    (2.0, 4.0)
    """
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def flops_of(r: int, site: Site) -> tuple[int, int]:
    """Return the FLOPs of `(x A) B` for a position, and of A B.

    >>> flops_of(2, Site("q", "kernel", (4, 3)))
    (28, 48)
    """
    inner, outer = math.prod(site.shape[:-1]), site.shape[-1]
    looked_up = site.leaf == "embedding"
    return 2 * r * (outer if looked_up else inner + outer), 2 * inner * r * outer


def product(leaves: Leaves) -> Array:
    """Return A B, of the kernel's shape: built where weights are merged, never in a branch."""
    return wide(leaves["lora_a"]) @ wide(leaves["lora_b"])


def squared_product(leaves: Leaves, start: Leaves | None = None) -> Array:
    r"""Return $\lVert A B - A_0 B_0 \rVert_F^2$ from products of width r (2r with a start).

    >>> one = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.ones((1, 2))}
    >>> float(squared_product(one)), float(squared_product(one, one))
    (6.0, 0.0)
    """
    left, right = _matrix(leaves["lora_a"]), wide(leaves["lora_b"])
    if start is not None:
        # A B - A0 B0 = (A - A0) B + A0 (B - B0), which loses no digits near the start.
        left, right = (
            jnp.concatenate([left - (first := _matrix(start["lora_a"])), first], axis=1),
            jnp.concatenate([right, right - wide(start["lora_b"])]),
        )
    return jnp.sum((left.T @ left) * (right @ right.T))


def low_rank(leaves: Leaves, call: Call, dropout: float, s: float) -> Array:
    """Return `scale s (drop(x) A) B` in the dtype of x (of an embedding: of A)."""
    ids = jnp.issubdtype(call.x.dtype, jnp.integer)
    x = call.x if ids else dropped(call.x, dropout, call.key)
    dtype = leaves["lora_a"].dtype if ids else x.dtype
    narrow = call.linear(x, leaves["lora_a"].astype(dtype))
    return product_of(narrow, (call.scale * s * leaves["lora_b"]).astype(dtype))


def side_by_side(several: list[Leaves], weights: list[float]) -> dict[str, Array]:
    """Return factors of the sum of ranks whose product is the weighted sum of the products."""
    return {
        "lora_a": jnp.concatenate([leaves["lora_a"] for leaves in several], -1),
        "lora_b": jnp.concatenate(
            [weight * leaves["lora_b"] for weight, leaves in zip(weights, several, strict=True)]
        ),
    }


def lora_plus(adapter: PyTree, ratio: float = 16.0) -> PyTree:
    r"""Return the rates of LoRA+: $\eta_B = \text{ratio}\cdot\eta_A$, all others 1.

    Give them to `anchor.adamw(rates=...)` or `anchor.scale_by_rates`.

    References:
      Hayou et al. 2024, arXiv:2402.12354, who use about 16

    >>> lora_plus({"q": {"lora_a": 0, "lora_b": 0}}, 16.0)
    {'q': {'lora_a': 1.0, 'lora_b': 16.0}}
    """
    if ratio <= 0:
        raise ValueError(f"the ratio of LoRA+ is {ratio}; it multiplies a rate and is above 0")
    return map_with_path(
        lambda path, leaf: ratio if path.rpartition("/")[2] == "lora_b" else 1.0, adapter
    )


def check_rank(r: int, site: Site) -> None:
    """Check that a rank is below both dimensions of a leaf.

    Raises:
      ValueError: naming the leaf.
    """
    inner, outer = math.prod(site.shape[:-1]), site.shape[-1]
    if r > min(inner, outer):
        raise ValueError(
            f"rank r={r} is larger than a dimension of {site.path}/{site.leaf} {site.shape}: a "
            f"product of {inner} x {outer} has at most rank {min(inner, outer)}; take a smaller r"
        )


def check_numbers(r: int, lora_alpha: float | None, dropout: float) -> None:
    """Check the settings that low-rank kinds share.

    Raises:
      ValueError: naming the setting.
    """
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f"r={r!r}; a rank is an integer of 1 or more")
    if lora_alpha is not None and not isinstance(lora_alpha, int | float):
        raise ValueError(f"lora_alpha={lora_alpha!r}; it is a number, twice the rank is usual")
    if not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"lora_dropout={dropout!r}; a rate is in [0, 1)")


def wide(leaf: Array) -> Array:
    """Return a leaf in float32, or wider if it is."""
    return jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))


Factors = Callable[[Site, Array, Leaves, int, float], tuple[Array, Array]]
"""`(site, key, module's params, r, s) -> (A, B)`."""


def _default(site: Site, key: Array, params: Leaves, r: int, s: float) -> tuple[Array, Array]:
    *window, inner, outer = site.shape
    if site.leaf == "embedding":
        return jnp.zeros((inner, r)), jax.random.normal(key, (r, outer))
    bound = 1.0 / math.sqrt(math.prod(window) * inner)
    a = jax.random.uniform(key, (*window, inner, r), minval=-bound, maxval=bound)
    return a, jnp.zeros((r, outer))


def _gaussian(site: Site, key: Array, params: Leaves, r: int, s: float) -> tuple[Array, Array]:
    return jax.random.normal(key, (*site.shape[:-1], r)) / r, jnp.zeros((r, site.shape[-1]))


def _pissa(site: Site, key: Array, params: Leaves, r: int, s: float) -> tuple[Array, Array]:
    w = _matrix(kernel_of(params, site.leaf))
    u, singular, v = jnp.linalg.svd(w, full_matrices=False)
    root = jnp.sqrt(singular[:r] / s)
    return _unmatrix(u[:, :r] * root, site), root[:, None] * v[:r]


def _olora(site: Site, key: Array, params: Leaves, r: int, s: float) -> tuple[Array, Array]:
    q, upper = jnp.linalg.qr(_matrix(kernel_of(params, site.leaf)).T)
    return _unmatrix(upper[:r].T, site), q[:, :r].T


STARTS: dict[str, Factors] = {
    "default": _default,
    "gaussian": _gaussian,
    "pissa": _pissa,
    "olora": _olora,
}


def _matrix(kernel: Array) -> Array:
    return wide(kernel).reshape(-1, kernel.shape[-1])


def _unmatrix(a: Array, site: Site) -> Array:
    return a.reshape(*site.shape[:-1], -1)
