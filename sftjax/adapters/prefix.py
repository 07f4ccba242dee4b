r"""Prefix tuning: learned keys and values that every token of a layer may look at."""

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.adapters.kind import Call, Kind, Leaves, Site
from sftjax.adapters.prompt import check_num_virtual_tokens

STARTS = ("random", "zero")


def prefix_tuning(num_virtual_tokens: int = 20, *, init_weights: str = "random") -> Kind:
    r"""Return the kind that puts P learned keys and values before those of an attention layer.

    $$ \operatorname{softmax}\Bigl(\tfrac{q\,[K_p; K]^\top}{\sqrt{d}} + [\log s, b]\Bigr)\,
       [V_p; V] $$

    They are learned as they are, in each layer, without the paper's reparametrisation by a network
    (PEFT's `prefix_projection=False`). The tokens keep their positions, and as many may be read as
    without a prefix. (Where PEFT puts a prefix before a BERT, transformers takes it for a cache of
    P tokens and counts positions from P: give `position_ids` P higher to get its numbers.) The
    scale s weighs the prefix among what is looked at: 1 is all of it, 0 the base.

    Args:
      num_virtual_tokens: P.
      init_weights: `"random"`, normal with deviation 1, or `"zero"`, as in PEFT.

    Returns:
      A `Kind` with leaves `prefix_keys` and `prefix_values`, (P, D), for modules with a method
      `attend(q, k, v, bias)` over (rows * tokens, D) matrices, such as all our encoders have. No
      weights do the same, so it cannot be merged.

    Raises:
      ValueError: if P is below 1 or the start unknown.

    References:
      Li and Liang 2021, arXiv:2101.00190

    >>> from sftjax.adapters import plan_adapter
    >>> from sftjax.models import Head, bert, build
    >>> model = build({"model_type": "bert", **dict.fromkeys(bert.SIZES, 2)}, Head("hidden"))
    >>> plan = plan_adapter(model.shapes(), prefix_tuning(3))
    >>> [site.path for site, _ in plan.sites]
    ['bert/encoder/layer/0/attention/self', 'bert/encoder/layer/1/attention/self']
    """
    p = check_num_virtual_tokens(num_virtual_tokens)
    if init_weights not in STARTS:
        raise ValueError(f"init_weights={init_weights!r}; known: {', '.join(STARTS)}")
    deviation = 1.0 if init_weights == "random" else 0.0

    def init(site: Site, key: Array, params: Leaves) -> dict[str, Array]:
        shape = (p, site.shape[-1])
        keys, values = (deviation * jax.random.normal(own, shape) for own in jax.random.split(key))
        return {"prefix_keys": keys, "prefix_values": values}

    def branch(leaves: Leaves, call: Call) -> Array:
        k_ND, v_ND, bias_BTS = call.rest
        rows = bias_BTS.shape[0]
        seen = jnp.log(jnp.asarray(call.scale, bias_BTS.dtype))
        return call.base(
            call.x,
            _before(leaves["prefix_keys"], k_ND, rows),
            _before(leaves["prefix_values"], v_ND, rows),
            jnp.pad(bias_BTS, ((0, 0), (0, 0), (p, 0)), constant_values=seen),
        )

    return Kind(
        "prefix",
        init,
        branch,
        leaves=("key/kernel", "k_lin/kernel"),
        method="attend",
        config={
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": p,
            "prefix_projection": False,
            "init_weights": init_weights,
        },
    )


def _before(prefix_PD: Array, x_ND: Array, rows: int) -> Array:
    """Return (B * (P + S), D): the prefix before what each row has."""
    x_BSD = x_ND.reshape(rows, -1, x_ND.shape[-1])
    prefix_BPD = jnp.broadcast_to(prefix_PD.astype(x_ND.dtype), (rows, *prefix_PD.shape))
    return jnp.concatenate([prefix_BPD, x_BSD], 1).reshape(-1, x_ND.shape[-1])
