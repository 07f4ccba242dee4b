"""The words a rule may use in place of a path: what each one looks for in a tree.

A word stands for a list of paths of the tree at hand. A tree that has a leaf or a subtree of the
word's own name at its top (`head`, `embeddings`, ...) keeps it: there the word is that path.

`bias` and `norm` know a leaf by its name alone, so they work for any tree:

- a *bias* is a leaf named `bias`, `b` or `beta`, or whose name ends with `_bias`. Tables of
  relative or position biases are no biases: they are embeddings.
- a *norm* is a segment that contains `norm` (`LayerNorm`, `BatchNorm_0`, `input_layernorm`,
  `norm1`) but not `normal` (unless `normalization`), or that has `ln`, `bn` or `gn` as a word of
  its own (`ln_1`, `bn2`, `attn_ln`, `ln_f`). The leaves right below such a segment belong to it,
  and so does a leaf that bears such a name itself (`ln1_scale`).

A last segment `value`, which `flax.nnx` adds below each leaf, is looked through.
"""

import re
from collections.abc import Collection

from sftjax.core import PyTree, flatten, matches
from sftjax.select.blocks import above, last_blocks, stacks

MEANING = {
    "all": "every leaf",
    "bias": "leaves named bias, b, beta or *_bias",
    "embeddings": "leaves outside the blocks whose path speaks of embeddings or a stem",
    "head": "what lies above the blocks",
    "new": "leaves without a pretrained value",
    "norm": "leaves below a segment such as LayerNorm, BatchNorm_0, norm1, ln_1 or bn2",
}
"""Words without a number, and what they look for."""

COUNTED = {
    "block": "'block:' and a whole number, as in 'block:0' (lowest) or 'block:-1' (top)",
    "first": "'first:' and a whole number, as in 'first:2'",
    "last": "'last:' and a whole number, as in 'last:2'",
}
"""Words that take a number, and how they are written."""

_NORM = re.compile(r"norm(?!al)|normali[sz]ation|(?:^|_)(?:ln|bn|gn)_?\d*(?:_[a-z]+)?$", re.I)
_BIAS = re.compile(r"bias|b|beta|(?!.*(?:relative|position)).*_bias", re.I)


def patterns(rule: str, params: PyTree, new: Collection[str] = ()) -> list[str]:
    """Return the patterns that a rule stands for: those of its word, or the rule itself.

    Args:
      rule: a word, a word and its number (`"last:2"`), or a path pattern.
      params: any tree of arrays or shapes.
      new: paths of leaves without a pretrained value.

    Raises:
      ValueError: if a word's number is missing, or the tree has no such block.

    >>> tree = {"layer": {"0": {"ln": {"scale": 1}, "w": 1}, "1": {"ln": {"scale": 1}, "w": 1}}}
    >>> patterns("norm", tree), patterns("block:-1", tree), patterns("layer/*/w", tree)
    (['layer/0/ln/scale', 'layer/1/ln/scale'], ['layer/1'], ['layer/*/w'])
    """
    word, colon, argument = rule.partition(":")
    if word in COUNTED and (colon or word == "last"):
        if not re.fullmatch(r"-?\d+" if word == "block" else r"\d+", argument):
            raise ValueError(f"rule {rule!r}: write {COUNTED[word]}")
        number = int(argument)
        find = {"block": one_block, "first": first_blocks, "last": last_blocks}[word]
        return find(params, number)
    paths = list(flatten(params))
    if rule not in MEANING or (
        rule not in ("all", "new") and any(matches(rule, path) for path in paths)
    ):
        return [rule]
    return {
        "all": lambda: ["**"],
        "bias": lambda: [path for path in paths if is_bias(path)],
        "embeddings": lambda: below(params),
        "head": lambda: last_blocks(params, 0),
        "new": lambda: list(new),
        "norm": lambda: [path for path in paths if is_norm(path)],
    }[rule]()


def is_bias(path: str) -> bool:
    """Tell whether the leaf at `path` is a bias, by its name (BitFit: biases of norms too).

    Source: Ben Zaken et al., *BitFit*, 2022, arXiv:2106.10199.

    >>> [is_bias(path) for path in ("layer/0/dense/bias", "cell/b", "block/relative_bias")]
    [True, True, False]
    """
    return _BIAS.fullmatch(_segments(path)[-1]) is not None


def is_norm(path: str) -> bool:
    """Tell whether the leaf at `path` belongs to a norm: a scale, a bias, right below its name.

    >>> [is_norm(path) for path in ("output/LayerNorm/scale", "ln_f/g", "norm/dense/kernel")]
    [True, True, False]
    """
    return any(_NORM.search(segment) for segment in _segments(path)[-2:])


def first_blocks(params: PyTree, k: int) -> list[str]:
    """Return patterns for the first `k` blocks of every stack and all that lies below them.

    The mirror image of `last_blocks`: `first_blocks(params, 0)` is embeddings and stem alone.

    Raises:
      ValueError: if the tree has no numbered blocks, or fewer than `k`.

    >>> tree = {"layer": {"0": {"w": 1}, "1": {"w": 2}}, "embed": {"w": 0}, "head": 3}
    >>> first_blocks(tree, 1)
    ['layer/0', 'embed/w']
    """
    runs = _runs(params, f"first:{k}")
    for run in runs:
        if not 0 <= k <= len(run):
            raise ValueError(
                f"'first:{k}' asks for {k} blocks, but {_home(run)} has {len(run)}; use a number "
                f"from 0 to {len(run)}"
            )
    return [block for run in runs for block in run[:k]] + below(params)


def one_block(params: PyTree, k: int) -> list[str]:
    """Return block `k` of every stack: 0 is the lowest, -1 the top one. Nothing else moves.

    For a shift of the input tune the first block, for one of the labels the last.
    Source: Lee et al., *Surgical Fine-Tuning*, 2023, arXiv:2210.11466.

    Raises:
      ValueError: if the tree has no numbered blocks, or no block `k`.

    >>> one_block({"layer": {"0": {"w": 1}, "1": {"w": 2}, "2": {"w": 2}}}, -1)
    ['layer/2']
    """
    runs = _runs(params, f"block:{k}")
    for run in runs:
        if not -len(run) <= k < len(run):
            raise ValueError(
                f"'block:{k}' asks for block {k}, but {_home(run)} has {len(run)} blocks; use a "
                f"number from {-len(run)} to {len(run) - 1}"
            )
    return [run[k] for run in runs]


def below(params: PyTree) -> list[str]:
    """Return the paths of the leaves that lie below all blocks: embeddings and stem.

    >>> below({"layer": {"0": {"w": 1}, "1": {"w": 2}}, "patch_embed": {"w": 0}, "head": {"w": 3}})
    ['patch_embed/w']
    """
    inside = tuple(f"{block}/" for stack in stacks(params) for block in stack.blocks)
    top = set(above(params))
    return [path for path in flatten(params) if path not in top and not path.startswith(inside)]


def _runs(params: PyTree, rule: str) -> list[tuple[str, ...]]:
    found = [stack.blocks for stack in stacks(params)]
    if not found:
        tops = sorted({path.split("/")[0] for path in flatten(params)})
        raise ValueError(
            f"{rule!r} needs numbered blocks (layer/0, layer/1, ...), and this tree has none; "
            f"name what should move by its path instead. Top level: {', '.join(tops)}"
        )
    return found


def _home(run: tuple[str, ...]) -> str:
    return repr(run[0].rpartition("/")[0] or run[0])


def _segments(path: str) -> list[str]:
    segments = path.split("/")
    return segments[:-1] if segments[-1] == "value" and len(segments) > 1 else segments
