"""Where a model looks: Grad-CAM of any convolutional stage, and the rollout of attention."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def grad_cam(rest: Callable[[Array], Array], features: Array, classes: Array) -> Array:
    r"""Return Grad-CAM (Selvaraju et al. 2017) of a stage's map.

    $$ \mathrm{relu}\Big(\sum_d \alpha_d A_{\cdot\cdot d}\Big), \qquad
       \alpha_d = \frac{1}{HW} \sum_{hw} \frac{\partial z_c}{\partial A_{hwd}} $$

    Args:
      rest: from the map (N, H, W, D) to logits (N, C): the part of the model above the stage, each
        row on its own (statistics of a batch held still).
      features: (N, H, W, D), the map.
      classes: (N,), the class whose evidence is shown.

    Returns:
      (N, H, W) float32, not negative.

    >>> rest = lambda a: a.mean((1, 2)) @ jnp.array([[1.0], [0.0]])
    >>> features = jnp.array([[[[3.0, 9.0], [0.0, 9.0]]]])
    >>> grad_cam(rest, features, jnp.array([0])).tolist()
    [[[1.5, 0.0]]]
    """

    def evidence(values: Array) -> Array:
        logits = rest(values)
        return jnp.sum(jnp.take_along_axis(logits, classes[:, None], 1))

    slope = jax.grad(evidence)(features)
    weights = slope.astype(jnp.float32).mean((1, 2), keepdims=True)
    return jax.nn.relu(jnp.sum(weights * features.astype(jnp.float32), -1))


def attention_rollout(attentions: Array, *, skip: int = 1, residual: float = 0.5) -> Array:
    r"""Return how much of each patch reaches the class token (Abnar and Zuidema 2020).

    $$ R = \prod_l \big(r I + (1 - r) \bar A_l\big) $$

    with the heads' mean $\bar A_l$, later layers on the left; the class token's row is shown.

    Args:
      attentions: (L, N, heads, T, T), rows summing to 1; the first token is the class.
      skip: how many tokens at the front are no patches (1; 5 with four registers).
      residual: $r$, the share that the residual stream carries past attention.

    Returns:
      (N, T - skip) float32, each row summing to 1.

    >>> attention_rollout(jnp.full((2, 1, 1, 3, 3), 1 / 3)).round(4).tolist()
    [[0.5, 0.5]]
    """
    mean = attentions.astype(jnp.float32).mean(2)
    tokens = mean.shape[-1]
    layers = residual * jnp.eye(tokens) + (1 - residual) * mean

    def then(total: Array, layer: Array) -> tuple[Array, None]:
        return layer @ total, None

    start = jnp.broadcast_to(jnp.eye(tokens), layers.shape[1:])
    total, _ = jax.lax.scan(then, start, layers)
    shown = total[:, 0, skip:]
    return shown / jnp.sum(shown, -1, keepdims=True)


def as_grid(values: Array, size: tuple[int, int] | None = None) -> Array:
    """Lay (N, P) patches out as (N, H, W); a square unless the size is given.

    >>> as_grid(jnp.zeros((2, 9))).shape
    (2, 3, 3)
    """
    patches = values.shape[1]
    side = round(patches**0.5)
    height, width = (side, side) if size is None else size
    if height * width != patches:
        raise ValueError(
            f"{patches} patches are no {height} x {width} grid; give the size, (height, width) in "
            f"patches, whose product is {patches}"
        )
    return values.reshape(len(values), height, width)
