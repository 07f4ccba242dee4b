"""Mixtures of tuned models by name: uniform, greedy, wise:A, add:S, negate:S, ties:K."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sftjax.anchor import (
    GreedySoup,
    add_task_vectors,
    greedy_soup,
    interpolate,
    task_vector,
    ties,
    uniform_soup,
    wise_ft,
)
from sftjax.core import PyTree, combine, flatten, map_with_path

TITLES = {
    "uniform": "uniform soup",
    "greedy": "greedy soup",
    "wise": "WiSE-FT",
    "add": "task vectors added",
    "negate": "task vectors negated",
    "ties": "TIES-merging",
}
"""Name -> what a model card calls it."""

_NUMBERS = {"wise": "0.5", "add": "0.5", "negate": "0.5", "ties": "0.2"}
"""The names that need a number, with an example."""


class How(NamedTuple):
    """A way to mix."""

    name: str
    number: float = 1.0
    """Of `wise` the share of the way from the pretrained weights to the tuned ones, of `add` and
    `negate` the scale of the task vectors, of `ties` the fraction of each that is kept."""

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.name}:{self.number:g}" if self.name in _NUMBERS else self.name


class Mixed(NamedTuple):
    """A mixture."""

    params: PyTree
    soup: GreedySoup | None = None
    """How a greedy soup came about."""


def read_how(text: str, models: int) -> How:
    """Read a way to mix so many models.

    Raises:
      ValueError: if it is unknown, lacks its number, or does not fit the number of models.

    >>> read_how("wise:0.5", models=1)
    How(name='wise', number=0.5)
    """
    name, colon, number = text.partition(":")
    if name not in TITLES:
        raise ValueError(
            f"{text!r} is no way to merge; there are: "
            + ", ".join(f"{name}:{_NUMBERS[name]}" if name in _NUMBERS else name for name in TITLES)
        )
    if (name in _NUMBERS) != bool(colon):
        example = f"{name}:{_NUMBERS[name]}" if name in _NUMBERS else name
        raise ValueError(f"{text!r}: write {example!r}")
    try:
        value = float(number) if colon else 1.0
    except ValueError:
        value = -1.0
    top, above = {"wise": (1.0, 0.0), "ties": (1.0, 1e-12)}.get(name, (1e6, 0.0))
    if not above <= value <= top:
        span = {"wise": "from 0 to 1", "ties": "above 0, up to 1"}.get(name, "0 or more")
        raise ValueError(f"{text!r}: the number is {span}, as in {name}:{_NUMBERS[name]}")
    if models < 1 or (name == "wise" and models > 1):
        raise ValueError(
            f"{text!r} takes {'one model' if name == 'wise' else 'models'} beside the base, and "
            f"{models} are given" + ("; use uniform, or add" if models > 1 else "")
        )
    if name == "ties" and models < 2:
        raise ValueError(f"{text!r} settles what models disagree on, and one is given; use add:1")
    return How(name, value)


def mixed(
    how: How,
    base: PyTree,
    models: Sequence[PyTree],
    score: Callable[[PyTree], float] | None = None,
) -> Mixed:
    """Mix the models.

    To the last bit, `wise:0`, `add:0` and `negate:0` of one model are the base, `wise:1` and
    `add:1` of one model are that model, and the soup of copies is their original. A leaf that the
    base lacks is, in all of them, the mean of the models'.

    Args:
      how: as `read_how` gives it.
      base: the pretrained params, holes where a leaf has no pretrained value.
      models: tuned params, of one structure.
      score: of params, higher is better; only a greedy soup tastes.

    Raises:
      ValueError: if the trees differ, or a score is not finite.
    """
    if how.name == "uniform":
        return Mixed(uniform_soup(models))
    if how.name == "greedy":
        assert score is not None
        soup = greedy_soup(models, score)
        return Mixed(soup.params, soup)
    if how.name == "wise":
        ((_, params),) = wise_ft(base, models[0], [how.number])
        return Mixed(params)
    scale = -how.number if how.name == "negate" else how.number
    if how.name != "ties" and len(models) == 1:  # exact at both ends, where a difference rounds
        return Mixed(interpolate(base, models[0], scale))
    vectors = [task_vector(base, model) for model in models]
    if how.name == "ties":
        merged = add_task_vectors(base, [ties(vectors, how.number)], [1.0])
    else:
        merged = add_task_vectors(base, vectors, [scale] * len(vectors))
    known = set(flatten(base))
    fresh = [map_with_path(lambda p, leaf: None if p in known else leaf, m) for m in models]
    return Mixed(combine(merged, uniform_soup(fresh)))
