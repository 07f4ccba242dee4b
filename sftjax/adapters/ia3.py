r"""(IA)3: a learned factor for each input or output of a linear layer."""

import jax.numpy as jnp
from jax import Array

from sftjax.adapters.kind import Call, Kind, Leaves, Site, kernel_of


def ia3(*, feedforward: bool = False) -> Kind:
    r"""Return the kind that rescales what goes in or out of a layer.

    $$ y = (x W + b) \odot (1 + \ell) \quad\text{or, feedforward,}\quad
       y = (x \odot (1 + \ell)) W + b $$

    The leaf holds $\ell$, the difference of the factor to 1: zero at the start. The paper puts
    factors on keys and values (outputs) and on the input of the feed-forward network's second
    layer: `plan_adapter(params, ia3(), target_modules=["key", "value"]) + plan_adapter(params,
    ia3(feedforward=True), target_modules=["output.dense"])`.

    Args:
      feedforward: scale the inputs, not the outputs.

    Returns:
      A `Kind` with the leaf `ia3`, (out,) or (in,).

    References:
      Liu et al. 2022, arXiv:2205.05638
    """

    def init(site: Site, key: Array, params: Leaves) -> dict[str, Array]:
        return {"ia3": jnp.zeros(site.shape[-2 if feedforward else -1])}

    def branch(leaves: Leaves, call: Call) -> Array:
        gain = 1 + call.scale * leaves["ia3"]
        if feedforward:
            return call.base(call.x * gain.astype(call.x.dtype))
        y = call.base()
        return y * gain.astype(y.dtype)

    def times(params: Leaves, gain: Array) -> dict[str, Array]:
        kernel = kernel_of(params)
        if feedforward:
            return {**params, "kernel": (kernel * gain[:, None]).astype(kernel.dtype)}
        return {name: (value * gain).astype(value.dtype) for name, value in params.items()}

    def merge(leaves: Leaves, params: Leaves, scale: Array | float = 1.0) -> dict[str, Array]:
        return times(params, 1 + scale * leaves["ia3"])

    def unmerge(leaves: Leaves, params: Leaves) -> dict[str, Array]:
        return times(params, 1 / (1 + leaves["ia3"]))

    def distance(leaves: Leaves, start: Leaves | None, params: Leaves) -> Array:
        before, after = params, times(params, 1 + leaves["ia3"])
        return sum((jnp.square(after[name] - before[name]).sum() for name in before), jnp.zeros(()))

    return Kind(
        "ia3", init, branch, merge, unmerge,
        lambda leaves, c: {"ia3": c * leaves["ia3"]},
        lambda several, weights: {
            "ia3": sum((w * one["ia3"] for w, one in zip(weights, several, strict=True)))  # type: ignore[dict-item]
        },
        distance, ("ia3",),
        lambda site: (site.shape[-2 if feedforward else -1], 2 * site.shape[-2] * site.shape[-1]),
        config={"peft_type": "IA3", "feedforward": feedforward},
    )  # fmt: skip
