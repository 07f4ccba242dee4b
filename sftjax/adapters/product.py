r"""Anchoring of adapters: what counts is the change of the weights, not its factors.

A LoRA whose factors shrink or turn while their product stays is the same model, so the penalty is
of the product; and a PiSSA or OLoRA stands at the pretrained weights when its product is the
*initial* one, so that is its anchor. Neither builds a matrix of the kernel's size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.adapters.apply import Apply, side_branch
from sftjax.adapters.kind import tree_at
from sftjax.adapters.on_quantized import on_quantized
from sftjax.adapters.plan import Plan, attach
from sftjax.adapters.quantize import dequantize_tree
from sftjax.core import Aux, Batch, Loss, Objective, PyTree, flatten

REFERENCE_LOGITS = "reference_logits"


def with_adapter(params: PyTree, plan: Plan, key: Array) -> dict[str, PyTree]:
    """Return params and fresh adapter in one tree, as steps, objectives and checkpoints take it.

    Args:
      params: the pretrained params.
      plan: from `plan_adapter`.
      key: draws the leaves.

    Returns:
      `{"adapter": ..., "base": ...}`, and beside them `"initial"`, the adapter as it started,
      where a kind does not start at the base (PiSSA, OLoRA): the anchor of its product.

    >>> from sftjax.adapters import lora, plan_adapter
    >>> params = {"q": {"kernel": jnp.eye(2)}}
    >>> start = lora(r=1, init_lora_weights="pissa")
    >>> sorted(with_adapter(params, plan_adapter(params, start), jax.random.key(0)))
    ['adapter', 'base', 'initial']
    """
    adapter, base = attach(params, plan, key)
    joined = {"adapter": adapter, "base": base}
    if all(kind.starts_at_base for kind in plan.kinds):
        return joined
    return {**joined, "initial": jax.tree.map(jnp.copy, adapter)}


def change_penalty(params: PyTree, plan: Plan) -> Array:
    r"""Return half the squared distance of the adapted weights from the pretrained ones.

    $$ \tfrac12 \sum_\text{sites} \lVert s A B - s A_0 B_0 \rVert_F^2 $$

    with $A_0 B_0 = 0$ for adapters that start at zero. It is a trace of products of width r:
    $\lVert P Q \rVert^2 = \operatorname{tr}(P^\top P\, Q Q^\top)$ for
    $P = (A - A_0, A_0)$ and $Q = (B, B - B_0)$, which loses no digits near the start.

    Args:
      params: from `with_adapter`.
      plan: theirs.

    Returns:
      (), float32.

    Raises:
      ValueError: if a kind has no such distance.

    >>> from sftjax.adapters import lora, plan_adapter
    >>> base = {"q": {"kernel": jnp.zeros((3, 2))}}
    >>> adapter = {"q": {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.ones((1, 2))}}
    >>> joined = {"adapter": adapter, "base": base}
    >>> float(change_penalty(joined, plan_adapter(base, lora(r=1))))
    3.0
    """
    total = jnp.zeros((), jnp.float32)
    for site, kind in plan.sites:
        if kind.distance is None:
            raise ValueError(
                f"a {kind.name} adapter has no distance from the pretrained weights in closed "
                "form; hold the outputs instead (reference_from_base with distill_logits)"
            )
        initial = None if kind.starts_at_base else tree_at(params["initial"], site.path)
        module = dequantize_tree(tree_at(params["base"], site.path))
        total += kind.distance(tree_at(params["adapter"], site.path), initial, module)
    return total / 2


def anchored_change(objective: Objective, plan: Plan, weight: float) -> Objective:
    r"""Return the objective with `weight` times `change_penalty` added to its mean.

    $$ \bar\ell + \tfrac\beta2 \sum \lVert s A B - s A_0 B_0\rVert_F^2 $$

    The penalty is scaled by what the batch weighs, so that it counts once an update however the
    update is cut into micro-batches. It passes through Adam like any loss; a dose is defined for
    the decoupled pull only (`linear_leaves`).

    Args:
      objective: of `{"adapter", "base"}` params.
      plan: theirs.
      weight: $\beta$, 0 or more.
    """
    if weight < 0:
        raise ValueError(f"the weight of the penalty is {weight}; it is 0 or more")

    def run(params: PyTree, model_state: PyTree, batch: Batch, key: Array | None):
        loss, aux = objective(params, model_state, batch, key)
        penalty = change_penalty(params, plan)
        weighed = Loss(penalty * loss.weight, loss.weight)
        total = Loss(loss.sum + weight * weighed.sum, loss.weight)
        return total, Aux({**aux.metrics, "change_penalty": weighed}, aux.model_state)

    return run


def linear_leaves(params: PyTree, plan: Plan) -> list[str]:
    r"""Return the paths of leaves in which an adapter's change is linear, zero at the start.

    A decoupled pull of such a leaf to its start, $B \leftarrow B - \eta\lambda B$, takes the same
    share off the change of the weights, $A B \leftarrow (1 - \eta\lambda) A B$: it is the pull of
    L2-SP on the whole kernel, and its dose means the same, exactly. (Of DoRA, whose lengths divide
    by what B changes, it is a guide.) Anchor these and no other leaves: `anchor_of(params,
    trainable, new=<every other leaf without a pretrained value>)`.

    >>> from sftjax.adapters import lora, plan_adapter
    >>> base = {"q": {"kernel": jnp.zeros((3, 2))}}
    >>> plan = plan_adapter(base, lora(r=1))
    >>> linear_leaves(with_adapter(base, plan, jax.random.key(0)), plan)
    ['adapter/q/lora_b']
    """
    return [
        f"adapter/{site.path}/{name}" if site.path else f"adapter/{name}"
        for site, kind in plan.sites
        for name in kind.linear
        if kind.starts_at_base and name in tree_at(params["adapter"], site.path)
    ]


def held_leaves(params: PyTree, plan: Plan) -> list[str]:
    r"""Return the paths of leaves whose decoupled pull to their start pulls the change back.

    Those of `linear_leaves`, exactly; and both factors of a LoRA that starts elsewhere (PiSSA,
    OLoRA), whose change is

    $$ A B - A_0 B_0 = (A - A_0) B_0 + A_0 (B - B_0) + (A - A_0)(B - B_0) $$

    so that a pull which leaves the share c of both differences leaves c of the first two terms and
    $c^2$ of the third: the dose of L2-SP, to first order in how far the factors have moved. (The
    exact penalty, on the product, is `anchored_change`.) Prompts and prefixes have none.

    >>> from sftjax.adapters import lora, plan_adapter
    >>> base = {"q": {"kernel": jnp.eye(2)}}
    >>> plan = plan_adapter(base, lora(r=1, init_lora_weights="pissa"))
    >>> held_leaves(with_adapter(base, plan, jax.random.key(0)), plan)
    ['adapter/q/lora_a', 'adapter/q/lora_b']
    """
    residual = [site.path for site, kind in plan.sites if not kind.starts_at_base]
    leaves = flatten({"adapter": params["adapter"]})
    inside = [
        path for path in leaves if path.removeprefix("adapter/").rpartition("/")[0] in residual
    ]
    return [*linear_leaves(params, plan), *inside]


def base_outputs(apply: Apply, plan: Plan) -> Apply:
    """Return what the model gave before training, from the very weights that are trained.

    The adapter at scale zero is the base: a teacher that costs no second copy of the weights. For
    kinds that start elsewhere it is the base with the adapter as it started.

    Args:
      apply: `(params, batch, key=None) -> output`, of the unadapted params.
      plan: where adapters sit.

    Returns:
      The same of `{"adapter", "base"}` params; no gradient flows into it.
    """
    starts_elsewhere = not all(kind.starts_at_base for kind in plan.kinds)

    def run(params: PyTree, batch: Batch, key: Array | None = None) -> Any:
        still = jax.lax.stop_gradient(params)
        if starts_elsewhere:
            beside = side_branch(apply, plan, partly=True)
            return beside({**still, "adapter": still["initial"]}, batch, key)
        return on_quantized(apply)(still["base"], batch, key)

    return run


def reference_from_base(
    objective: Objective, outputs: Callable[[PyTree, Batch], Any], name: str = REFERENCE_LOGITS
) -> Objective:
    r"""Return the objective of batches that hold, beside their own entries, the base's outputs.

    With `distill_logits` this is a KL penalty to the pretrained model for the price of a forward
    pass and no memory: `reference_from_base(distill_logits(task, apply, 1.0), base_outputs(model.
    apply, plan))`. A head that is new says nothing before training: distill features then.

    Args:
      objective: that reads `name` in its batch, such as those of `distill_logits`.
      outputs: from `base_outputs`.
      name: the entry.
    """

    def run(params: PyTree, model_state: PyTree, batch: Batch, key: Array | None):
        reference = jax.lax.stop_gradient(outputs(params, batch))
        return objective(params, model_state, {**batch, name: reference}, key)

    return run
