"""Staying near the pretrained model's outputs: terms that are added to any objective.

What the pretrained model says comes as a column of the batch (`train.with_reference` computes it in
the step, `train.with_columns` looks it up), so no objective holds a second set of weights.

A term and its objective that each call the model share its forward pass once compiled (XLA merges
equal computations) but not its backward pass. `with_outputs` runs the model once for all of them:

    apply = column("logits")
    objective = with_outputs(
        distill_logits(classification(apply), apply, weight=1.0),
        lambda params, batch, key: {"logits": model.apply(params, batch, key)},
    )
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from sftjax.core import Batch, Loss, Objective, PyTree
from sftjax.objectives.text import Apply

Counts = Callable[[Batch], Array]
"""`batch -> (B, ...)`, 1 where a position counts and 0 where it does not."""

Term = Callable[[PyTree, Batch, Array | None], Loss]
"""`(params, batch, key) -> Loss`: something to add to an objective."""


def distill_logits(
    objective: Objective,
    logits: Apply,
    weight: ArrayLike,
    temperature: float = 1.0,
    *,
    counts: Counts | None = None,
    dropout: bool = False,
    reference: str = "reference_logits",
    name: str = "distill",
) -> Objective:
    r"""Add the divergence from the pretrained model's predictions (learning without forgetting).

    $$ L + c\, T^2\, \mathrm{KL}\left(p_0^{(T)} \,\|\, p^{(T)}\right), \qquad
       p^{(T)} = \mathrm{softmax}(z / T) $$

    The pretrained model is the target. The factor $T^2$ keeps the gradient's size as the
    temperature rises: for large $T$ it tends to $(z - z_0) / K$ of the centred logits.

    Args:
      objective: any objective.
      logits: `(params, batch, key) -> (B, K)`, of the head that the reference belongs to.
      weight: $c$, of the mean term beside the mean loss; `anchor.distillation_weight_of` makes
        it of a dose.
      temperature: $T > 0$.
      counts: which positions count, where the logits are (B, T, K).
      dropout: whether `logits` is given the step's key.
      reference: the column of the pretrained logits.
      name: the term's metric, before the weight.

    Returns:
      An objective with the metric `name`. The term's mean is over the rows with `valid` (or what
      `counts` says), rescaled to the loss's weight (see `with_term`).

    Raises:
      ValueError: for a weight or temperature out of range; when tracing, if the column is missing
        or of another shape.

    References:
      Li and Hoiem, *Learning without Forgetting*, 2016, arXiv:1606.09282

    >>> def objective(params, state, batch, key):
    ...     return Loss(0.0, 2.0), Aux({})
    >>> from sftjax.core import Aux
    >>> batch = {"x": jnp.eye(2), "reference_logits": jnp.eye(2)}
    >>> near = distill_logits(objective, lambda params, batch, key: batch["x"] @ params, 1.0)
    >>> float(near(jnp.eye(2), {}, batch, None)[0].sum)
    0.0
    """
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be finite and above 0")

    def term(params: PyTree, batch: Batch, key: Array | None) -> Loss:
        found = wide(logits(params, batch, key if dropout else None))
        target = wide(reference_column(batch, reference, found.shape))
        log_p = jax.nn.log_softmax(found / temperature)
        log_p0 = jax.nn.log_softmax(target / temperature)
        kl = jnp.sum(jnp.exp(log_p0) * (log_p0 - log_p), -1)
        counted = positions(batch, kl.shape, counts)
        return Loss(temperature**2 * jnp.sum(counted * kl), jnp.sum(counted))

    return with_term(objective, term, weight, name)


def distill_features(
    objective: Objective,
    features: Apply,
    weight: ArrayLike,
    channel_weights: ArrayLike | None = None,
    *,
    counts: Counts | None = None,
    dropout: bool = False,
    reference: str = "reference_features",
    name: str = "distill",
) -> Objective:
    r"""Add the squared distance from the pretrained model's features (DELTA).

    $$ L + c \sum_j W_j\, \| f_j - f_j^0 \|^2 $$

    over channels $j$. Squares, not norms: at the pretrained weights value and gradient are 0.

    Args:
      objective: any objective.
      features: `(params, batch, key) -> (B, ..., C)`; of positions in between, the mean is taken.
      weight: $c$, of the mean term beside the mean loss.
      channel_weights: (C,), $W$, summing to 1, as `channel_importance` gives them; `None` is
        $1 / C$.
      counts: which positions count (B, ...); must be said where the features are of padded tokens.
      dropout: whether `features` is given the step's key.
      reference: the column of the pretrained features.
      name: the term's metric, before the weight.

    Returns:
      An objective with the metric `name`. The term's mean is over the rows with `valid`, rescaled
      to the loss's weight (see `with_term`).

    Raises:
      ValueError: for a weight out of range; when tracing, if the column is missing or of another
        shape, the channel weights do not fit, or it is unclear which tokens count.

    References:
      Li et al., *DELTA: Deep Learning Transfer using Feature Map with Attention*, 2019,
      arXiv:1901.09229

    >>> def objective(params, state, batch, key):
    ...     return Loss(0.0, 1.0), Aux({})
    >>> from sftjax.core import Aux
    >>> near = distill_features(objective, lambda params, batch, key: params * batch["x"], 0.5)
    >>> batch = {"x": jnp.ones((1, 2)), "reference_features": jnp.ones((1, 2))}
    >>> float(near(3.0, {}, batch, None)[0].sum)
    2.0
    """

    def term(params: PyTree, batch: Batch, key: Array | None) -> Loss:
        found = wide(features(params, batch, key if dropout else None))
        target = wide(reference_column(batch, reference, found.shape))
        channels = found.shape[-1]
        share = 1.0 / channels if channel_weights is None else jnp.asarray(channel_weights)
        if channel_weights is not None and jnp.shape(share) != (channels,):
            raise ValueError(
                f"channel_weights has shape {jnp.shape(share)}; the features have {channels} "
                "channels, their last axis"
            )
        distance = jnp.sum(share * jnp.square(found - target), -1)
        rows = positions(batch, distance.shape[:1], None)
        if distance.ndim > 1:
            inner = _inner(batch, distance.shape, counts)
            axes = tuple(range(1, distance.ndim))
            among = jnp.maximum(jnp.sum(inner, axes), 1.0)
            distance = jnp.sum(inner * distance, axes) / among
        return Loss(jnp.sum(rows * distance), jnp.sum(rows))

    return with_term(objective, term, weight, name)


def channel_importance(loss_of_features: Callable[[Array], Array | Loss], features: Array) -> Array:
    r"""Return how much each channel matters, $W = \mathrm{softmax}_j (L_{-j} - L)$.

    $L_{-j}$ is the loss with channel $j$ set to zero, all else as it was.

    Args:
      loss_of_features: the rest of the pretrained model and its loss on the target task,
        `features -> mean loss` (a scalar, or a `Loss`).
      features: (..., C), of the rows to judge by.

    Returns:
      (C,), float32, summing to 1. One forward pass of the rest a channel, one after another.

    >>> weights = channel_importance(lambda f: jnp.sum((f - 1.0)[:, 0] ** 2), jnp.ones((2, 3)))
    >>> bool(weights[0] > weights[1]), bool(weights[1] == weights[2])
    (True, True)
    """

    def mean(features: Array) -> Array:
        loss = loss_of_features(features)
        return loss.mean if isinstance(loss, Loss) else jnp.asarray(loss, jnp.float32)

    channels = jnp.arange(features.shape[-1])
    without = jax.lax.map(lambda j: mean(jnp.where(channels == j, 0.0, features)), channels)
    return jax.nn.softmax(without - mean(features))


def with_outputs(
    objective: Objective,
    outputs: Callable[[PyTree, Batch, Array | None], Mapping[str, Array]],
    *,
    dropout: bool = False,
) -> Objective:
    """Run the model once, and hand its outputs to an objective as columns of the batch.

    Args:
      objective: reads the columns, `classification(column("logits"))` with its terms around it.
      outputs: `(params, batch, key) -> {name: output}`.
      dropout: whether `outputs` is given the step's key.

    Raises:
      ValueError: when tracing, if the batch has a column of such a name already.

    >>> from sftjax.objectives.text import regression
    >>> objective = with_outputs(
    ...     regression(column("y")), lambda params, batch, key: {"y": params * batch["x"]})
    >>> batch = {"x": jnp.ones((2, 1)), "labels": jnp.zeros(2)}
    >>> float(objective(3.0, {}, batch, None)[0].mean)
    9.0
    """

    def shared(params: PyTree, model_state: PyTree, batch: Batch, key: Array | None):
        columns = outputs(params, batch, key if dropout else None)
        if clash := sorted(columns.keys() & batch.keys()):
            raise ValueError(
                f"the batch has a column {clash[0]!r} already; give the output another name"
            )
        return objective(params, model_state, {**batch, **columns}, key)

    return shared


def column(name: str) -> Apply:
    """Return the `Apply` that reads a column of the batch, where `with_outputs` put it.

    >>> column("logits")({}, {"logits": jnp.ones(1)}, None)
    Array([1.], dtype=float32)
    """
    return lambda params, batch, key: batch[name]


def with_term(objective: Objective, term: Term, weight: ArrayLike, name: str) -> Objective:
    r"""Return an objective plus a weighted term: mean loss $+\ c$ times mean term.

    The step divides once, by the loss's weight $N$; a term of weight $M$ is added to the loss's sum
    as $c\,S N / M$. Where both count the same rows that is $c\,S$, exact however the rows are cut
    into micro-batches; where they count different things (class weights, tokens) each micro-batch
    weighs its own mean by its $N$.

    Args:
      objective: any objective.
      term: `(params, batch, key) -> Loss`.
      weight: $c \ge 0$.
      name: the metric that reports the term, before the weight.

    Raises:
      ValueError: if the weight is negative or not finite, or the objective has such a metric.

    >>> from sftjax.core import Aux
    >>> objective = with_term(
    ...     lambda *_: (Loss(4.0, 2.0), Aux({})), lambda *_: Loss(3.0, 1.0), 0.5, "extra")
    >>> float(objective({}, {}, {}, None)[0].mean)  # 4 / 2 + 0.5 * 3 / 1
    3.5
    """
    if isinstance(weight, (int, float)) and not 0.0 <= weight < math.inf:
        raise ValueError(f"the weight of {name!r} is {weight}; a weight is a finite number >= 0")

    def extended(params: PyTree, model_state: PyTree, batch: Batch, key: Array | None):
        loss, aux = objective(params, model_state, batch, key)
        if name in aux.metrics:
            raise ValueError(f"two terms report the metric {name!r}; give one of them another name")
        extra = term(params, batch, key)
        counted = jnp.asarray(extra.weight, jnp.float32)
        ratio = jnp.asarray(loss.weight, jnp.float32) / jnp.where(counted > 0, counted, 1.0)
        total = Loss(loss.sum + weight * extra.sum * ratio, loss.weight)
        return total, aux._replace(metrics={**aux.metrics, name: extra})

    return extended


def positions(batch: Batch, shape: tuple[int, ...], counts: Counts | None) -> Array:
    """Return 1 where a position of `shape` (B, ...) counts, 0 where not: `counts` times `valid`.

    Raises:
      ValueError: if positions within rows are not told apart, or `counts` does not fit.

    >>> positions({"valid": jnp.array([1.0, 0.0])}, (2,), None)
    Array([1., 0.], dtype=float32)
    """
    if counts is None and len(shape) != 1:
        raise ValueError(
            f"outputs of shape {(*shape, '...')} have positions within a row; say which of them "
            "count, for example counts=lambda batch: batch['labels'] != -100"
        )
    inside = jnp.ones(shape) if counts is None else jnp.asarray(counts(batch), jnp.float32)
    if inside.shape != shape:
        raise ValueError(f"counts gives shape {inside.shape}; the positions have shape {shape}")
    if "valid" in batch:
        valid = jnp.asarray(batch["valid"], jnp.float32)
        inside = inside * valid.reshape(-1, *[1] * (len(shape) - 1))
    return inside


def reference_column(batch: Batch, name: str, shape: tuple[int, ...]) -> Array:
    """Return a column of the pretrained model's outputs, after checking that it is there and fits.

    >>> reference_column({"reference": jnp.ones((2, 3))}, "reference", (2, 3)).shape
    (2, 3)
    """
    if name not in batch:
        raise ValueError(
            f"the batch has no column {name!r} (it has {', '.join(batch)}): wrap the step in "
            "train.with_reference, or the batches in train.with_columns"
        )
    column = jax.lax.stop_gradient(jnp.asarray(batch[name]))
    if column.shape != shape:
        raise ValueError(
            f"{name!r} has shape {column.shape} and the model's output {shape}; the reference must "
            "come from the same layer (and the same head) of the pretrained model"
        )
    return column


def _inner(batch: Batch, shape: tuple[int, ...], counts: Counts | None) -> Array:
    if counts is not None:
        return positions({}, shape, lambda _: counts(batch))
    mask = batch.get("attention_mask")
    if mask is not None and jnp.shape(mask) == shape:
        raise ValueError(
            f"the features are of tokens {shape}, some of them padding; say which count with "
            "counts=lambda batch: batch['attention_mask']"
        )
    return jnp.ones(shape)


def wide(outputs: Array) -> Array:
    """Return a model's outputs in float32, or wider if they are.

    >>> wide(jnp.ones(1, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
