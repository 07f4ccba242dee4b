r"""Sharpness-aware minimization: take the gradient where the loss nearby is worst.

`optax.contrib.sam` (0.2.8) is not used. Its `update` takes no extra argument but `grad_fn`, so it
neither accepts the anchor and the importance nor hands them to the optimizer inside, and its
`normalize` divides by a norm that may be 0. Where both apply the updates are equal.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sftjax.core import PyTree


def sharpness_aware(
    tx: optax.GradientTransformation, rho: float = 0.05
) -> optax.GradientTransformationExtraArgs:
    r"""Give an optimizer the gradient at the worst point of a small ball instead of at its centre.

    $$ \tilde g = \nabla L\left( w + \rho \frac{g}{\|g\|} \right) $$

    with the norm over the trainable leaves together. The optimizer inside updates $w$ itself. Every
    update costs a second gradient, of the same batch with the same key; model state (statistics)
    comes from the first pass alone. A zero gradient stays where it is.

    Args:
      tx: the optimizer inside: everything, the anchor's transforms and clipping included. Its extra
        argument `grad` is $\tilde g$.
      rho: $\rho$, the radius, in the units of the weights; .05 is the paper's.

    Returns:
      A transform whose `update` takes the extra argument `grad_fn`, `(trainable, i) -> gradient`,
      as `train.make_step` gives it, and hands all others on. Its state is that of `tx`.

    Raises:
      ValueError: if the radius is negative or not finite; in `update`, without `grad_fn`.

    References:
      Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, 2021,
      arXiv:2010.01412

    >>> tx = sharpness_aware(optax.sgd(1.0), rho=0.5)
    >>> w, grad_fn = {"a": jnp.array(2.0)}, jax.grad(lambda w, i: w["a"] ** 2)
    >>> updates, _ = tx.update(grad_fn(w, 0), tx.init(w), w, grad_fn=grad_fn)
    >>> float(updates["a"])  # minus the gradient at 2.5
    -5.0
    """
    if isinstance(rho, int | float) and not 0.0 <= rho < float("inf"):
        raise ValueError(f"rho is {rho}; the radius is a finite number >= 0")
    inner = optax.with_extra_args_support(tx)

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        grad_fn: Callable[[PyTree, int], PyTree] | None = None,
        **others: object,
    ) -> tuple[PyTree, PyTree]:
        if params is None or grad_fn is None:
            raise ValueError(
                "sharpness_aware needs the params and grad_fn: "
                "tx.update(gradient, state, params, grad_fn=...), as train.make_step calls it"
            )
        norm = optax.tree.norm(updates)
        scale = rho / jnp.where(norm > 0, norm, 1.0)
        worst = jax.tree.map(lambda value, g: value + scale * g, params, updates)
        sharp = grad_fn(worst, 0)
        return inner.update(sharp, state, params, **{**others, "grad": sharp, "grad_fn": grad_fn})

    return optax.GradientTransformationExtraArgs(inner.init, update)
