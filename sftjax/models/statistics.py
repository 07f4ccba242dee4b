"""Running statistics of batch norm: which leaves they are, and who may move them.

They are leaves of the params, `mean` and `var` beside the `scale` and `bias` of their module, so
that loading, saving and freezing need nothing special. No gradient moves them. Three policies:

- `frozen`: they stay in the params and are used as they are, in training as in evaluation.
- `adapt`: they are taken out of the params into the step's model state, each batch is normalised
  by its own statistics and the running ones follow, as in torch's train mode.
- `recalibrate`: frozen while training, and measured anew afterwards (`anchor.recalibrate`).
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from sftjax.core import PyTree, cover, flatten, map_with_path, matches, partition

POLICIES = ("frozen", "adapt", "recalibrate")


def statistics_of(params: PyTree) -> tuple[str, ...]:
    """Return the paths of the running statistics in a tree of arrays or shapes.

    They are the leaves `mean` and `var` of a module that has both, and a `scale` or `bias`.

    >>> norm = {"scale": 1, "bias": 2, "mean": 3, "var": 4}
    >>> statistics_of({"stem": {"norm": norm}, "mean": 5})
    ('stem/norm/mean', 'stem/norm/var')
    """
    paths = flatten(params)

    def is_statistic(path: str) -> bool:
        module, _, name = path.rpartition("/")
        beside = [f"{module}/{other}" for other in ("mean", "var")]
        return (
            name in ("mean", "var")
            and all(other in paths for other in beside)
            and any(f"{module}/{other}" in paths for other in ("scale", "bias"))
        )

    return tuple(path for path in paths if is_statistic(path))


class Policy(NamedTuple):
    """Who may move which running statistics; `str()` says it in a line for `select.describe`."""

    frozen: tuple[str, ...]
    """Paths that stand still."""
    adapt: tuple[str, ...]
    """Paths that follow the batches."""
    recalibrate: tuple[str, ...]
    """Paths to measure anew when training is over."""
    every: tuple[str, ...]
    """All leaves of the tree."""

    def __str__(self) -> str:
        if not self.frozen + self.adapt + self.recalibrate:
            return "batch norm: none"
        parts = [
            f"{len(paths)} statistics {what} ({_modules(paths, self.every)})"
            for what, paths in (
                ("stand still", self.frozen),
                ("follow the batches", self.adapt),
                ("stand still and are measured anew afterwards", self.recalibrate),
            )
            if paths
        ]
        return f"batch norm: {'; '.join(parts)}"


def statistics_policy(
    params: PyTree, trainable: PyTree, rules: Mapping[str, str] | str | None = None
) -> Policy:
    """Decide for every running statistic whether it stands still.

    Args:
      params: the whole tree.
      trainable: bool tree (`Selection.trainable`); says which modules are frozen.
      rules: pattern -> "frozen", "adapt" or "recalibrate", the first match decides; or one of them
        for all that may move; `None` freezes where the module's scale and bias are frozen, and
        lets the others adapt.

    Returns:
      The policy. Statistics of a module whose scale and bias are frozen never adapt.

    Raises:
      ValueError: if a word is unknown, a pattern matches no statistic, or a pattern asks frozen
        modules to adapt.

    >>> params = {"norm": {"scale": 1, "bias": 2, "mean": 3, "var": 4}}
    >>> moves = {"norm": {"scale": True, "bias": True, "mean": False, "var": False}}
    >>> print(statistics_policy(params, moves))
    batch norm: 2 statistics follow the batches (norm)
    """
    moving = flatten(trainable)
    paths = statistics_of(params)
    listed = rules if isinstance(rules, Mapping) else {}
    for pattern, word in [*listed.items(), *([("**", rules)] if isinstance(rules, str) else [])]:
        if word not in POLICIES:
            raise ValueError(f"batch norm policy {word!r} is unknown; known: {', '.join(POLICIES)}")
        if paths and not any(matches(pattern, path) for path in paths):
            raise ValueError(
                f"the batch norm policy of {pattern!r} matches none of the {len(paths)} running "
                f"statistics, such as {paths[0]}"
            )
    decided: dict[str, list[str]] = {word: [] for word in POLICIES}
    for path in paths:
        module = path.rpartition("/")[0]
        moves = any(moving.get(f"{module}/{name}", False) for name in ("scale", "bias"))
        word = next((word for pattern, word in listed.items() if matches(pattern, path)), None)
        if word == "adapt" and not moves:
            raise ValueError(
                f"{path} would adapt, and {module} is frozen: a frozen trunk's statistics never "
                "move. Let its scale and bias move too, or choose frozen or recalibrate"
            )
        if word is None:
            word = (rules if isinstance(rules, str) else "adapt") if moves else "frozen"
        decided[word].append(path)
    frozen, adapt, recalibrate = (tuple(decided[word]) for word in POLICIES)
    return Policy(frozen, adapt, recalibrate, tuple(flatten(params)))


def take_statistics(params: PyTree, paths: Collection[str]) -> tuple[PyTree, PyTree]:
    """Part the statistics that move from the params: `(params, statistics)`, holes in between.

    `core.combine` of the two is the whole again, for evaluation and for saving.

    Args:
      params: the whole tree.
      paths: `Policy.adapt`.

    Raises:
      ValueError: if a path is not in the tree.

    >>> norm = {"scale": 1, "mean": 3, "var": 4}
    >>> take_statistics({"norm": norm}, ["norm/mean", "norm/var"])
    ({'norm': {'mean': None, 'scale': 1, 'var': None}},
     {'norm': {'mean': 3, 'scale': None, 'var': 4}})
    """
    leaves = flatten(params)
    absent = [path for path in paths if path not in leaves]
    if absent:
        raise ValueError(f"the params have no {', '.join(absent[:3])}")
    wanted = set(paths)
    statistics, rest = partition(params, map_with_path(lambda path, _: path in wanted, params))
    return rest, statistics


def _modules(paths: Collection[str], every: Collection[str]) -> str:
    """Name the subtrees whose statistics these are."""
    names = ("mean", "var")
    others = [path for path in every if path.rpartition("/")[2] in names]
    return cover(paths, others)
