"""Say which leaves move, by pattern and in order: the first rule that matches a leaf decides."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax

from sftjax.core import PyTree, flatten, map_with_path, matches, nearest
from sftjax.select.blocks import above, stacks
from sftjax.select.words import MEANING, below, patterns

Rule = str | tuple[str, float]

STILL = "(statistics)"
"""What `Selection.rule` says of leaves that no gradient may move."""


class Selection(NamedTuple):
    """What a list of rules decided, leaf by leaf; each field has the structure of the params."""

    trainable: PyTree
    """bool: whether the leaf moves."""
    rate: PyTree
    """float: multiplier of the learning rate; 0 where frozen."""
    rule: PyTree
    """str: the rule that decided; `""` where none did, so that the leaf is frozen."""


def select(
    params: PyTree,
    rules: Rule | Sequence[Rule],
    *,
    new: Collection[str] = (),
    still: Collection[str] = (),
) -> Selection:
    """Choose the leaves that move.

    A rule is a path pattern (see `sftjax.core.paths`), one of the words below, or a pair of either
    and a rate that multiplies the learning rate (0 freezes). The first match wins; what no rule
    names is frozen.

    - `"all"`: every leaf.
    - `"last:k"`: the last k blocks of every stack, and all that lies above them.
    - `"first:k"`: the first k blocks of every stack, and all that lies below them.
    - `"block:k"`: one block of every stack alone; 0 is the lowest, -1 the top one.
    - `"head"`: all that lies above the blocks (the same as `"last:0"`).
    - `"embeddings"`: all that lies below the blocks (the same as `"first:0"`).
    - `"bias"`: every bias of the tree (BitFit).
    - `"norm"`: the scales and biases of every norm. `sftjax.select.words` says how both are known.
    - `"new"`: the leaves without a pretrained value.

    Args:
      params: any tree of arrays or shapes.
      rules: one rule or a sequence of them.
      new: paths of leaves without a pretrained value, as `hub.load` reports them.
      still: paths of leaves that are no weights, such as running statistics
        (`models.statistics_of`): no rule takes them, and their `rule` is "(statistics)".

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
    return _select(params, rules, new, (), still)


def phases_of(
    params: PyTree,
    phases: Sequence[Rule | Sequence[Rule]],
    *,
    new: Collection[str] = (),
    still: Collection[str] = (),
) -> list[Selection]:
    """Choose the leaves that move in each phase of a run; `train.run_phases` runs them.

    LP-FT (Kumar et al. 2022, arXiv:2202.10054) is `[["new"], ["all"]]`; gradual unfreezing is
    `unfreezing(params)`. A new leaf that an earlier phase trained may be frozen in a later one.

    Args:
      params: any tree of arrays or shapes.
      phases: the rules of each phase, as `select` takes them.
      new: paths of leaves without a pretrained value.
      still: paths that no rule takes, as in `select`.

    Returns:
      A `Selection` for each phase.

    Raises:
      ValueError: as `select` does, naming the phase; or if there is no phase.

    >>> params = {"trunk": {"w": 0}, "head": {"w": 0}}
    >>> [chosen.trainable for chosen in phases_of(params, ["new", "all"], new=["head/w"])]
    [{'head': {'w': True}, 'trunk': {'w': False}}, {'head': {'w': True}, 'trunk': {'w': True}}]
    """
    if not phases:
        raise ValueError("the list of phases is empty: give the rules of at least one phase")
    if isinstance(phases, str):
        raise ValueError(f"phases is the one rule {phases!r}; give a list with each phase's rules")
    chosen: list[Selection] = []
    trained: set[str] = set()
    for number, rules in enumerate(phases, 1):
        try:
            selection = _select(params, rules, new, trained, still)
        except ValueError as error:
            raise ValueError(f"phase {number} ({rules!r}): {error}") from error
        trained |= {path for path, moves in flatten(selection.trainable).items() if moves}
        chosen.append(selection)
    return chosen


def unfreezing(params: PyTree, per_phase: int = 1) -> list[list[str]]:
    """Return the rules of gradual unfreezing, top-down: head, then blocks, at last everything.

    Args:
      params: any tree of arrays or shapes.
      per_phase: how many blocks join in each phase.

    Returns:
      Rules for `phases_of`. Stacks of different heights are unfrozen together until the lowest
      one is done; the rest joins in the last phase.

    Raises:
      ValueError: if the tree has no numbered blocks, or `per_phase` is below 1.

    Source: Howard & Ruder, *ULMFiT*, 2018, arXiv:1801.06146.

    >>> tree = {"embed": 0, "layer": {str(i): {"w": 0} for i in range(3)}, "head": 0}
    >>> unfreezing(tree, 2)
    [['last:0'], ['last:2'], ['last:3'], ['all']]
    """
    if per_phase < 1:
        raise ValueError(f"per_phase is {per_phase}; at least one block joins in each phase")
    found = stacks(params)
    if not found:
        raise ValueError(
            "gradual unfreezing needs numbered blocks (layer/0, layer/1, ...), and this tree has "
            "none; write the rules of each phase by hand"
        )
    heights = [len(stack.blocks) for stack in found]
    counts = [*range(per_phase, min(heights), per_phase), min(heights)]
    # Not the word "head", which stands for a subtree of that name where there is one.
    rules = [["last:0"]] if above(params) else []
    rules += [[f"last:{count}"] for count in counts]
    if below(params) or len(set(heights)) > 1:
        rules.append(["all"])
    return rules


def _select(
    params: PyTree,
    rules: Rule | Sequence[Rule],
    new: Collection[str],
    trained: Collection[str],
    still: Collection[str],
) -> Selection:
    ordered = [(rule, 1.0) if isinstance(rule, str) else rule for rule in _as_list(rules)]
    held = set(still)
    every = flatten(params)
    if unknown := sorted(held - every.keys()):
        raise ValueError(f"still names {unknown[0]}, which is no leaf of these params")
    paths = [path for path in every if path not in held]
    decided: dict[str, tuple[str, float]] = {}
    for rule, rate in ordered:
        if not 0.0 <= rate < float("inf"):
            raise ValueError(f"rule {rule!r} has rate {rate}; a rate is a finite number >= 0")
        wanted = patterns(rule, params, new)
        named = [path for path in paths if any(matches(pattern, path) for pattern in wanted)]
        if not named:
            raise ValueError(
                f"rule {rule!r} matches none of the {len(paths)} leaves{_hint(rule, paths)}"
            )
        fresh = [path for path in named if path not in decided]
        if not fresh:
            raise ValueError(
                f"rule {rule!r} decides nothing: earlier rules already cover its {len(named)} "
                "leaves (the first match wins); move it up or remove it"
            )
        decided.update((path, (rule, float(rate))) for path in fresh)

    if not any(rate > 0 for _, rate in decided.values()):
        raise ValueError("no leaf would move: every rule has rate 0; give one a rate above 0")
    decided.update((path, (STILL, 0.0)) for path in held)
    left = [p for p in paths if p in new and p not in decided and p not in trained]
    if left:
        raise ValueError(
            f"{', '.join(left)} has no pretrained value and would stay at its random start; "
            "add the rule 'new' (or freeze it knowingly with rate 0)"
        )
    rule_of = map_with_path(lambda path, _: decided.get(path, ("", 0.0))[0], params)
    rate_of = map_with_path(lambda path, _: decided.get(path, ("", 0.0))[1], params)
    return Selection(jax.tree.map(lambda rate: rate > 0, rate_of), rate_of, rule_of)


def _hint(rule: str, paths: list[str]) -> str:
    meaning = f": the word looks for {MEANING[rule]}" if rule in MEANING else ""
    close = nearest(rule, paths)
    return meaning + (f"; did you mean {', '.join(map(repr, close))}?" if close else "")


def _as_list(rules: Rule | Sequence[Rule]) -> list[Rule]:
    if isinstance(rules, str):
        return [rules]
    if isinstance(rules, tuple) and len(rules) == 2 and isinstance(rules[1], (int, float)):
        return [rules]  # type: ignore[list-item]
    return list(rules)  # type: ignore[arg-type]
