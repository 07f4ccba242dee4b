"""Which runs a sweep makes: a grid of named settings, from Python or from the command line."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import product

import jax.numpy as jnp
import numpy as np
from jax import Array

from sftjax.core import nearest

Run = dict[str, float]
"""The setting of one run: name -> number, such as `{"dose": 1.0, "seed": 0}`."""

AXES = ("dose", "strength", "learning_rate", "importance_weight")
"""What a grid varies beside the seed, unless told of more."""

_POSITIVE = ("learning_rate",)
_FORMS = "a number (dose=1), a list (dose=0|1|4) or start:stop:count (dose=0:4:5)"


def grid(
    seeds: int | Sequence[int] = 1,
    *,
    known: Collection[str] = AXES,
    **axes: float | Sequence[float],
) -> list[Run]:
    """Return every combination of the values given, one setting a run.

    Args:
      seeds: how many (`8` is 0 to 7), or which ones.
      known: the names that `axes` may have.
      **axes: the values of each axis, or its only value.

    Returns:
      The runs, the axes in the order given and the last of them varying fastest; the seed varies
      faster still, so the seeds of one setting stand together.

    Raises:
      ValueError: if an axis is unknown, empty, repeats a value or leaves its range, or if both a
        dose and a strength are given.

    >>> grid(seeds=2, dose=(0, 4))
    [{'dose': 0.0, 'seed': 0}, {'dose': 0.0, 'seed': 1}, {'dose': 4.0, 'seed': 0},
     {'dose': 4.0, 'seed': 1}]
    """
    for name in axes:
        if name not in known:
            raise ValueError(_unknown(name, known))
    if "dose" in axes and "strength" in axes:
        raise ValueError("a grid varies the dose or the strength, not both: one gives the other")
    columns = {name: _values(name, value) for name, value in axes.items()}
    columns["seed"] = _seeds(seeds)
    for name, values in columns.items():
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise ValueError(
                f"{name} holds {repeated[0]:g} {values.count(repeated[0])} times; two runs would "
                "be the same, so give each value once"
            )
    return [dict(zip(columns, values, strict=True)) for values in product(*columns.values())]


def parse_grid(text: str, *, known: Collection[str] = AXES) -> list[Run]:
    """Return the grid that a text describes: `name=values` parts with commas in between.

    Values are a number (`dose=1`), a list (`dose=0|1|4`), or `start:stop:count`, evenly spaced with
    both ends (`dose=0:4:5`). `seeds=8` is the seeds 0 to 7, `seeds=3|5` those two.

    Raises:
      ValueError: if a part cannot be read (it is quoted), a name comes twice, or as for `grid`.

    >>> [name_of(run) for run in parse_grid("seeds=1,dose=0:4:3")]
    ['dose=0 seed=0', 'dose=2 seed=0', 'dose=4 seed=0']
    """
    axes: dict[str, float | list[float]] = {}
    for part in text.split(","):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not values:
            raise ValueError(
                f"cannot read {part.strip()!r} in the sweep {text!r}; write name=values with "
                f"commas in between, where values are {_FORMS}"
            )
        if name in axes:
            raise ValueError(f"{name} comes twice in the sweep {text!r}; join it: {name}=a|b")
        if name != "seeds" and name not in known:
            raise ValueError(_unknown(name, known))
        axes[name] = _parse_values(name, values)
    seeds = axes.pop("seeds", 1.0)
    chosen = [_whole(s) for s in seeds] if isinstance(seeds, list) else _whole(seeds)
    return grid(chosen, known=known, **axes)


def name_of(run: Mapping[str, float]) -> str:
    """Return a run's name, its setting in words.

    >>> name_of({"dose": 1.0, "learning_rate": 1e-4, "seed": 3})
    'dose=1 learning_rate=0.0001 seed=3'
    """
    return " ".join(
        f"{name}={value}" if isinstance(value, int) else f"{name}={value:g}"
        for name, value in run.items()
    )


def stack_settings(runs: Sequence[Mapping[str, float]]) -> dict[str, Array]:
    """Return the settings of R runs as arrays: the argument of a sweep's step.

    Validate before (`grid` does, and `anchor.strength_of`): inside the compiled step the numbers
    are traced, and nothing can be refused any more.

    Returns:
      Name -> (R,), float32; the seed int32.

    Raises:
      ValueError: if there are no runs, their names differ, or a value is not finite.

    >>> stack_settings([{"dose": 0.0, "seed": 0}, {"dose": 4.0, "seed": 0}])
    {'dose': Array([0., 4.], dtype=float32), 'seed': Array([0, 0], dtype=int32)}
    """
    if not runs:
        raise ValueError("a sweep needs at least one run; the list of runs is empty")
    for number, run in enumerate(runs):
        if run.keys() != runs[0].keys():
            odd = sorted(run.keys() ^ runs[0].keys())
            raise ValueError(
                f"run {number} and run 0 differ in {', '.join(odd)}; every run of a sweep has the "
                "same settings, with values of its own"
            )
        for name, value in run.items():
            if not math.isfinite(value):
                raise ValueError(f"run {number} ({name_of(run)}): {name} is {value}, not finite")
    return {
        name: jnp.asarray([run[name] for run in runs], jnp.int32 if name == "seed" else jnp.float32)
        for name in runs[0]
    }


def _values(name: str, value: float | Sequence[float]) -> list[float]:
    values = [float(v) for v in np.ravel(np.asarray(value))]
    if not values:
        raise ValueError(f"{name} has no values; give {_FORMS}")
    for number in values:
        low = "above 0" if name in _POSITIVE else "0 or more"
        below = number <= 0 if name in _POSITIVE else number < 0
        if not math.isfinite(number) or (below and name in AXES):
            raise ValueError(f"{name} is {number:g} in the grid; it must be finite and {low}")
    return values


def _seeds(seeds: int | Sequence[int]) -> list[float]:
    if isinstance(seeds, int | np.integer):
        if seeds < 1:
            raise ValueError(f"seeds is {seeds}; a grid needs one seed or more")
        return list(range(int(seeds)))
    whole = [_whole(seed) for seed in seeds]
    if not whole or min(whole) < 0:
        raise ValueError(f"seeds are {whole}; give how many, or a list of numbers 0 or more")
    return [*whole]


def _whole(seed: float) -> int:
    if not math.isfinite(seed) or seed != int(seed):
        raise ValueError(f"a seed is {seed:g}; seeds are whole numbers")
    return int(seed)


def _parse_values(name: str, values: str) -> float | list[float]:
    pieces = re.split(r"[|:]", values)
    try:
        numbers = [float(piece) for piece in pieces]
    except ValueError:
        raise ValueError(f"cannot read {name}={values}; {name} takes {_FORMS}") from None
    if ":" not in values:
        return numbers if "|" in values else numbers[0]
    if "|" in values or len(numbers) != 3 or numbers[2] < 2 or not numbers[2].is_integer():
        raise ValueError(
            f"cannot read {name}={values}; a range is start:stop:count, with both ends and a count "
            f"of 2 or more ({name}=0:4:5 is 0, 1, 2, 3, 4)"
        )
    start, stop, count = numbers[0], numbers[1], int(numbers[2])
    return [start + (stop - start) * step / (count - 1) for step in range(count)]


def _unknown(name: str, known: Collection[str]) -> str:
    close = nearest(name, ["seeds", *known], count=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{name!r} cannot be swept; what can: seeds, {', '.join(known)}{guess}"
