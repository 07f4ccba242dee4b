"""Predictions that do not change when the embeddings do, or the weights: R3F and SMART.

The model comes in two pieces, `embed(params, batch) -> h` and `rest(params, h, batch, key) ->
logits`, since the noise stands between them. Without a key (evaluation) nothing is added.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import Batch, Loss, Objective, PyTree, holes, partition
from sftjax.objectives.distill import Counts, positions, wide, with_term
from sftjax.objectives.text import Apply

Embed = Callable[[PyTree, Batch], Array]
"""`(params, batch) -> (B, ..., D)`, the embeddings that noise is added to."""

Rest = Callable[[PyTree, Array, Batch, Array | None], Array]
"""`(params, embeddings, batch, key) -> (B, ..., K)` logits, or predictions of a regression."""

Distance = Literal["kl", "squared"]

_NOISE = 0x4E01
"""Folded into the step's key: dropout draws from the key itself."""


def symmetric_kl(logits: Array, others: Array) -> Array:
    r"""Return $\mathrm{KL}(p \| q) + \mathrm{KL}(q \| p) = \sum (p - q) (\log p - \log q)$.

    In this form each summand is the product of two small numbers of one sign: never negative, 0
    where both agree, and good to a few percent in float32 where they differ by 1e-5, as here.

    Args:
      logits: (..., K), of $p$.
      others: (..., K), of $q$.

    Returns:
      (...), float32.

    >>> float(symmetric_kl(jnp.array([0.0, 1.0]), jnp.array([5.0, 6.0])))
    0.0
    """
    log_p = jax.nn.log_softmax(wide(logits))
    log_q = jax.nn.log_softmax(wide(others))
    return jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), -1)


def squared_difference(predictions: Array, others: Array) -> Array:
    r"""Return $\| y - y' \|^2$ over the last axis, in float32; for regressions.

    >>> float(squared_difference(jnp.array([3.0]), jnp.array([1.0])))
    4.0
    """
    return jnp.sum(jnp.square(wide(predictions) - wide(others)), -1)


DISTANCES = {"kl": symmetric_kl, "squared": squared_difference}


def r3f(
    objective: Objective,
    embed: Embed,
    rest: Rest,
    weight: ArrayLike = 1.0,
    *,
    noise: Literal["uniform", "normal"] = "uniform",
    scale: float = 1e-5,
    distance: Distance = "kl",
    logits: Apply | None = None,
    counts: Counts | None = None,
    dropout: bool = False,
    name: str = "r3f",
) -> Objective:
    r"""Add the distance between predictions with and without noise on the embeddings.

    $$ L + c\, D\left(g(h), g(\bar h + z)\right), \qquad
       z \sim U(-\epsilon, \epsilon) \text{ or } N(0, \epsilon^2) $$

    with $g$ the rest of the model, $\bar h$ the embeddings without their gradient, and $D$ the
    symmetric divergence. Dropout, if any, is the same in both, so that a model that does not read
    its embeddings costs exactly 0.

    Args:
      objective: any objective.
      embed: `(params, batch) -> h (B, ..., D)`.
      rest: `(params, h, batch, key) -> (B, K)`.
      weight: $c$, of the mean term beside the mean loss.
      noise: which noise; none falls on positions that the batch's `attention_mask` leaves out.
      scale: $\epsilon$.
      distance: `"kl"`, or `"squared"` for a regression.
      logits: where the clean logits come from, if not from calling both pieces:
        `column("logits")` under `with_outputs` saves their second backward pass.
      counts: which positions count, where the logits are (B, T, K).
      dropout: whether `rest` is given the step's key.
      name: the term's metric, before the weight.

    Returns:
      An objective with the metric `name`, over the rows with `valid` (see `with_term`).

    Raises:
      ValueError: for a number or word out of range; when tracing, if the embeddings are of a dtype
        that rounds such noise away.

    References:
      Aghajanyan et al., *Better Fine-Tuning by Reducing Representational Collapse*, 2020,
      arXiv:2008.03156

    >>> from sftjax.objectives.text import classification
    >>> embed, rest = lambda w, batch: batch["x"] * w, lambda w, h, batch, key: h
    >>> smooth = r3f(classification(lambda w, batch, key: batch["x"] * w), embed, rest)
    >>> batch = {"x": jnp.eye(2), "labels": jnp.array([0, 1])}
    >>> float(smooth(1.0, {}, batch, jax.random.key(0))[1].metrics["r3f"].mean) < 1e-8
    True
    """
    if noise not in ("uniform", "normal"):
        raise ValueError(f"noise {noise!r} is unknown; there are 'uniform' and 'normal'")
    _check(distance, scale=scale)
    clean_of = logits or _whole(embed, rest)

    def term(params: PyTree, batch: Batch, key: Array | None) -> Loss:
        assert key is not None
        inner = key if dropout else None
        still = jax.lax.stop_gradient(embed(params, batch))
        z = _drawn(noise, jax.random.fold_in(key, _NOISE), still, batch, scale)
        apart = DISTANCES[distance](
            clean_of(params, batch, inner), rest(params, still + z, batch, inner)
        )
        counted = positions(batch, apart.shape, counts)
        return Loss(jnp.sum(counted * apart), jnp.sum(counted))

    return _while_training(objective, with_term(objective, term, weight, name))


def smart(
    objective: Objective,
    embed: Embed,
    rest: Rest,
    weight: ArrayLike = 1.0,
    *,
    step_size: float = 1e-3,
    sigma: float = 1e-5,
    epsilon: float = 1e-6,
    distance: Distance = "kl",
    logits: Apply | None = None,
    counts: Counts | None = None,
    dropout: bool = False,
    name: str = "smart",
) -> Objective:
    r"""Add the distance between predictions with and without the worst small change of embeddings.

    $$ L + c\, D\left(g(h), g(\bar h + z)\right), \qquad
       z = \eta \frac{v}{\|v\|_\infty + \epsilon}, \quad
       v = \nabla_u D\left(g(h), g(\bar h + u)\right) \text{ at } u \sim N(0, \sigma^2) $$

    One step of ascent, started off the exact minimum $u = 0$ by the noise, and as long as $\eta$ in
    the largest coordinate of each position. Two forward passes and two backward passes are added.
    SMART's second half, the proximal term, is `bregman`; `bregman(smart(...), ...)` is both.

    Args:
      objective: any objective.
      embed: `(params, batch) -> h (B, ..., D)`.
      rest: `(params, h, batch, key) -> (B, K)`.
      weight: $c$, of the mean term beside the mean loss.
      step_size: $\eta$.
      sigma: $\sigma$. At 1e-5 the direction carries rounding of about a percent in float32, and
        more where the model is certain; at 1e-3 a hundredth of that.
      epsilon: $\epsilon$; where the gradient is smaller than this, the change shrinks with it. The
        gradient is about `sigma` times the curvature, so 1e-6 is felt where the model is certain.
      distance: `"kl"`, or `"squared"` for a regression.
      logits: as in `r3f`.
      counts: which positions count, where the logits are (B, T, K).
      dropout: whether `rest` is given the step's key, the same in all passes.
      name: the term's metric, before the weight.

    Returns:
      An objective with the metric `name`, over the rows with `valid` (see `with_term`).

    Raises:
      ValueError: as `r3f`.

    References:
      Jiang et al., *SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models
      through Principled Regularized Optimization*, 2020, arXiv:1911.03437

    >>> from sftjax.objectives.text import classification
    >>> embed, rest = lambda w, batch: batch["x"] * w, lambda w, h, batch, key: h
    >>> smooth = smart(classification(lambda w, batch, key: batch["x"] * w), embed, rest)
    >>> batch = {"x": jnp.eye(2), "labels": jnp.array([0, 1])}
    >>> float(smooth(1.0, {}, batch, jax.random.key(0))[1].metrics["smart"].mean) < 1e-5
    True
    """
    _check(distance, step_size=step_size, sigma=sigma, epsilon=epsilon)
    clean_of, apart_of = logits or _whole(embed, rest), DISTANCES[distance]

    def term(params: PyTree, batch: Batch, key: Array | None) -> Loss:
        assert key is not None
        inner = key if dropout else None
        still, frozen = jax.lax.stop_gradient((embed(params, batch), params))
        clean = clean_of(params, batch, inner)
        target = jax.lax.stop_gradient(clean)

        def harm(u: Array) -> Array:
            return jnp.sum(apart_of(target, rest(frozen, still + u, batch, inner)))

        start = _drawn("normal", jax.random.fold_in(key, _NOISE), still, batch, sigma)
        ascent = jax.grad(harm)(start)
        largest = jnp.max(jnp.abs(ascent), -1, keepdims=True)
        z = jax.lax.stop_gradient(step_size * ascent / (largest + epsilon))
        apart = apart_of(clean, rest(params, still + z, batch, inner))
        counted = positions(batch, apart.shape, counts)
        return Loss(jnp.sum(counted * apart), jnp.sum(counted))

    return _while_training(objective, with_term(objective, term, weight, name))


def bregman(
    objective: Objective,
    apply: Apply,
    weight: ArrayLike = 1.0,
    *,
    decay: float = 0.99,
    distance: Distance = "kl",
    logits: Apply | None = None,
    counts: Counts | None = None,
    dropout: bool = False,
    name: str = "proximal",
) -> Objective:
    r"""Add the distance from the predictions of a slow copy of the weights (SMART's proximal term).

    $$ \bar w \leftarrow \beta \bar w + (1 - \beta) w, \qquad
       L + c\, D\left(f(x; w), f(x; \bar w)\right) $$

    The copy lives in `model_state["slow"]`, which the objective returns updated. It starts at the
    pretrained weights, where the term is 0: give `train.init` what `slow_copy` returns. With
    accumulation the copy follows once a micro-batch; give $\beta^{1/\text{accumulate}}$.

    Args:
      objective: any objective.
      apply: `(params, batch, key) -> (B, K)`, called with the slow weights (and with the current
        ones, unless `logits` says where theirs come from).
      weight: $c$, of the mean term beside the mean loss.
      decay: $\beta$ in [0, 1].
      distance: `"kl"`, or `"squared"` for a regression.
      logits: as in `r3f`.
      counts: which positions count, where the logits are (B, T, K).
      dropout: whether the current weights' `apply` is given the step's key; the slow ones never.
      name: the term's metric, before the weight.

    Raises:
      ValueError: for a number or word out of range; when tracing, if there is no slow copy.

    >>> from sftjax.objectives.text import regression
    >>> apply = lambda params, batch, key: params["w"] * batch["x"]
    >>> objective = bregman(regression(apply), apply, decay=0.5, distance="squared")
    >>> params, (slow, _) = {"w": jnp.array(3.0)}, slow_copy({"w": jnp.array(1.0)}, {"w": True})
    >>> batch = {"x": jnp.ones((1, 1)), "labels": jnp.array([3.0])}
    >>> loss, aux = objective(params, slow, batch, jax.random.key(0))
    >>> float(aux.model_state["slow"]["w"]), float(loss.mean)
    (2.0, 1.0)
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay}; the slow copy keeps a share in [0, 1] of itself")
    _check(distance)
    current = logits or apply

    def extended(params: PyTree, model_state: PyTree, batch: Batch, key: Array | None):
        if "slow" not in model_state:
            raise ValueError(
                "model_state has no 'slow' copy of the weights: give train.init the two trees of "
                "slow_copy(params, trainable) as model_state and held_state"
            )
        slow = jax.lax.stop_gradient(_follow(model_state["slow"], params, decay))
        behind = jax.tree.map(
            lambda value, now: now if value is None else value,
            slow,
            jax.lax.stop_gradient(params),
            is_leaf=holes,
        )

        def term(params: PyTree, batch: Batch, key: Array | None) -> Loss:
            there = jax.lax.stop_gradient(apply(behind, batch, None))
            apart = DISTANCES[distance](current(params, batch, key if dropout else None), there)
            counted = positions(batch, apart.shape, counts)
            return Loss(jnp.sum(counted * apart), jnp.sum(counted))

        whole = with_term(objective, term, weight, name)
        loss, aux = whole(params, model_state, batch, key)
        following = model_state if aux.model_state is None else aux.model_state
        return loss, aux._replace(model_state={**following, "slow": slow})

    return _while_training(objective, extended)


def slow_copy(params: PyTree, trainable: PyTree) -> tuple[PyTree, PyTree]:
    """Return `(model_state, held_state)` for `train.init`, with a slow copy of what moves.

    Args:
      params: the full pretrained params.
      trainable: bool tree of the same structure.

    >>> slow_copy({"trunk": jnp.ones(1), "head": jnp.ones(1)}, {"trunk": False, "head": True})
    ({'slow': {'head': Array([1.], dtype=float32), 'trunk': None}},
     {'slow': {'head': None, 'trunk': None}})
    """
    moving, _ = partition(params, trainable)
    slow = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), moving)
    return {"slow": slow}, {"slow": jax.tree.map(lambda _: None, slow, is_leaf=holes)}


def _follow(slow: PyTree, params: PyTree, decay: float) -> PyTree:
    return jax.tree.map(
        lambda value, now: (
            None if value is None else decay * value + (1.0 - decay) * now.astype(value.dtype)
        ),
        slow,
        params,
        is_leaf=holes,
    )


def _whole(embed: Embed, rest: Rest) -> Apply:
    return lambda params, batch, key: rest(params, embed(params, batch), batch, key)


def _while_training(objective: Objective, extended: Objective) -> Objective:
    """Return `extended`, and `objective` itself where there is no key."""

    def either(params: PyTree, model_state: PyTree, batch: Batch, key: Array | None):
        chosen = objective if key is None else extended
        return chosen(params, model_state, batch, key)

    return either


def _drawn(kind: str, key: Array, like: Array, batch: Batch, scale: float) -> Array:
    """Draw noise in the shape of the embeddings, none on padding."""
    if scale < float(jnp.finfo(like.dtype).eps):
        raise ValueError(
            f"noise of size {scale} is rounded away by embeddings in {like.dtype}; keep the "
            "embeddings in float32, or raise the noise"
        )
    if kind == "normal":
        drawn = jax.random.normal(key, like.shape, like.dtype)
    else:
        drawn = jax.random.uniform(key, like.shape, like.dtype, -1.0, 1.0)
    mask = batch.get("attention_mask")
    if mask is not None and jnp.shape(mask) == like.shape[:-1]:
        drawn = drawn * jnp.asarray(mask, like.dtype)[..., None]
    return scale * drawn


def _check(distance: str, **sizes: float) -> None:
    if distance not in DISTANCES:
        raise ValueError(f"distance {distance!r} is unknown; there are {', '.join(DISTANCES)}")
    for name, size in sizes.items():
        if not 0.0 < size < math.inf:
            raise ValueError(f"{name} is {size}; it must be finite and above 0")
