"""What an optimizer says of itself when it moves only a part of the selected leaves at a time."""

import dataclasses
from collections.abc import Collection

import jax

from sftjax.core import PyTree, cover, holes, path_of


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A remark in an optimizer's state, for `describe`: structure without arrays, never saved.

    All remarks are equal, so that states that differ in nothing else have one structure: they
    stack, and share a compiled step.

    >>> jax.tree.leaves({"count": 1, "part": Part("a half, drawn anew", {"w": 0.5})})
    [1]
    """

    says: str
    """One line: which part, of what, and how often it is drawn."""
    shares: dict[str, float]
    """Leaf -> share of its scalars whose gradient counts at an update; the others count whole."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part)

    def __hash__(self) -> int:
        return hash(Part)


def parts_of(state: PyTree) -> list[Part]:
    """Return the remarks in an optimizer's state, the outermost transform's first.

    >>> [part.says for part in parts_of(({"part": Part("a half", {})}, 1))]
    ['a half']
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Part))
    return [node for node in nodes if isinstance(node, Part)]


def named(chosen: Collection[str], params: PyTree) -> str:
    """Name some leaves of a partition by subtrees; what is frozen, a hole, counts as another leaf.

    >>> named(["layer/1/w"], {"layer": {"0": {"w": None}, "1": {"w": 1}}})
    'layer/1'
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=holes)
    return cover(chosen, [path_of(keys) for keys, _ in leaves])
