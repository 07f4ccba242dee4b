"""Say which leaves move, by pattern and in order: the first rule that matches a leaf decides."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax

from sftjax.core import PyTree, flatten, map_with_path, matches, nearest
from sftjax.select.blocks import last_blocks

Rule = str | tuple[str, float]


class Selection(NamedTuple):
    """What a list of rules decided, leaf by leaf; each field has the structure of the params."""

    trainable: PyTree
    """bool: whether the leaf moves."""
    rate: PyTree
    """float: multiplier of the learning rate; 0 where frozen."""
    rule: PyTree
    """str: the rule that decided; `""` where none did, so that the leaf is frozen."""


def select(params: PyTree, rules: Rule | Sequence[Rule], *, new: Collection[str] = ()) -> Selection:
    """Choose the leaves that move.

    A rule is a path pattern (see `sftjax.core.paths`), one of the words below, or a pair of either
    and a rate that multiplies the learning rate (0 freezes). The first match wins; what no rule
    names is frozen.

    - `"all"`: every leaf.
    - `"last:k"`: the last k blocks of every stack, and all that lies above them.
    - `"head"`: all that lies above the blocks (the same as `"last:0"`).
    - `"new"`: the leaves without a pretrained value.

    Args:
      params: any tree of arrays or shapes.
      rules: one rule or a sequence of them.
      new: paths of leaves without a pretrained value, as `hub.load` reports them.

    Returns:
      A `Selection`.

    Raises:
      ValueError: if a rule matches nothing (the nearest paths are listed) or is wholly hidden
        behind earlier ones, if nothing would move, if a rate is negative or not finite, or if a
        new leaf would stay at its random values without a rule saying so.

    >>> params = {"embed": 0, "layer": {"0": {"w": 0}, "1": {"w": 0}}, "head": {"w": 0}}
    >>> select(params, ["head", ("last:1", 0.5)]).rate
    {'embed': 0.0, 'head': {'w': 1.0}, 'layer': {'0': {'w': 0.0}, '1': {'w': 0.5}}}
    """
    ordered = [(rule, 1.0) if isinstance(rule, str) else rule for rule in _as_list(rules)]
    paths = list(flatten(params))
    decided: dict[str, tuple[str, float]] = {}
    for rule, rate in ordered:
        if not 0.0 <= rate < float("inf"):
            raise ValueError(f"rule {rule!r} has rate {rate}; a rate is a finite number >= 0")
        patterns = _patterns(rule, params, new)
        named = [path for path in paths if any(matches(pattern, path) for pattern in patterns)]
        if not named:
            close = nearest(rule, paths)
            hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
            raise ValueError(f"rule {rule!r} matches none of the {len(paths)} leaves{hint}")
        fresh = [path for path in named if path not in decided]
        if not fresh:
            raise ValueError(
                f"rule {rule!r} decides nothing: earlier rules already cover its {len(named)} "
                "leaves (the first match wins); move it up or remove it"
            )
        decided.update((path, (rule, float(rate))) for path in fresh)

    if not any(rate > 0 for _, rate in decided.values()):
        raise ValueError("no leaf would move: every rule has rate 0")
    left = [path for path in flatten(params) if path in new and path not in decided]
    if left:
        raise ValueError(
            f"{', '.join(left)} has no pretrained value and would stay at its random start; "
            "add the rule 'new' (or freeze it knowingly with rate 0)"
        )
    rule_of = map_with_path(lambda path, _: decided.get(path, ("", 0.0))[0], params)
    rate_of = map_with_path(lambda path, _: decided.get(path, ("", 0.0))[1], params)
    return Selection(jax.tree.map(lambda rate: rate > 0, rate_of), rate_of, rule_of)


def _as_list(rules: Rule | Sequence[Rule]) -> list[Rule]:
    if isinstance(rules, str):
        return [rules]
    if isinstance(rules, tuple) and len(rules) == 2 and isinstance(rules[1], (int, float)):
        return [rules]  # type: ignore[list-item]
    return list(rules)  # type: ignore[arg-type]


def _patterns(rule: str, params: PyTree, new: Collection[str]) -> list[str]:
    word, _, argument = rule.partition(":")
    if word == "all" and not argument:
        return ["**"]
    if word == "new" and not argument:
        return list(new)
    if word == "head" and not argument and not any(matches("head", p) for p in flatten(params)):
        return last_blocks(params, 0)
    if word == "last":
        if not argument.isdigit():
            raise ValueError(f"rule {rule!r}: write 'last:' and a whole number, as in 'last:2'")
        return last_blocks(params, int(argument))
    return [rule]
