r"""Bottleneck adapters: a narrow network after a layer, $y + s\,\phi(y D + d)\,U$."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.adapters.kind import Call, Kind, Leaves, Site, product_of

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}

HOULSBY = r".*\.(output\.dense|attention\.out_lin|ffn\.lin2)"
"""`target_modules` of Houlsby et al.: after attention and after the feed-forward network. In BERT
and RoBERTa `attention.output.dense` and `output.dense`, in DistilBERT `attention.out_lin` and
`ffn.lin2`."""

PFEIFFER = r".*\.(\d+\.output\.dense|ffn\.lin2)"
"""`target_modules` of Pfeiffer et al.: after the feed-forward network alone."""


def bottleneck(r: int = 64, activation: str = "relu", *, scaling: float = 1.0) -> Kind:
    r"""Return the kind that puts a narrow network after a linear layer, before what is added to it.

    $$ y' = y + s\,\bigl(\phi(y D + d)\,U + u\bigr) $$

    U and u start at zero, so that a fresh adapter is the base to the bit. It stands at the layer's
    own output, before dropout, residual and norm. Its default place is `PFEIFFER`, for half the
    parameters of `HOULSBY`; any linear layers can be named.

    Args:
      r: the width of the bottleneck.
      activation: $\phi$: `"relu"`, `"gelu"`, `"silu"` or `"tanh"`.
      scaling: $s$.

    Returns:
      A `Kind` with leaves `down` (out, r), `down_bias` (r,), `up` (r, out) and `up_bias` (out,).
      No weights do the same, so it cannot be merged.

    Raises:
      ValueError: if the width is below 1 or the activation unknown.

    References:
      Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247

    >>> from sftjax.adapters import plan_adapter
    >>> shape = jax.ShapeDtypeStruct((4, 4), "float32")
    >>> layer = {"attention": {"output": {"dense": {"kernel": shape}}},
    ...          "output": {"dense": {"kernel": shape}}}
    >>> params = {"layer": {"0": layer}}
    >>> [site.path for site, _ in plan_adapter(params, bottleneck(r=2)).sites]
    ['layer/0/output/dense']
    >>> len(plan_adapter(params, bottleneck(r=2), target_modules=HOULSBY).sites)
    2
    """
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f"r={r!r}; the width of a bottleneck is an integer of 1 or more")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}; known: {', '.join(ACTIVATIONS)}")
    phi = ACTIVATIONS[activation]

    def init(site: Site, key: Array, params: Leaves) -> dict[str, Array]:
        width = site.shape[-1]
        return {
            "down": jax.random.normal(key, (width, r)) * width**-0.5,
            "down_bias": jnp.zeros(r),
            "up": jnp.zeros((r, width)),
            "up_bias": jnp.zeros(width),
        }

    def branch(leaves: Leaves, call: Call) -> Array:
        y = call.base()
        down, d = leaves["down"].astype(y.dtype), leaves["down_bias"].astype(y.dtype)
        s = call.scale * scaling
        up, u = (s * leaves["up"]).astype(y.dtype), (s * leaves["up_bias"]).astype(y.dtype)
        return y + (product_of(phi(product_of(y, down) + d), up) + u)

    return Kind(
        "bottleneck",
        init,
        branch,
        scaled=lambda leaves, c: {
            **leaves, "up": c * leaves["up"], "up_bias": c * leaves["up_bias"],
        },
        added=side_by_side,
        linear=("up", "up_bias"),
        flops=lambda site: (4 * r * site.shape[-1], 0),
        config={
            "peft_type": "BOTTLENECK", "r": r, "activation": activation, "scaling": scaling,
        },
        targets=PFEIFFER,
    )  # fmt: skip


def side_by_side(several: list[Leaves], weights: list[float]) -> dict[str, Array]:
    """Return one bottleneck, as wide as all together, that gives the weighted sum of theirs."""
    pairs = list(zip(weights, several, strict=True))
    return {
        "down": jnp.concatenate([leaves["down"] for leaves in several], -1),
        "down_bias": jnp.concatenate([leaves["down_bias"] for leaves in several]),
        "up": jnp.concatenate([c * leaves["up"] for c, leaves in pairs]),
        "up_bias": jnp.sum(jnp.stack([c * leaves["up_bias"] for c, leaves in pairs]), 0),
    }
