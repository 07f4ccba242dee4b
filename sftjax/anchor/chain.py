"""What all optimizers of this room share: clipping first; rates per leaf and the step size last."""

from collections.abc import Iterable

import jax
import optax

from sftjax.core import PyTree, flatten, holes


def chained(
    learning_rate: float | optax.Schedule,
    links: Iterable[optax.GradientTransformation | None],
    *,
    rates: PyTree | None = None,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Chain the links of an optimizer: clip, links, rates, $-\eta$.

    What stands before the moments among the links is coupled (part of the gradient), what stands
    after them is not.

    Args:
      learning_rate: $\eta$, or a schedule of it over updates.
      links: moments, pulls and decays in their order; `None` where one is left out.
      rates: a float for each trainable leaf (`Selection.rate`); `None` is 1 everywhere.
      max_grad_norm: clip the gradient's norm over the trainable leaves; `None` never clips.

    Returns:
      A transform whose `update` takes `anchor=` and whatever else the links read.

    >>> import jax.numpy as jnp
    >>> tx = chained(0.5, [None, optax.trace(0.9)], rates={"w": 2.0}, max_grad_norm=1.0)
    >>> g = {"w": jnp.full(1, 7.0)}
    >>> float(tx.update(g, tx.init(g), g)[0]["w"][0])
    -1.0
    """
    whole = [
        None if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm),
        *links,
        None if rates is None else scale_by_rates(rates),
        optax.scale_by_learning_rate(learning_rate),
    ]
    return optax.with_extra_args_support(optax.chain(*(link for link in whole if link is not None)))


def scale_by_rates(rates: PyTree) -> optax.GradientTransformation:
    """Multiply each update by the rate of its leaf; stands after Adam, where it is not undone.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_rates({"trunk": 0.5, "head": 1.0})
    >>> updates, _ = tx.update({"trunk": jnp.ones(1), "head": jnp.ones(1)}, tx.init({}))
    >>> float(updates["trunk"][0])
    0.5
    """
    if not flatten(rates):
        raise ValueError(
            "rates has no leaf; give the rate of each leaf that moves (`select(...).rate`), or "
            "rates=None for one rate"
        )

    def scale(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        return jax.tree.map(
            lambda update, rate: None if update is None else update * rate,
            updates,
            rates,
            is_leaf=holes,
        )

    return optax.stateless(scale)
