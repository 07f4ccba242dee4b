"""Every leaf has an address: the `/`-joined keys that lead to it.

A pattern is a path whose segments may hold wildcards. `*` stands for one segment (or, inside a
segment, for any run of characters), `**` for any number of segments. A pattern names a leaf or a
whole subtree, and always by whole segments: `lora` is not `lora2`.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from itertools import accumulate, takewhile
from typing import Any

import jax

PyTree = Any


def path_of(keys: tuple[Any, ...]) -> str:
    """Return the address of a leaf from the key path that `jax.tree_util` gives.

    >>> tree = {"encoder": [{"kernel": 1}]}
    >>> [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]
    ['encoder/0/kernel']
    """
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def flatten(tree: PyTree) -> dict[str, Any]:
    """Return `{path: leaf}` in natural order (block 2 before block 10); holes are left out.

    >>> flatten({"b": {"10": 1, "2": 2}, "a": None})
    {'b/2': 2, 'b/10': 1}
    """
    leaves = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return dict(sorted(leaves.items(), key=lambda item: natural_key(item[0])))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict with these leaves; the inverse of `flatten` on dicts.

    Raises:
      ValueError: if one path runs through the leaf of another.

    >>> unflatten({"b/2": 2, "b/10": 1})
    {'b': {'2': 2, '10': 1}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"path {path!r} runs through the leaf at {key!r}")
        if name in node:
            raise ValueError(f"path {path!r} is both a leaf and a subtree")
        node[name] = leaf
    return tree


def map_with_path(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Map `function(path, leaf, *others)` over a tree, leaving holes as they are.

    >>> map_with_path(lambda path, leaf: f"{path}={leaf}", {"a": {"b": 1}, "c": None})
    {'a': {'b': 'a/b=1'}, 'c': None}
    """
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf, *others: function(path_of(keys), leaf, *others), tree, *rest
    )


def matches(pattern: str, path: str) -> bool:
    """Tell whether `pattern` names the leaf at `path` or a subtree that holds it.

    >>> matches("encoder/layer/*/attention", "encoder/layer/3/attention/query/kernel")
    True
    >>> matches("**/bias", "encoder/layer/3/attention/query/bias")
    True
    >>> matches("encoder/layer/1", "encoder/layer/11/bias")
    False
    """
    return _compiled(pattern).match(path) is not None


def nearest(pattern: str, paths: list[str], count: int = 3) -> list[str]:
    """Return the paths (leaves or subtrees) most like a pattern that matched nothing.

    >>> nearest("encoder/layers/1", ["encoder/layer/0/bias", "encoder/layer/1/bias"])[0]
    'encoder/layer/1'
    """
    subtrees: dict[str, None] = {}
    for path in paths:
        segments = path.split("/")
        for depth in range(1, len(segments) + 1):
            subtrees["/".join(segments[:depth])] = None
    return difflib.get_close_matches(pattern, subtrees, n=count, cutoff=0.3)


def cover(chosen: Collection[str], paths: Collection[str]) -> str:
    """Name some leaves by the largest subtrees that hold no others.

    >>> tree = ["layer/0/w", "layer/0/b", "layer/1/w", "layer/1/b", "head/w"]
    >>> cover(["layer/0/w", "layer/0/b"], tree), cover(["layer/1/b", "head/w"], tree)
    ('layer/0', 'layer/1/b, head')
    """
    wanted = set(chosen)
    mixed = {
        prefix
        for path in paths
        if path not in wanted
        for prefix in accumulate(path.split("/"), _join)
    }
    found: dict[str, None] = {}
    for path in chosen:
        prefixes = list(accumulate(path.split("/"), _join))
        found[next(prefix for prefix in prefixes if prefix not in mixed)] = None
    if len(found) <= 3:
        return ", ".join(found)
    *_, shared = (
        "",
        *takewhile(
            lambda prefix: all(path.startswith(f"{prefix}/") for path in chosen),
            accumulate(next(iter(chosen)).split("/"), _join),
        ),
    )
    return f"{shared}/.." if shared else f"{next(iter(found))} and {len(found) - 1} more"


def natural_key(path: str) -> list[tuple[bool, int, str]]:
    """Sort key that reads runs of digits as numbers, so that block 2 comes before block 10."""
    return [
        (not part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.split(r"(\d+)", path)
    ]


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    segments = pattern.strip("/").split("/")
    expression = ""
    for position, segment in enumerate(segments):
        last = position == len(segments) - 1
        if segment == "**":
            expression += ".*" if last else "(?:[^/]+/)*"
        else:
            wild = {"*": "[^/]*", "?": "[^/]"}
            body = "".join(wild.get(char, re.escape(char)) for char in segment)
            expression += body + ("" if last else "/")
    return re.compile(expression + r"(?:/.*)?\Z")


def _join(left: str, right: str) -> str:
    return f"{left}/{right}"
