"""Model soups: one model from the weights of several runs that share their pretrained start.

A mean of weights is a model only if the runs stayed in one basin: the same pretrained weights and,
for a new head, the same start of the head (probe it once and begin every run from there; the soup
is then DiWA's). Models with running statistics need `recalibrate` afterwards.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sftjax.anchor.merging import check_alike
from sftjax.core import Batch, PyTree, combine, flatten, map_with_path


class Trial(NamedTuple):
    """One taste of the greedy soup."""

    model: int
    """Which of the models was stirred in."""
    score: float
    """Of the soup with it."""
    kept: bool
    """Whether it stayed."""


class GreedySoup(NamedTuple):
    """A soup, and how it came about."""

    params: PyTree
    """The mean of the chosen models."""
    chosen: tuple[int, ...]
    """Which models are in it, the best first."""
    history: tuple[Trial, ...]
    """The models in the order of their own scores, best first."""


def uniform_soup(models: Sequence[PyTree]) -> PyTree:
    r"""Return the mean of the models' weights, $\frac{1}{k} \sum_i w_i$.

    To the last bit, the order of the models makes no difference and copies of one model give that
    model: each entry's values are sorted and averaged in float32 (or wider), then cast back.

    Args:
      models: params of one structure. Leaves that are not floats must be equal in all.

    Raises:
      ValueError: if there is no model, a path, a shape or a dtype differs, or a leaf that has no
        mean (integers, booleans, PRNG keys) differs.

    References:
      Wortsman et al., *Model Soups*, 2022, arXiv:2203.05482;
      Ramé et al., *Diverse Weight Averaging for Out-of-Distribution Generalization*, 2022,
      arXiv:2205.09739

    >>> uniform_soup([{"w": jnp.array([1.0])}, {"w": jnp.array([4.0])}])
    {'w': Array([2.5], dtype=float32)}
    """
    if not models:
        raise ValueError("there is no model to make a soup of")
    for model in models[1:]:
        check_alike(models[0], model, same=True)

    def mean(path: str, *leaves: Array) -> Array:
        dtypes = {str(leaf.dtype) for leaf in leaves}
        if len(dtypes) > 1:
            raise ValueError(f"{path!r} has the dtypes {sorted(dtypes)}; cast the models to one")
        if jnp.issubdtype(leaves[0].dtype, jnp.floating):
            return _mean(leaves)
        if any(not np.array_equal(_plain(leaf), _plain(leaves[0])) for leaf in leaves):
            raise ValueError(
                f"{path!r} has dtype {leaves[0].dtype}, which has no mean, and differs between the "
                "models; a soup needs runs that share such leaves"
            )
        return leaves[0]

    return map_with_path(mean, *models)


def greedy_soup(models: Sequence[PyTree], score: Callable[[PyTree], float]) -> GreedySoup:
    """Stir in the models one by one, the best first, and keep each that does not harm.

    The soup's score is never below that of the best single model. Choose on held-out data that no
    later claim is about: the soup is fitted to it.

    Args:
      models: params of one structure.
      score: of params, on held-out data; higher is better. Called up to `2 k - 1` times.

    Returns:
      A `GreedySoup`. Models of equal score are tried in the order they came in.

    Raises:
      ValueError: as `uniform_soup` does, or if a score is not finite.

    References:
      Wortsman et al., *Model Soups*, 2022, arXiv:2203.05482

    >>> models = [{"w": jnp.array(w)} for w in (3.0, 1.0, 9.0)]
    >>> soup = greedy_soup(models, lambda params: -abs(float(params["w"]) - 2.0))
    >>> float(soup.params["w"]), soup.chosen
    (2.0, (0, 1))
    """

    def scored(params: PyTree, what: str) -> float:
        value = float(score(params))
        if not np.isfinite(value):
            raise ValueError(f"the score of {what} is {value}; a diverged run spoils the soup")
        return value

    if not models:
        raise ValueError("there is no model to make a soup of")
    for model in models[1:]:
        check_alike(models[0], model, same=True)
    alone = [scored(model, f"model {number}") for number, model in enumerate(models)]
    order = sorted(range(len(models)), key=lambda number: -alone[number])
    chosen, soup, best = [order[0]], models[order[0]], alone[order[0]]
    history = [Trial(order[0], best, True)]
    for number in order[1:]:
        tasted = uniform_soup([models[i] for i in [*chosen, number]])
        value = scored(tasted, f"the soup with model {number}")
        kept = value >= best
        history.append(Trial(number, value, kept))
        if kept:
            chosen, soup, best = [*chosen, number], tasted, value
    return GreedySoup(soup, tuple(chosen), tuple(history))


def recalibrate(
    apply: Callable[[PyTree, PyTree, Batch], PyTree],
    params: PyTree,
    model_state: PyTree,
    batches: Iterable[Batch],
) -> PyTree:
    r"""Measure running statistics anew for weights that were averaged or interpolated.

    The statistics of a mixture are not the mixture of the statistics: means shift between the
    models, and a variance mixed from theirs misses that. The old values are thrown away, and each
    statistic becomes the plain mean over the batches of what a batch shows.

    A running statistic moves by $s \leftarrow m s + (1 - m)\,\hat s$; the batch's own $\hat s$ is
    read from an update of $s = 0$ and the derivative $m$ with respect to $s$, so that neither the
    momentum nor a start has to be known. In float32 that costs a relative
    $10^{-7} / (1 - m)$; with a momentum of 0 in `apply` it is exact.

    Args:
      apply: `(params, model_state, batch) -> model_state`, a forward pass **in training mode**,
        without dropout.
      params: the averaged weights.
      model_state: float leaves are the statistics; others (counters) are kept.
      batches: of one shape and equal size, 100 or more of them for images.

    Returns:
      The new model state.

    Raises:
      ValueError: if there is no batch or no statistic, or a statistic did not move (the forward
        pass was in evaluation mode).

    >>> def apply(params, state, batch):
    ...     return {"mean": 0.9 * state["mean"] + 0.1 * jnp.mean(batch["x"] * params["w"])}
    >>> batches = [{"x": jnp.array([1.0, 3.0])}, {"x": jnp.array([3.0, 5.0])}]
    >>> state = recalibrate(apply, {"w": 2.0}, {"mean": jnp.array(77.0)}, batches)
    >>> round(float(state["mean"]), 4)
    6.0
    """
    moves = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating), model_state)
    statistics = jax.tree.map(lambda leaf, move: leaf if move else None, model_state, moves)
    kept = jax.tree.map(lambda leaf, move: None if move else leaf, model_state, moves)
    if not jax.tree.leaves(statistics):
        raise ValueError("the model state holds no float leaf: there is no statistic to measure")
    zeros = jax.tree.map(jnp.zeros_like, statistics)
    ones = jax.tree.map(jnp.ones_like, statistics)

    @jax.jit
    def measure(params: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
        def run(old: PyTree) -> PyTree:
            new = apply(params, combine(old, kept), batch)
            return jax.tree.map(lambda leaf, move: leaf if move else None, new, moves)

        fresh, momentum = jax.jvp(run, (zeros,), (ones,))
        return jax.tree.map(lambda new, m: new / (1 - m), fresh, momentum), momentum

    mean = None
    for number, batch in enumerate(batches, start=1):
        seen, momentum = measure(params, batch)
        if mean is None:
            _check_moved(momentum)
            mean = zeros
        mean = jax.tree.map(lambda old, new, n=number: old + (new - old) / n, mean, seen)
    if mean is None:
        raise ValueError("there is no batch to measure the statistics on")
    return combine(mean, kept)


def _check_moved(momentum: PyTree) -> None:
    for path, value in flatten(momentum).items():
        if not bool(jnp.all((value >= 0) & (value < 1))):
            raise ValueError(
                f"the statistic {path!r} did not move as a running average does (its momentum "
                f"reads {float(jnp.max(value)):.3g}); apply must run in training mode "
                "(use_running_average=False) and return the updated model state"
            )


@jax.jit
def _mean(leaves: tuple[Array, ...]) -> Array:
    dtype = jnp.promote_types(leaves[0].dtype, jnp.float32)
    values = jnp.sort(jnp.stack([leaf.astype(dtype) for leaf in leaves]), axis=0)
    mean = values[0]
    for number in range(1, len(leaves)):
        mean = mean + (values[number] - mean) / (number + 1)
    # Copies of -0.0 are -0.0; a running mean of them is 0.0.
    signs = jnp.signbit(values)
    copies = jnp.all((values == values[0]) & (signs == signs[0]), axis=0)
    return jnp.where(copies, values[0], mean).astype(leaves[0].dtype)


def _plain(leaf: Array) -> np.ndarray:
    """Return an array that numpy can compare: PRNG keys as their words."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    return np.asarray(leaf)
